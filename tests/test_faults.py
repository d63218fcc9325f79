"""Machines die: what was begun is taken up, and what comes out is, byte for byte, what would have come out."""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.nodes import Driver, Nodes
from tests.recipes import write_log, write_recipe

from rayrec.artifacts import Storage

EPOCHS = 12
MODEL = {"name": "sasrec", "dim": 16, "blocks": 1, "max_length": 10, "dropout": 0.2}
# Each epoch has 15 steps: checkpoints are written in the middle and at the end.
TRAINING = {"epochs": EPOCHS, "batch_size": 4, "checkpoint_steps": 8, "patience": EPOCHS, "gpus": "no", "threads": 1}

ONE_WORKER = ("--set", "training.workers=1", "--set", "training.epochs=10000", "--set", "training.patience=10000")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, object_store: dict[str, str]) -> Iterator[Nodes]:
    """Three nodes that share an object store, and nothing else."""
    # A worker that hangs is waited for so long.
    settings = {"RAYREC_STORAGE": "s3://rayrec/faults", "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "7"}
    with Nodes(tmp_path_factory.mktemp("nodes"), **settings, **object_store) as started:
        yield started


@pytest.fixture(scope="module")
def storage(object_store: dict[str, str]) -> Storage:
    return Storage.open("s3://rayrec/faults")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, storage: Storage) -> Path:
    """A recipe whose log lies in the object store, as nodes without a common disk need it."""
    folder = tmp_path_factory.mktemp("recipe")
    log = write_log(folder)
    for name in ("log.csv", "items.csv"):
        storage.replace(f"logs/{name}", log.with_name(name).read_bytes())
    return write_recipe(folder, "s3://rayrec/faults/logs/log.csv", model=MODEL, training={**TRAINING, "workers": 2})


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, recipe: Path, storage: Storage) -> str:
    """The path of the bundle that comes out when nothing dies; two workers on two nodes made it."""
    driver = nodes.driver("run", str(recipe))
    driver.await_epoch(1)
    workers = nodes.training_workers()
    assert len(workers) == len(set(workers.values())) == 2, "one worker on each node"
    assert driver.finish() == 0, driver.output
    assert "promoted: tiny/1 is the first champion" in driver.output
    return bundle(storage)


def bundle(storage: Storage) -> str:
    """The bundle of the train stage."""
    (record,) = storage.list("stages/train")
    return str(storage.read_json(f"stages/train/{record}")["output"]["bundle"])


def forget(storage: Storage, path: str) -> bytes:
    """Have the same command train again. Returns the weights that it must make again."""
    weights = storage.read(f"{path}/dense.safetensors")
    for gone in ("stages/train", path):
        storage.remove(gone)
    return weights


def await_end_of(workers: dict[int, Any]) -> None:
    """Workers end soon after their driver."""
    deadline = time.monotonic() + 15
    while any(psutil.pid_exists(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers go on without their driver"
        time.sleep(0.05)  # polls processes that are not our children


def some_time(driver: Driver, first: int, last: int) -> None:
    """Wait for a random moment of training."""
    driver.await_epoch(random.randint(first, last))
    time.sleep(random.uniform(0, 0.3))


def test_nodes_that_share_only_the_storage_run_a_recipe(nodes: Nodes, undisturbed: str, storage: Storage) -> None:
    made = {home.name: {path.name for path in home.glob("rayrec/*")} for home in nodes.homes}
    # Only drivers use MLflow; nodes have copies of models.
    assert made.pop("home-driver") - {"cache"} == {"mlflow.db", "mlflow.db.lock", "mlruns"}
    assert set().union(*made.values()) == {"cache"}
    assert storage.exists(f"{undisturbed}/model.json")


def test_whatever_dies_the_weights_are_the_same(nodes: Nodes, recipe: Path, undisturbed: str, storage: Storage) -> None:
    weights = forget(storage, undisturbed)
    driver = nodes.driver("train", str(recipe))
    some_time(driver, 2, EPOCHS // 2)
    # With its worker.
    nodes.kill_node()
    driver.await_restart(1)
    workers = nodes.training_workers()
    driver.kill()
    await_end_of(workers)

    again = nodes.driver("train", str(recipe))
    assert again.finish() == 0, again.output
    # An epoch is told of while its checkpoint is written: at most that one is done again.
    assert again.epochs[0] >= driver.epochs[-1]
    assert bundle(storage) == undisturbed
    assert storage.read(f"{undisturbed}/dense.safetensors") == weights


def test_a_driver_that_is_told_to_stop_says_how_to_go_on(nodes: Nodes, recipe: Path, undisturbed: str) -> None:
    endless = ["--set", "training.workers=0", "--set", "training.epochs=10000", "--set", "training.patience=10000"]
    driver = nodes.driver("train", str(recipe), *endless)
    some_time(driver, 2, 4)
    driver.process.send_signal(signal.SIGTERM)
    assert driver.finish() == 143, driver.output
    assert "The same command again goes on where this one stopped" in driver.output


def test_a_worker_that_hangs_is_one_message(nodes: Nodes, recipe: Path, undisturbed: str) -> None:
    driver = nodes.driver("train", str(recipe), *ONE_WORKER, "--set", "training.seed=1")
    some_time(driver, 2, 4)
    stopped = nodes.stop_worker()
    assert driver.finish() == 2, driver.output
    assert re.search(rf"worker 0 \(process {stopped} on [\d.]+\) hangs.* checkpoint after epoch \d", driver.output)
    assert "Traceback" not in driver.output
    await_end_of({stopped: None})


def test_a_sweep_outlives_its_driver_and_its_nodes(nodes: Nodes, recipe: Path, storage: Storage) -> None:
    space = recipe.with_name("space.yaml")
    space.write_text("trials: 3\nspace: {training.learning_rate: {log_uniform: [0.001, 0.05]}}")
    short = ["--set", "training.workers=0", "--set", "training.epochs=4"]
    arguments = ["tune", str(recipe), "--space", str(space), *short]
    first = nodes.driver(*arguments)
    first.await_trials(1)
    first.kill()

    again = nodes.driver(*arguments, "--json")
    again.await_trials(1)
    nodes.kill_any_node()
    assert again.finish() == 0, again.output
    # What had ended is in the records before it is told.
    assert not set(first.trials) & set(again.trials)
    result = json.loads(again.output[again.output.index("\n{") :])
    assert [trial["number"] for trial in result["trials"]] == list(range(3))
    assert {trial["state"] for trial in result["trials"]} == {"done"}
    assert {len(trial["curve"]) for trial in result["trials"]} == {4}


def test_a_storage_that_other_nodes_cannot_reach_is_one_message(nodes: Nodes, recipe: Path) -> None:
    driver = nodes.driver("train", str(recipe), "--set", "storage=memory://only-here")
    assert driver.finish() == 2, driver.output
    assert "cannot reach storage 'memory://only-here'" in driver.output
    assert "Traceback" not in driver.output


def test_a_head_that_dies_is_one_message(nodes: Nodes, recipe: Path, undisturbed: str, storage: Storage) -> None:
    # The last test of this file: these nodes are of no use afterwards.
    forget(storage, undisturbed)
    driver = nodes.driver("train", str(recipe), *ONE_WORKER)
    some_time(driver, 2, 4)
    nodes.kill_head()
    assert driver.finish() == 2, driver.output
    assert "lost what this command needs" in driver.output
    assert "the same command goes on where this one stopped" in driver.output
    assert "Traceback" not in driver.output
