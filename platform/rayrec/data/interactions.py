"""The training events of a view as models are fitted to them."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import numpy as np
import pyarrow as pa

from rayrec.data.dataset import Dataset, read_part
from rayrec.data.item_features import item_features
from rayrec.data.splits import TRAIN
from rayrec.data.user_features import context_features, user_features
from rayrec.data.views import Sequences, open_view
from rayrec.models.interactions import Interactions


def training_interactions(
    dataset: Dataset,
    view: str,
    sequences: Sequences,
    folds: tuple[int, ...] = (TRAIN,),
    features: Collection[str] = (),
) -> Interactions:
    """The events that are learnt from, with weights where the view has them, and what is known of its items.

    Args:
        dataset: The Dataset.
        view: Digest of the view.
        sequences: The view.
        folds: The folds that are learnt from.
        features: What else is wanted: those of the ``user``, of the ``context`` (see `Recommender.features`).

    Raises:
        DataError: A part of the view is missing or was changed.
    """
    trained = partial(np.isin, sequences.folds, folds)
    weighted = bool(open_view(dataset, view)["clean"]["weights"])
    return Interactions(
        histories=sequences.fold(*folds),
        num_items=len(sequences.item_keys),
        weights=event_column(dataset, view, "weights")[trained()] if weighted else None,
        item_features=item_features(dataset, view),
        user_features=user_features(dataset, view) if "user" in features else None,
        context_features=context_features(dataset, view, trained()) if "context" in features else None,
    )


def event_column(dataset: Dataset, view: str, column: str) -> np.ndarray:
    """A column of a view's events, in the order of `Sequences`: ``[N]``.

    Raises:
        DataError: A part of the view is missing or was changed.
    """
    shards = [read_part(dataset.storage, shard, ["user", column]) for shard in open_view(dataset, view)["shards"]]
    table = pa.concat_tables(shards).sort_by("user")
    return np.asarray(table[column].combine_chunks().flatten().to_numpy())
