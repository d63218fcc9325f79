"""The log as serving needs it: what each user did, by the item rows of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.dataset import Dataset, read_part
from rayrec.data.segments import ordered
from rayrec.features.histories import Histories


@dataclass(frozen=True)
class UserHistories:
    """Every user's events, held-out ones included.

    Attributes:
        users: The position of each user key in ``histories``.
        histories: Item rows of a model; events on items it does not know are left out.
    """

    users: Mapping[str, int]
    histories: Histories


def load_histories(dataset: Dataset, item_keys: Sequence[str], event_types: Sequence[str] = ()) -> UserHistories:
    """Read the whole log in memory.

    Args:
        dataset: The Dataset.
        item_keys: The key of each item row from 1 on.
        event_types: Only events of these types; by default all.
    """
    users, items = dataset.vocabulary("user"), dataset.vocabulary("item")
    rows = pc.fill_null(pc.index_in(items["key"].combine_chunks(), pa.array(item_keys, pa.string())), -1)
    to_row = np.concatenate([[0], rows.to_numpy(zero_copy_only=False).astype(np.int64) + 1])
    columns = ["event_id", "user", "item", "type", "timestamp"]
    log = pa.concat_tables([read_part(dataset.storage, listed, columns) for listed in dataset.manifest["events"]])
    if event_types:
        log = log.filter(pc.is_in(log["type"].cast(pa.string()), pa.array(event_types, pa.string())))
    log = ordered(log, dataset.ranks)
    known = to_row[log["item"].to_numpy()]
    lengths = np.bincount(log["user"].to_numpy(), minlength=users.num_rows + 1)[1:]
    times = log["timestamp"].to_numpy() // 1000 if dataset.manifest["order"] == "timestamp" else None
    histories = Histories.grouped(lengths, known, times).keep(known != 0)
    return UserHistories({key: place for place, key in enumerate(users["key"].to_pylist())}, histories)
