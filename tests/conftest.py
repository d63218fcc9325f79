"""Fixtures shared by all tests: one Ray for the whole session, a home of its own for each test.

`make test` has two sessions at once, each in a process of its own that takes one file after the other (pytest-xdist).
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import pytest

from rayrec.artifacts import Storage

if TYPE_CHECKING:
    from tests.planted import Planted

# Before anything of Ray or MLflow is imported: they read these once.
os.environ.update(
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_USAGE_STATS_ENABLED="0",
    MLFLOW_DISABLE_TELEMETRY="true",
    # Tensors as small as those of tests are slower on several threads, and a busy machine makes it worse.
    OMP_NUM_THREADS="1",
    # By default they step back (nice 15) for all other processes: beside a second one of tests they would starve.
    RAY_worker_niceness="0",
)
for variable in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
    os.environ.pop(variable, None)

LONGEST = (
    *("test_faults.py", "test_every_model.py", "test_search.py", "test_pipeline.py", "test_job.py", "test_cli.py"),
    *("test_train.py", "test_sweep.py", "test_deploy.py", "test_confirmation.py", "test_store.py", "test_gorse.py"),
)
"""They begin first, so that neither process of `make test` is alone with one of them in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; else in the order in which they were found."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local Ray for the session, with what rayrec sets for the ones it starts."""
    from rayrec.cluster import started

    with started(cpus=4, object_store_bytes=150 << 20):
        yield


@pytest.fixture
def without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are published without a graph, which would take longer than their training."""
    from tests.graphs import leave_out_graphs

    leave_out_graphs(monkeypatch)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A log in which only features tell what users want, and a model of it."""
    from tests.data.conftest import run_passes_here
    from tests.planted import FEATURES, plant

    with pytest.MonkeyPatch.context() as patch:
        run_passes_here(patch)
        return plant(tmp_path_factory.mktemp("planted"), FEATURES)


@pytest.fixture(scope="session")
def object_store() -> Iterator[dict[str, str]]:
    """An S3 server on this machine with a bucket ``rayrec``, and the variables by which clients find it."""
    from moto.server import ThreadedMotoServer

    # A line a request hides what a failed test says.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    variables = {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("rayrec")
        yield variables
    server.stop()


@pytest.fixture(scope="session")
def migrated_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; migrating one takes seconds, copying one milliseconds."""
    from mlflow import MlflowClient

    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return database


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrated_mlflow: Path) -> Path:
    """A fresh RAYREC_HOME with an MLflow database."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(migrated_mlflow, folder / "mlflow.db")
    monkeypatch.setenv("RAYREC_HOME", str(folder))
    return folder


@pytest.fixture
def storage(home: Path) -> Storage:
    """The storage in the fresh home."""
    return Storage.open()
