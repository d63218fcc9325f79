"""The index stage: the item vectors of a bundle -> an index of them, with what it finds of the exact best, measured."""

from __future__ import annotations

import logging
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
from rayrec.inference.index import measured_index, publish_index
from rayrec.inference.runtime import Product, factorized
from rayrec.models.base import Factorized
from rayrec.models.popularity import Popularity
from rayrec.models.registry import model_class
from rayrec.recipe_serving import Index as IndexSettings

_LOG = logging.getLogger(__name__)

QUERIES = 512
"""Requests: half of them to choose the probes by, half to measure what these find."""
QUERIES_A_PASS = 64


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
    """Build, measure and publish an index, in a Ray task. Returns what a Release says of it.

    Returns:
        ``path``; ``recall``, the share of the best ``k`` items that it finds, on average over ``queries`` users as they
        are before their validation events (or test events, where the view has no others); the ``floor`` for it;
        ``cells``, ``probes``, the cells that a request looks through, and ``codes``.
    """
    about: Json = result(ray.remote(num_cpus=1)(index_items_here).remote(job))
    return about


def index_items_here(job: IndexJob) -> Json:
    """`index_items` in this process."""
    bundle, dataset = open_bundle(job.storage, job.bundle), open_dataset(job.storage, *job.dataset_version)
    # Where the graph gives scores, its items are few enough for torch to hold them once more.
    scores = bundle.scorer().runtime
    product = scores if isinstance(scores, Product) else factorized(bundle.model())
    queries = _queries(product, bundle, dataset, job.view)
    index, about = measured_index(product.matrix, queries, job.settings)
    path = publish_index(job.storage, job.name, index, about, {"bundle": job.bundle, "view": job.view})
    return {"path": path, **about}


def _queries(product: Product, bundle: Bundle, dataset: Dataset, view: str) -> np.ndarray:
    """Vectors of requests of some users, evenly spread: ``[n, D]`` float32."""
    sequences = load_view(dataset, view)
    users, length = _users(sequences, bundle, dataset, view), bundle.manifest["max_length"]
    places = np.unique(np.linspace(0, len(users) - 1, min(len(users), QUERIES)).astype(np.int64))
    found = []
    for first in range(0, len(places), QUERIES_A_PASS):
        part = places[first : first + QUERIES_A_PASS]
        longest = int(users.past.lengths_of(users.users[part]).max(initial=1))
        found.append(product.queries(users.asked(part, min(length, longest))))
    return np.concatenate(found)


def _users(sequences: Sequences, bundle: Bundle, dataset: Dataset, view: str) -> HeldOut:
    """Those who validate, or where nobody does those who test."""
    fold = next(name for name in FUTURE if (sequences.folds == FUTURE[name]).any())
    return with_features(held_out(sequences, fold), bundle.widths, dataset, view, sequences, fold)
