"""What every way of training shares: what is told, what is read, and what is published."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayrec.artifacts import Json, Storage
from rayrec.data.dataset import Dataset, open_dataset
from rayrec.data.interactions import training_interactions
from rayrec.data.splits import FOLDS, TRAIN
from rayrec.data.views import Sequences, load_view, open_view
from rayrec.inference.bundle import publish_bundle
from rayrec.models.base import Recommender
from rayrec.models.interactions import Interactions
from rayrec.models.registry import model_class
from rayrec.recipe import Recipe


@dataclass(frozen=True)
class TrainJob:
    """What a training worker is told.

    Attributes:
        recipe: The recipe; `model` and `training` are read.
        dataset_version: Name and manifest number of the Dataset.
        view: Digest of the view.
        storage: Where they are, and where the bundle goes.
        bundle_name: The bundle's folder is ``models/BUNDLE_NAME``.
    """

    recipe: Recipe
    dataset_version: tuple[str, int]
    view: str
    storage: Storage
    bundle_name: str

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds that are learnt from."""
        return tuple(FOLDS[name] for name in self.recipe.training.folds)


def load(job: TrainJob) -> tuple[Sequences, Dataset]:
    """The view and its Dataset."""
    dataset = open_dataset(job.storage, *job.dataset_version)
    return load_view(dataset, job.view), dataset


def publish(job: TrainJob, model: Recommender, sequences: Sequences, dataset: Dataset, metrics: Json) -> str:
    """Publish a trained model with where it comes from. Returns the bundle's path."""
    histories = sequences.fold(TRAIN)
    longest = np.argsort(-histories.lengths, kind="stable")
    golden = [histories[user] for user in [*longest[:4], *longest[len(longest) // 2 :][:3]]]
    lineage = {
        "dataset": {"name": dataset.name, "manifest": dataset.number, "digest": dataset.digest},
        "view": job.view,
        "vocabulary": {table: listed["sha256"] for table, listed in dataset.manifest["vocab"].items()},
        "transforms": open_view(dataset, job.view)["transform"],
        "training": job.recipe.sections("training")["training"],
        "parents": [],
    }
    return publish_bundle(
        job.storage, job.bundle_name, model, sequences.item_keys, [*golden, np.zeros(0, np.int64)], lineage, metrics
    )


def interactions(job: TrainJob, sequences: Sequences) -> Interactions:
    """The training events of the view, with what is declared of items and of what else the model reads."""
    dataset, reads = open_dataset(job.storage, *job.dataset_version), model_class(job.recipe.model.name).reads
    return training_interactions(dataset, job.view, sequences, job.folds, reads)
