"""The training events of a view as models are fitted to them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayrec.data.dataset import Dataset, read_part
from rayrec.data.item_features import item_features
from rayrec.data.splits import TRAIN
from rayrec.data.views import Sequences, open_view
from rayrec.models.interactions import Interactions


def training_interactions(
    dataset: Dataset, view: str, sequences: Sequences, folds: tuple[int, ...] = (TRAIN,)
) -> Interactions:
    """The events that are learnt from, with weights where the view has them, and what is known of its items.

    Raises:
        DataError: A part of the view is missing or was changed.
    """
    trained = np.isin(sequences.folds, folds)
    return Interactions(
        histories=sequences.histories.keep(trained),
        num_items=len(sequences.item_keys),
        weights=event_column(dataset, view, "weights", trained),
        item_features=item_features(dataset, view),
    )


def event_column(
    dataset: Dataset, view: str, column: str, chosen: np.ndarray | slice = slice(None)
) -> np.ndarray | None:
    """A column of the chosen events of a view, in the order of `Sequences`; None where the view has no such column."""
    shards = [read_part(dataset.storage, shard) for shard in open_view(dataset, view)["shards"]]
    if not shards or column not in shards[0].column_names:
        return None
    table = pa.concat_tables([shard.select(["user", column]) for shard in shards]).sort_by("user")
    return np.asarray(table[column].combine_chunks().flatten().to_numpy()[chosen])
