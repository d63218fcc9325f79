"""What came out for every user, kept so that models can be compared on the same users."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.artifacts import Storage
from rayrec.data.erasure import OUTCOMES
from rayrec.data.passes import parquet_bytes
from rayrec.data.views import Sequences
from rayrec.evaluation.full_ranking import RankedUsers


def write_outcomes(storage: Storage, dataset: str, ranked: RankedUsers, sequences: Sequences) -> str:
    """Write a row a user: ``user`` (index in the vocabulary), and ``items`` and ``ranks`` of what was held out.

    Items are indexes in the vocabulary too, so that it does not matter which view they come from. Returns the path.
    """
    held = ranked.ranks > 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(held.sum(axis=1))]).astype(np.int32))
    indexes = np.concatenate([[0], sequences.item_indexes])
    columns = {"items": indexes[ranked.targets[held]], "ranks": ranked.ranks[held]}
    lists = {name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in columns.items()}
    table = pa.table({"user": pa.array(sequences.users[ranked.users]), **lists}).sort_by("user")
    # An erasure looks for those of its Dataset.
    table = table.append_column("dataset", pa.array([dataset] * table.num_rows))
    return storage.write_content(OUTCOMES, parquet_bytes(table), ".parquet")


def read_ranks(storage: Storage, path: str) -> np.ndarray:
    """The ranks in a file of outcomes, users rising: ``[U, T]`` int64, 0 = padding."""
    ranks = pq.read_table(pa.BufferReader(storage.read(path)), columns=["ranks"])["ranks"].combine_chunks()
    lengths = ranks.value_lengths().to_numpy()
    padded = np.zeros((len(lengths), int(lengths.max(initial=1))), np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = ranks.flatten().to_numpy()
    return padded
