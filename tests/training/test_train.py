"""The train stage: from a Dataset to a bundle, in this process and with Ray Train's workers."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file

from rayrec.artifacts import Storage
from rayrec.data.on_disk import OnDisk
from rayrec.data.prepare import prepare
from rayrec.errors import ClusterError, DataError, ModelError
from rayrec.evaluation.evaluate import Measure, evaluate_here
from rayrec.inference.bundle import open_bundle
from rayrec.models.registry import model_class
from rayrec.models.sasrec import SASRec
from rayrec.recipe import Recipe
from rayrec.recipe_files import parse_recipe
from rayrec.training import train
from rayrec.training.checkpoint import Checkpoint, Checkpoints, State
from rayrec.training.fit import fit_here
from rayrec.training.job import TrainJob, best_epoch, load, memory_of
from rayrec.training.optimizer import learning_rate
from rayrec.training.progress import Position
from rayrec.training.train import train_model, with_workers
from rayrec.training.warm_start import Parent

USERS, ITEMS = 24, 8
TRAINING: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 8,
    "workers": 0,
    "gpus": "no",
    "threads": 1,
    "learning_rate": 0.01,
}
SASREC = {"name": "sasrec", "dim": 8, "blocks": 1, "heads": 1, "max_length": 4, "dropout": 0.0}

pytestmark = pytest.mark.usefixtures("ray_cluster")


def recipe(folder: Path, model: dict[str, Any] = SASREC, **training: Any) -> Recipe:
    source = {"path": str(folder / "log.csv"), "columns": {"user": "user", "item": "item", "timestamp": "time"}}
    evaluation = {"exclude_seen": False, "ks": [1, 5]}
    sections = {"model": model, "training": {**TRAINING, **training}, "evaluation": evaluation}
    return parse_recipe({"name": "tiny", "data": {"sources": [source]}, **sections})


@pytest.fixture(scope="module")
def job(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """Users who go round the items one by one."""
    folder = tmp_path_factory.mktemp("tiny")
    rows = [f"u{u},i{(u + n) % ITEMS},{1700000000 + n}" for u in range(USERS) for n in range(5 + u % 3)]
    (folder / "log.csv").write_text("\n".join(["user,item,time", *rows]))
    storage = Storage.open(folder / "storage")
    prepared = prepare(recipe(folder), storage)
    version = (prepared.dataset.name, prepared.dataset.number)
    return TrainJob(recipe(folder), version, prepared.view, storage, "tiny")


def changed(job: TrainJob, model: dict[str, Any] = SASREC, **training: Any) -> TrainJob:
    return dataclasses.replace(job, recipe=recipe(Path(job.storage.uri).parent, model, **training))


def losses(job: TrainJob, bundle: str) -> list[float]:
    metrics = Storage.read_json(job.storage, f"{bundle}/metrics.json")
    return [entry["loss"] for entry in metrics["history"]]


@pytest.mark.usefixtures("without_graphs")
def test_a_view_on_disk_teaches_what_one_in_memory_does(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    hstu = {"name": "hstu", "dim": 8, "blocks": 1, "heads": 1, "max_length": 4}
    in_memory = train_model(changed(job, hstu), "in-memory", lambda _: None)
    monkeypatch.setattr("rayrec.training.job.EVENT_BYTES", 1 << 20)
    limited = changed(job, hstu, memory_mb=1)
    assert isinstance(load(limited, 1e6)[0].fold(0).times, OnDisk)
    assert train_model(limited, "on-disk", lambda _: None) == in_memory, "the digest of the same weights"


@pytest.mark.usefixtures("without_graphs")
def test_counts_are_those_of_a_view_in_memory(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    popularity = {"name": "popularity", "half_life": 1}
    in_memory = fit_here(changed(job, popularity), 1)
    monkeypatch.setattr("rayrec.training.job.EVENT_BYTES", 1 << 20)
    assert fit_here(changed(job, popularity, memory_mb=1), 1) == in_memory


def test_half_of_the_memory_is_the_workers(job: TrainJob) -> None:
    (node,) = (node for node in ray.nodes() if node["Alive"])
    assert memory_of(job.recipe, 2) == node["Resources"]["memory"] / 4
    assert memory_of(changed(job, memory_mb=3).recipe, 2) == 3e6


def test_a_model_trained_here_learns_and_answers(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    entries: list[dict[str, float]] = []
    long = changed(job, epochs=12)
    path = train_model(long, "here", entries.append)
    assert [entry["epoch"] for entry in entries] == list(range(1, 13))
    assert entries[-1]["loss"] < 0.5 * entries[0]["loss"]
    bundle = open_bundle(job.storage, path)
    assert bundle.manifest["dataset"]["name"] == "tiny"
    scorer = bundle.scorer()
    (best,) = scorer.top([scorer.rows_of(["i3", "i4", "i5"])], 1)[0]
    assert scorer.item_keys[best[0] - 1] == "i6"
    recipe, storage = long.recipe, job.storage
    measure = Measure(recipe.evaluation, recipe.metric_names, job.dataset_version, job.view, storage, path, storage)
    results = evaluate_here(measure)
    assert results["test"]["hr@1"] > 0.8
    assert not list(tmp_path.glob("rayrec-checkpoint-*")), "no checkpoint is left behind"


def test_equal_training_gives_an_equal_bundle(job: TrainJob) -> None:
    assert train_model(job, "one", lambda _: None) == train_model(job, "two", lambda _: None)


@pytest.mark.usefixtures("without_graphs")
def test_with_averaging_the_averaged_weights_of_the_best_epoch_are_published(job: TrainJob) -> None:
    kept: list[State] = []

    def saved(checkpoints: Checkpoints, checkpoint: Checkpoint) -> None:
        save(checkpoints, checkpoint)
        if checkpoint.progress["best_epoch"] == checkpoint.progress["epoch"]:
            kept.append(checkpoint.states["average"])

    save = Checkpoints.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", saved)
        path = train_model(changed(job, averaging=0.9), "averaged", lambda _: None)
    published = open_bundle(job.storage, path).model().state_dict()
    assert all(torch.equal(tensor, published[name]) for name, tensor in kept[-1].items())


def test_popularity_is_fitted_in_one_pass(job: TrainJob) -> None:
    entries: list[dict[str, float]] = []
    path = train_model(changed(job, {"name": "popularity"}), "popular", entries.append)
    scores = open_bundle(job.storage, path).scorer().score([np.zeros(0, np.int64)])
    # All but the last two events of each user.
    assert scores[0, 1:].sum() == sum(3 + user % 3 for user in range(USERS))
    assert entries == []


def test_a_loss_that_is_no_number_arrives_as_one_message(job: TrainJob) -> None:
    wanted = r"norm of the gradient became (nan|inf) in epoch 1, step 2 of 3\. Lower .* is kept in (\S+)\. `training"
    with pytest.raises(ModelError, match=wanted) as caught:
        train_model(changed(job, learning_rate=1e30, clip=1e30), "diverging", lambda _: None)
    found = re.search(wanted, str(caught.value))
    assert found is not None
    kept, said = load_file(f"{found[2]}/batch.safetensors"), json.loads(Path(found[2], "batch.json").read_text())
    assert (said["epoch"], said["step"]) == (1, 2)
    assert sum(int((tensor != 0).sum()) for name, tensor in kept.items() if name.endswith("targets")) == said["targets"]


@pytest.mark.usefixtures("without_graphs")
@pytest.mark.parametrize(
    ("name", "features", "prefix", "message"),
    [
        (
            "sasrec",
            {"user": "other"},
            "i",
            "the features of users or contexts that tiny/1 reads were fitted to other data",
        ),
        ("sasrec", {}, "x", r"tiny/1 knows none of the 8 items of this Dataset \(it has 'i0', here is 'x0'\)"),
        ("gru4rec", {}, "i", "tiny/1 is a 'sasrec', and the recipe's model a 'gru4rec'"),
    ],
)
def test_a_parent_of_other_columns_items_or_another_kind_is_refused(
    job: TrainJob, name: str, features: dict[str, str], prefix: str, message: str
) -> None:
    parent = Parent("tiny/1", "digest", train_model(changed(job, epochs=1), "parent", lambda _: None), job.storage)
    found = model_class(name)
    with pytest.raises(ModelError, match=message):
        parent.give(found(found.Config(), ITEMS), [f"{prefix}{item}" for item in range(ITEMS)], features)


def test_scores_that_are_no_numbers_are_one_message(job: TrainJob) -> None:
    skipping = changed(job, learning_rate=1e30, clip=1e30, nonfinite="skip")
    with pytest.raises(ModelError, match=r"the scores after epoch 1 are no numbers, though all weights are\. Lower"):
        train_model(skipping, "no-scores", lambda _: None)


def test_out_of_memory_says_what_to_do(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def states(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(SASRec, "states", states)
    with pytest.raises(ModelError, match=r"ran out of GPU memory \(CUDA out of memory\.\) Lower training\.batch_size"):
        train_model(job, "out-of-memory", lambda _: None)


def test_a_view_that_is_gone_is_one_message(job: TrainJob) -> None:
    with pytest.raises(DataError, match="has no view 0123"):
        train_model(dataclasses.replace(job, view="0123"), "gone", lambda _: None)


def test_more_gpus_than_there_are_is_one_message(job: TrainJob) -> None:
    with pytest.raises(ClusterError, match=r"training\.gpus = 'yes' with 64 workers"):
        train_model(changed(job, workers=64, gpus="yes"), "gpus", lambda _: None)


@pytest.mark.usefixtures("without_graphs")
def test_what_is_trained_again_learns_from_more_on_the_same_schedule_up_to_the_best_epoch(
    job: TrainJob, caplog: pytest.LogCaptureFixture
) -> None:
    entries: list[dict[str, float]] = []
    long = changed(job, epochs=5, decay="cosine", warmup=0.2, refit="validation")
    again = dataclasses.replace(long, folds=("train", "validation"), epochs=2)
    bundle = open_bundle(job.storage, train_model(again, "again", entries.append))
    steps = USERS // TRAINING["batch_size"]
    rates = [learning_rate(steps * epoch - 1, steps * 5, long.recipe.training) for epoch in (1, 2)]
    assert [entry["learning_rate"] for entry in entries] == pytest.approx(rates)
    assert all("ndcg@10" not in entry for entry in entries), "what is learnt from is not validated on"
    assert "no events are left" not in caplog.text
    assert best_epoch(job.storage, bundle.path) == 2
    lineage = bundle.manifest["training"]
    assert (lineage["folds"], lineage["stopped_after"], "refit" in lineage) == (["train", "validation"], 2, False)


@pytest.mark.usefixtures("without_graphs")
@pytest.mark.slow
def test_two_workers_train_what_one_process_does(job: TrainJob) -> None:
    entries: list[dict[str, float]] = []
    path = train_model(changed(job, workers=2), "shared", entries.append)
    alone = train_model(job, "alone", lambda _: None)
    assert losses(job, path) == pytest.approx(losses(job, alone), rel=1e-4)
    assert [entry["epoch"] for entry in entries] == [1, 2]


def test_small_data_is_trained_without_a_worker_unless_it_is_asked_for(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def workers(**settings: Any) -> int | None:
        return with_workers(changed(job, **settings)).recipe.training.workers

    assert workers(workers=None) == 0
    assert workers(workers=1) == 1
    assert workers(workers=None, gpus="yes") == 1
    monkeypatch.setattr(train, "SMALL", 1)
    assert workers(workers=None) == 1


@pytest.mark.usefixtures("without_graphs")
@pytest.mark.parametrize("stopped_at", [Position(2), Position(2, 2)], ids=str)
def test_an_interrupted_training_goes_on_from_its_checkpoint(job: TrainJob, stopped_at: Position) -> None:
    # How often checkpoints are written makes no other bundle.
    whole = train_model(changed(job, epochs=4), "whole", lambda _: None)
    often = changed(job, epochs=4, checkpoint_steps=1)
    name, entries = f"interrupted after {stopped_at}".replace(" ", "-"), list[float]()

    class StoppedError(Exception):
        pass

    def saved(checkpoints: Checkpoints, checkpoint: Checkpoint) -> None:
        save(checkpoints, checkpoint)
        if checkpoint.position == stopped_at:
            raise StoppedError

    save = Checkpoints.save
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Checkpoints, "save", saved)
        train_model(often, name, lambda entry: entries.append(entry["epoch"]))
    path = train_model(often, name, lambda entry: entries.append(entry["epoch"]))
    assert entries[-2:] == [3, 4]
    assert path == whole
    # Asked not to resume, it begins anew.
    train_model(often, name, lambda entry: entries.append(entry["epoch"]), resume=False)
    assert entries[-4:] == [1, 2, 3, 4]
