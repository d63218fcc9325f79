"""What every way of training shares: what is told, what is read, and what is published."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import ray

from rayrec.artifacts import Json, Storage
from rayrec.data.dataset import Dataset, open_dataset
from rayrec.data.interactions import training_interactions
from rayrec.data.on_disk import on_disk
from rayrec.data.splits import FOLDS
from rayrec.data.user_features import feature_digests
from rayrec.data.views import Sequences, load_view, open_view
from rayrec.features.histories import Histories
from rayrec.inference.bundle import publish_bundle
from rayrec.inference.inputs import Context
from rayrec.models.base import Recommender
from rayrec.models.interactions import Interactions
from rayrec.models.registry import model_class
from rayrec.recipe import Recipe
from rayrec.training.warm_start import Parent

EVENT_BYTES = 49
"""Item and time of an event three times, as it is in the view, learnt from and held out or before what is; its fold."""


@dataclass(frozen=True)
class TrainJob:
    """What a training worker is told.

    Attributes:
        recipe: The recipe; `model`, `training` and `evaluation` are read.
        dataset_version: Name and manifest number of the Dataset.
        view: Digest of the view.
        storage: Where they are, and where the bundle goes.
        bundle_name: The bundle's folder is ``models/BUNDLE_NAME``.
        folds: What is learnt from: of ``train``, ``validation`` and ``test``.
        epochs: Train so many by gradient, on the schedule of the recipe's ``training.epochs``, and keep the last; None
            validates, and keeps the best.
        parent: The model to begin with, instead of with random weights.
        profile: Record some steps, see `rayrec.training.profiling`.
    """

    recipe: Recipe
    dataset_version: tuple[str, int]
    view: str
    storage: Storage
    bundle_name: str
    folds: tuple[str, ...] = ("train",)
    epochs: int | None = None
    parent: Parent | None = None
    profile: bool = False

    @property
    def fold_numbers(self) -> tuple[int, ...]:
        """The folds that are learnt from, as `Sequences` have them."""
        return tuple(FOLDS[name] for name in self.folds)

    @property
    def settings(self) -> Json:
        """The settings of this training, without those that change nothing in what is learnt here.

        How many workers there are does, in what they draw: an interrupted training may go on with more or fewer.
        """
        settings: Json = self.recipe.sections("training")["training"]
        for name in ("refit", "checkpoint_steps", "workers", "min_workers", "hung", "memory_mb", "gpus"):
            del settings[name]
        settings["warm_start"] = self.parent and self.parent.bundle
        return {**settings, "folds": list(self.folds), "stopped_after": self.epochs}


def best_epoch(storage: Storage, bundle: str) -> int | None:
    """How many epochs a published model was trained, up to its best one; None of models that are fitted at once."""
    epoch: int | None = storage.read_json(f"{bundle}/metrics.json").get("best_epoch")
    return epoch


def load(job: TrainJob, memory: float = math.inf) -> tuple[Sequences, Dataset]:
    """The view and its Dataset.

    Args:
        job: What to train on what.
        memory: Bytes that the view's events may take. If they take more they are on disk, whatever is made of them too;
            but not for a model that learns from pairs, whose order takes as much memory as they do.
    """
    dataset = open_dataset(job.storage, *job.dataset_version)
    events = open_view(dataset, job.view)["counts"]["events"]
    in_memory = events * EVENT_BYTES <= memory or model_class(job.recipe.model.name).learns_from == "pairs"
    return load_view(dataset, job.view, np.empty if in_memory else on_disk), dataset


def memory_of(recipe: Recipe, workers: int = 1) -> float:
    """Bytes that the events of a view may take in each of the workers of this machine."""
    if recipe.training.memory_mb is not None:
        return recipe.training.memory_mb * 1e6
    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    return float(node["Resources"].get("memory", math.inf)) / 2 / workers


def publish(job: TrainJob, model: Recommender, sequences: Sequences, dataset: Dataset, metrics: Json) -> str:
    """Publish a trained model with where it comes from. Returns the bundle's path."""
    histories = sequences.histories
    longest = np.argsort(-histories.lengths, kind="stable")
    golden = [_request(histories, user) for user in [*longest[:4], *longest[len(longest) // 2 :][:3]]]
    golden.append((np.zeros(0, np.int64), Context()))
    lineage = {
        "dataset": {"name": dataset.name, "manifest": dataset.number, "digest": dataset.digest},
        "view": job.view,
        "vocabulary": {table: listed["sha256"] for table, listed in dataset.manifest["vocab"].items()},
        "transforms": open_view(dataset, job.view)["transform"],
        "features": feature_digests(dataset, job.view, model.widths),
        "training": job.settings,
        "parents": [job.parent.lineage] if job.parent else [],
    }
    return publish_bundle(
        job.storage,
        job.bundle_name,
        model,
        sequences.item_keys,
        golden,
        lineage,
        metrics,
    )


def interactions(job: TrainJob, sequences: Sequences) -> Interactions:
    """The training events of the view, with what is declared of items and of what else the model reads."""
    dataset, features = open_dataset(job.storage, *job.dataset_version), model_class(job.recipe.model.name).features
    return training_interactions(dataset, job.view, sequences, job.fold_numbers, features)


def _request(histories: Histories, user: int) -> tuple[np.ndarray, Context]:
    """A user's history, asked at the moment of its last event, from which times are counted."""
    if histories.times is None:
        return histories[user], Context()
    times = histories.times[histories.offsets[user] : histories.offsets[user + 1]]
    return histories[user], Context(np.append(times, times[-1:]) - times[-1:])
