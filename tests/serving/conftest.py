"""One small Release for all tests of serving."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.recipes import recipe_values, write_log
from tests.watching import Silent

from rayrec import pipeline
from rayrec.artifacts import Storage
from rayrec.inference.release import Release, open_release
from rayrec.recipe_files import parse_recipe


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None, migrated_mlflow: Path) -> Release:
    """A Release trained on the tiny log."""
    folder = tmp_path_factory.mktemp("served")
    home = folder / "home"
    home.mkdir()
    shutil.copy(migrated_mlflow, home / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYREC_HOME", str(home))
        storage = Storage.open(home)
        recipe = parse_recipe(recipe_values(write_log(folder), name="served"))
        digest = pipeline.run(recipe, storage, Silent()).release.digest
    return open_release(storage, digest)
