"""Vocabularies: every key of users and items with its index, which it keeps while it lives.

Index 0 is padding. New keys are numbered in their own order after those that were there. An erased key leaves its row
behind, without the key: its index is never given to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.ingest import Ingested, Shuffle
from rayrec.data.passes import Row, from_bytes, run_pass, to_bytes
from rayrec.data.spill import read_spills

LIVE, ERASED = "live", "erased"
NEVER = np.iinfo(np.int64)
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("index", pa.int64()),
        ("first_seen", pa.int64()),
        ("last_seen", pa.int64()),
        ("events", pa.int64()),
        ("state", pa.string()),
    ]
)
SEEN = pa.schema([("index", pa.int64()), ("first_seen", pa.int64()), ("last_seen", pa.int64()), ("events", pa.int64())])


@dataclass(frozen=True)
class Keys:
    """The keys of one table, numbered.

    Attributes:
        all: Every key at the place of its index - 1; null where it was erased.
        known: How many of them were there before.
        found: The keys that each partition of the input has, in order.
        indexes: The index of each of those.
    """

    all: pa.Array
    known: int
    found: list[pa.Array]
    indexes: list[np.ndarray]


def number_keys(
    ingested: Ingested, shuffle: Shuffle, bases: dict[str, pa.Table | None], tables: dict[str, pa.Table | None]
) -> dict[str, Keys]:
    """Number the keys of ``user`` and ``item``.

    Args:
        ingested: What the files held.
        shuffle: Where it is.
        bases: The vocabularies so far; None where there is none.
        tables: The user and item tables, whose keys are known too, whether or not anything happened.
    """
    rows = run_pass(partial(_distinct, ingested=ingested, shuffle=shuffle), _partitions(shuffle))
    keys = {}
    for name in ("user", "item"):
        found = [from_bytes(row[name])["key"].combine_chunks() for row in rows]
        table = tables[name]
        given = table[name].combine_chunks() if table is not None else pa.array([], pa.string())
        keys[name] = _number(found, given, bases[name])
    return keys


def _partitions(shuffle: Shuffle) -> list[Row]:
    return [{"partition": partition} for partition in range(shuffle.partitions)]


def _distinct(row: Row, ingested: Ingested, shuffle: Shuffle) -> Row:
    """The keys of one partition, each once, in order."""
    distinct = {}
    for name, paths, column in (("user", ingested.events, "user"), ("item", ingested.items, "key")):
        batches = read_spills(shuffle.storage, paths, int(row["partition"]), [column])
        # File by file: all the texts at once would be many times as many as there are keys.
        keys = pa.chunked_array([batch.column(column).unique() for batch in batches], pa.string()).unique()
        distinct[name] = to_bytes(pa.table({"key": keys.take(pc.sort_indices(keys))}))
    return distinct


def _number(found: Sequence[pa.Array], given: pa.Array, base: pa.Table | None) -> Keys:
    old = base["key"].combine_chunks() if base is not None else pa.array([], pa.string())
    together = pa.concat_arrays([*found, given])
    is_new = pc.is_null(pc.index_in(together, old.drop_null()))
    new = together.filter(is_new).unique().drop_null()
    everyone = pa.concat_arrays([old, new.take(pc.sort_indices(new))])
    indexes = pc.index_in(pa.concat_arrays(list(found)), everyone).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    ends = np.cumsum([len(keys) for keys in found])
    return Keys(everyone, len(old), list(found), np.split(indexes, ends[:-1]))


def seen(indexes: np.ndarray, timestamps: np.ndarray, sign: int = 1) -> pa.Table:
    """When each index was first and last seen, and how often: `SEEN`, ascending by index.

    Args:
        indexes: ``[N]`` int64 from 0 on.
        timestamps: ``[N]`` int64.
        sign: -1 for events that are taken away.
    """
    events = np.bincount(indexes)
    present = np.flatnonzero(events)
    first, last = np.full(len(events), NEVER.max), np.full(len(events), NEVER.min)
    np.minimum.at(first, indexes, timestamps)
    np.maximum.at(last, indexes, timestamps)
    return pa.table([present, first[present], last[present], sign * events[present].astype(np.int64)], schema=SEEN)


def vocabulary(keys: Keys, base: pa.Table | None, partials: Sequence[pa.Table]) -> pa.Table:
    """The vocabulary after events were added (or, with a negative count, taken away): `SCHEMA`."""
    size = len(keys.all)
    first, last = np.full(size, NEVER.max), np.full(size, NEVER.min)
    events = np.zeros(size, np.int64)
    states = [LIVE] * size
    if base is not None:
        first[: keys.known] = base["first_seen"].fill_null(NEVER.max).to_numpy()
        last[: keys.known] = base["last_seen"].fill_null(NEVER.min).to_numpy()
        events[: keys.known] = base["events"].to_numpy()
        states[: keys.known] = base["state"].to_pylist()
    for partial_ in partials:
        at = partial_["index"].to_numpy() - 1
        np.minimum.at(first, at, partial_["first_seen"].to_numpy())
        np.maximum.at(last, at, partial_["last_seen"].to_numpy())
        np.add.at(events, at, partial_["events"].to_numpy())
    never = events == 0
    return pa.table(
        [
            keys.all,
            pa.array(np.arange(1, size + 1)),
            pa.array(first, pa.int64(), mask=never),
            pa.array(last, pa.int64(), mask=never),
            pa.array(events),
            pa.array(states, pa.string()),
        ],
        schema=SCHEMA,
    )
