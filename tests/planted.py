"""A log in which only features tell what users want, and a model that is trained on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayrec.artifacts import Storage
from rayrec.data.dataset import Dataset
from rayrec.data.prepare import prepare
from rayrec.data.splits import FOLDS
from rayrec.data.views import load_view
from rayrec.inference.bundle import open_bundle, publish_bundle
from rayrec.inference.release import Release, publish_release
from rayrec.models.popularity import Popularity, PopularityConfig
from rayrec.models.registry import model_class
from rayrec.recipe import Recipe
from rayrec.recipe_files import parse_recipe
from rayrec.training.feed import feed_for
from rayrec.training.job import TrainJob, interactions, publish
from rayrec.training.loop import train
from rayrec.training.run import start
from rayrec.training.world import World

WANTED = {("cook", "tv"): "cook-tv", ("cook", "pc"): "cook-pc", ("poet", "tv"): "poet-tv", ("poet", "pc"): "poet-pc"}
FEATURES: dict[str, Any] = {
    "users": {"job": {"kind": "categorical"}, "years": {"kind": "numeric", "column": "age"}},
    "context": {"device": {"kind": "categorical"}},
}
COLUMNS = {"user": "user", "item": "item", "timestamp": "time"}


@dataclass(frozen=True)
class Planted:
    """What was made.

    Attributes:
        folder: Where the logs are.
        job: What was trained: everybody's first event is on ``start``; of half the users the second is held out.
        dataset: The Dataset.
        bundle: Path of a two-tower.
    """

    folder: Path
    job: TrainJob
    dataset: Dataset
    bundle: str


def plant(folder: Path, features: dict[str, Any], users: int = 192) -> Planted:
    """Users whose job, and the device of the moment, decide which item they take after ``start``."""
    _write(folder, users)
    recipe, storage = recipe_of(folder, features), Storage.open(folder / "store")
    prepared = prepare(recipe, storage)
    job = TrainJob(recipe, (prepared.dataset.name, prepared.dataset.number), prepared.view, storage, "planted")
    return Planted(folder, job, prepared.dataset, _train(job, prepared.dataset))


def release(planted: Planted) -> Release:
    """A Release of the model, with what has most events beside it."""
    storage, dataset = planted.job.storage, planted.dataset
    view = load_view(dataset, planted.job.view)
    popular = Popularity(PopularityConfig(), len(view.item_keys))
    popular.exports = False  # an export takes a second
    fallback = publish_bundle(storage, "popular", popular, view.item_keys, [], {}, {})
    bundles = {"main": planted.bundle, "popular": fallback}
    content = {
        "name": "planted",
        "models": bundles,
        "variants": {role: open_bundle(storage, path).runtime for role, path in bundles.items()},
        "dataset": {"name": dataset.name, "manifest": dataset.number, "view": planted.job.view},
        "event_types": [],
        "simulated": False,
        "serving": {},
        "funnel": {"exclude_seen": True},
    }
    return publish_release(storage, content)


def _write(folder: Path, users: int) -> None:
    random = np.random.default_rng(0)
    log: dict[str, list[str]] = {fold: [] for fold in FOLDS}
    table = ["user,job,age"]
    for user in random.permutation(users):
        job, device = list(WANTED)[user // 4 % 4]  # equally many in each fold
        table.append(f"u{user},{job},{random.integers(20, 60)}")
        log["train"].append(f"u{user},start,{1_000 * user},tv")
        fold = ("test", "validation", "train", "train")[user % 4]
        log[fold].append(f"u{user},{WANTED[job, device]},{1_000 * user + 60},{device}")
    for fold, rows in log.items():
        (folder / f"{fold}.csv").write_text("\n".join(["user,item,time,device", *rows]), encoding="utf-8")
    (folder / "users.csv").write_text("\n".join(table), encoding="utf-8")


def recipe_of(folder: Path, features: dict[str, Any]) -> Recipe:
    """The recipe for logs in a folder."""
    sources = [{"path": f"{f}.csv", "columns": COLUMNS, "context": ["device"], "fold": f} for f in FOLDS]
    data = {
        "sources": sources,
        "users": {"path": "users.csv", "columns": {"user": "user"}},
        "features": features,
        "view": {"min_user_events": 1},
        "split": {"kind": "given"},
    }
    model = {"name": "two-tower", "dim": 16, "hidden": 32, "dropout": 0.0, "max_length": 8}
    training = {"epochs": 15, "batch_size": 16, "learning_rate": 0.01, "metric": "ndcg@1"}
    evaluation = {"ks": [1]}
    values = {"name": "planted", "data": data, "model": model, "training": training, "evaluation": evaluation}
    return parse_recipe(values, folder=folder)


def _train(job: TrainJob, dataset: Dataset) -> str:
    torch.manual_seed(0)
    view = load_view(dataset, job.view)
    model = model_class(job.recipe.model.name)(job.recipe.model.config, len(view.item_keys))
    observed = interactions(job, view)
    run = start(model, observed, job.recipe.training, World())
    train(run, feed_for(model, observed, job.recipe.training, 0), lambda model: {}, lambda run: None)
    return publish(job, model.eval(), view, dataset, {})
