"""The index stage: the item vectors of a bundle -> indexes, with what they find of the exact best, measured."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import ray

from rayrec.artifacts import Json, Storage
from rayrec.data.dataset import Dataset, open_dataset
from rayrec.data.tasks import result
from rayrec.data.views import Sequences, load_view
from rayrec.evaluation.full_ranking import HeldOut
from rayrec.evaluation.held_out import FUTURE, held_out, with_features
from rayrec.inference.bundle import Bundle, open_bundle
from rayrec.inference.index import BEST, SIMILAR, Indexes, measured_index, publish_indexes
from rayrec.inference.inputs import Inputs
from rayrec.inference.runtime import Product, factorized
from rayrec.models.base import Factorized
from rayrec.models.popularity import Popularity
from rayrec.models.registry import model_class
from rayrec.recipe_serving import Index as IndexSettings

_LOG = logging.getLogger(__name__)

QUERIES = 512
"""Requests: half of them to choose the probes by, half to measure what these find."""
QUERIES_A_PASS = 64
RECENT = 5
"""Latest items of a user that others are like, as `serving.funnel` asks for them."""


@dataclass(frozen=True)
class IndexJob:
    """What is indexed, and how.

    Attributes:
        settings: Of the index.
        name: It is published in ``indexes/NAME``.
        bundle: Path of the bundle.
        dataset_version: Name and manifest number of the Dataset.
        view: Digest of the view whose users ask.
        storage: Where they are, and where the index goes.
    """

    settings: IndexSettings
    name: str
    bundle: str
    dataset_version: tuple[str, int]
    view: str
    storage: Storage

    @property
    def is_wanted(self) -> bool:
        """Whether there are so many items that they are looked up in an index, and the model allows it."""
        manifest = open_bundle(self.storage, self.bundle).manifest
        items, kind = manifest["num_items"], manifest["kind"]
        if not self.settings.is_for(items) or kind == Popularity.kind:
            return False
        if not issubclass(model_class(kind), Factorized):
            why = "its scores are no products of vectors, so there can be no index"
            _LOG.warning("serving: '%s' scores all %s items for every request: %s", kind, f"{items:,}", why)
            return False
        return True


def index_items(job: IndexJob) -> Json:
    """Build, measure and publish indexes, in a Ray task. Returns what a Release says of them.

    Returns:
        ``path``, and of the index of the ``best`` items, and of that of ``similar`` ones where the model has vectors,
        what `measured_index` says of it, by requests of users as they are before their validation events (or test
        events, where the view has no others).
    """
    about: Json = result(ray.remote(num_cpus=1)(index_items_here).remote(job))
    return about


def index_items_here(job: IndexJob) -> Json:
    """`index_items` in this process."""
    bundle, dataset = open_bundle(job.storage, job.bundle), open_dataset(job.storage, *job.dataset_version)
    # Where the graph gives scores, its items are few enough for torch to hold them once more.
    scorer, asked = bundle.scorer(), [*_asked(bundle, dataset, job.view)]
    product = scorer.runtime if isinstance(scorer.runtime, Product) else factorized(bundle.model())
    queries = np.concatenate([product.queries(inputs) for inputs in asked])
    best, about = measured_index(product.matrix, queries, job.settings)
    measured, similar = {BEST: about}, None
    if scorer.vectors is not None:
        directions = scorer.directions(np.arange(len(scorer.vectors)))
        similar, measured[SIMILAR] = measured_index(directions, _alike(directions, asked), job.settings)
    lineage = {"bundle": job.bundle, "view": job.view}
    return {"path": publish_indexes(job.storage, job.name, Indexes(best, similar), measured, lineage), **measured}


def _asked(bundle: Bundle, dataset: Dataset, view: str) -> Iterator[Inputs]:
    """Requests of some users, evenly spread."""
    sequences = load_view(dataset, view)
    users, length = _users(sequences, bundle, dataset, view), bundle.manifest["max_length"]
    places = np.unique(np.linspace(0, len(users) - 1, min(len(users), QUERIES)).astype(np.int64))
    for first in range(0, len(places), QUERIES_A_PASS):
        part = places[first : first + QUERIES_A_PASS]
        longest = int(users.past.lengths_of(users.users[part]).max(initial=1))
        yield users.asked(part, min(length, longest))


def _alike(directions: np.ndarray, asked: Sequence[Inputs]) -> np.ndarray:
    """Mean directions of what users had last, by which items like these are looked up: ``[n, D]`` float32."""
    recent = [row[row != 0] for inputs in asked for row in inputs["history"][:, -RECENT:]]
    return np.stack([directions[rows].mean(axis=0) for rows in recent if len(rows)])


def _users(sequences: Sequences, bundle: Bundle, dataset: Dataset, view: str) -> HeldOut:
    """Those who validate, or where nobody does those who test."""
    fold = next(name for name in FUTURE if (sequences.folds == FUTURE[name]).any())
    return with_features(held_out(sequences, fold), bundle.widths, dataset, view, sequences, fold)
