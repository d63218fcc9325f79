"""The log: segments of events, each of one partition of the users, ordered by user and time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.artifacts import Json, Storage, canonical, digest
from rayrec.data.cleaning import ROW_BITS
from rayrec.data.dataset import read_part, write_table
from rayrec.data.ingest import Ingested, Shuffle
from rayrec.data.order import chronological, repeated
from rayrec.data.passes import Row, Shared, from_bytes, run_pass, share, to_bytes
from rayrec.data.spill import read_spills
from rayrec.data.statistics import log_statistics, segment_statistics, signed
from rayrec.data.vocabulary import SEEN, Keys, seen

KEY_COLUMNS = ["event_id", "user", "item", "type", "timestamp"]
CONTEXT = "context_"


@dataclass(frozen=True)
class Log:
    """What the log is made of, and how.

    Attributes:
        name: The Dataset.
        segments: Those that are there already, as the manifest lists them.
        ranks: ``[F]`` int64, the place of each file in the order of the sources, by its ordinal.
        batch: The number of this batch of segments: 0 of a whole log, then one more each time some is appended.
        keep: Which of equal events to keep.
    """

    name: str
    segments: list[Json]
    ranks: np.ndarray
    batch: int
    keep: Literal["first", "last", "no"]


@dataclass(frozen=True)
class Written:
    """The log after events were added.

    Attributes:
        segments: All segments, for the manifest.
        duplicates: Events that repeat others and are not in it, of the new ones and of those that were there.
        seen: Partial results for `rayrec.data.vocabulary.vocabulary`, by ``user`` and ``item``.
        statistics: Of each segment that was written, and with negative counts of what was taken out.
    """

    segments: list[Json]
    duplicates: int
    seen: dict[str, list[pa.Table]]
    statistics: list[Json]


def write_log(log: Log, ingested: Ingested, shuffle: Shuffle, keys: dict[str, Keys]) -> Written:
    """Index, sort, deduplicate and write what was ingested."""
    users = [share(pair) for pair in zip(keys["user"].found, keys["user"].indexes, strict=True)]
    # In one object for all: each worker maps the same memory.
    items = share(keys["item"].all)
    work = partial(_write_segment, log=log, ingested=ingested, shuffle=shuffle, users=users, items=items)
    rows = run_pass(work, ({"partition": partition} for partition in range(shuffle.partitions)))
    found = [json.loads(row["found"]) for row in rows]
    replaced = {path for result in found for path in result["replaced"]}
    kept = [segment for segment in log.segments if segment["path"] not in replaced]
    return Written(
        sorted([*kept, *(s for result in found for s in result["segments"])], key=_place),
        sum(result["duplicates"] for result in found),
        {name: [from_bytes(row[name]) for row in rows] for name in ("user", "item")},
        [statistics for result in found for statistics in result["statistics"]],
    )


def _place(segment: Json) -> tuple[int, int]:
    return segment["partition"], segment["batch"]


def _write_segment(row: Row, log: Log, ingested: Ingested, shuffle: Shuffle, users: list[Shared], items: Shared) -> Row:
    """One partition: a segment of its new events; without what they repeat, the segments that were there."""
    partition = int(row["partition"])
    batches = list(read_spills(shuffle.storage, ingested.events, partition))
    changes = _Changes(log, shuffle.storage, partition)
    if batches:
        events = _indexed(pa.Table.from_batches(batches), users[partition].value, items.value)
        del batches
        events = ordered(events, log.ranks)
        base = [s for s in log.segments if s["partition"] == partition and _overlaps(s, events)]
        tables = [read_part(shuffle.storage, segment) for segment in base]
        *of_base, of_new = _repeated([*tables, events], log)
        changes.add(events.filter(pa.array(~of_new)), log.batch)
        changes.duplicates += int(of_new.sum())
        for segment, table, dropped in zip(base, tables, of_base, strict=True):
            changes.replace(segment, table, dropped)
    return changes.found()


class _Changes:
    """What one partition's new events do to the log."""

    def __init__(self, log: Log, storage: Storage, partition: int) -> None:
        self._log, self._storage, self._partition = log, storage, partition
        self._segments: list[Json] = []
        self._replaced: list[str] = []
        self._statistics: list[Json] = []
        self._seen: dict[str, list[pa.Table]] = {"user": [], "item": []}
        self.duplicates = 0

    def add(self, events: pa.Table, batch: int) -> None:
        """New events."""
        if events.num_rows:
            self._segments.append(write_segment(self._storage, self._log.name, events, self._partition, batch))
            self._count(events, 1)

    def replace(self, segment: Json, events: pa.Table, dropped: np.ndarray) -> None:
        """A segment that loses the events which are repeated later: of equal ones, the last is to be kept."""
        if dropped.any():
            self._replaced.append(segment["path"])
            kept = events.filter(pa.array(~dropped))
            if kept.num_rows:
                args = (self._storage, self._log.name, kept, self._partition, segment["batch"])
                self._segments.append(write_segment(*args))
            self._count(events.filter(pa.array(dropped)), -1)
            self.duplicates += int(dropped.sum())

    def _count(self, events: pa.Table, sign: int) -> None:
        for name, partials in self._seen.items():
            partials.append(seen(events[name].to_numpy(), events["timestamp"].to_numpy(), sign))
        self._statistics.append(signed(segment_statistics(events), sign))

    def found(self) -> Row:
        partials = {name: to_bytes(pa.concat_tables([SEEN.empty_table(), *p])) for name, p in self._seen.items()}
        found = {
            "segments": self._segments,
            "replaced": self._replaced,
            "duplicates": self.duplicates,
            "statistics": self._statistics,
        }
        return {"found": canonical(found).decode(), **partials}


def write_segment(storage: Storage, name: str, events: pa.Table, partition: int, batch: int) -> Json:
    """Write events of one partition under the name their content gives them. Returns the entry for the manifest."""
    times = pc.min_max(events["timestamp"]).as_py()
    return {
        **write_table(storage, name, "events", events),
        "partition": partition,
        "batch": batch,
        "time_range_ms": [times["min"], times["max"]],
        "context": [column for column in events.column_names if column.startswith(CONTEXT)],
    }


def write_statistics(storage: Storage, name: str, parts: Sequence[Json], vocabularies: Mapping[str, pa.Table]) -> Json:
    """Write `log_statistics` under the name its content gives it. Returns the entry for the manifest."""
    data = canonical(log_statistics(parts, vocabularies))
    path = storage.write_content(f"datasets/{name}/statistics", data, ".json")
    return {"path": path, "sha256": digest(data), "bytes": len(data)}


def read_partition(
    storage: Storage, segments: Sequence[Json], partition: int, ranks: np.ndarray, columns: Sequence[str]
) -> pa.Table:
    """The events of a partition's users, ordered by user, time and source; ``event_id``, ``user`` and more columns.

    Context that was not asked for yet when a segment was written is null there.

    Raises:
        DataError: A segment is missing or was changed.
    """
    wanted = list(dict.fromkeys(["event_id", "user", "timestamp", *columns]))
    mine = [segment for segment in segments if segment["partition"] == partition]
    tables = [_columns(storage, segment, wanted) for segment in mine]
    return ordered(pa.concat_tables(tables).unify_dictionaries(), ranks) if len(tables) > 1 else tables[0]


def _columns(storage: Storage, segment: Json, wanted: Sequence[str]) -> pa.Table:
    absent = [name for name in wanted if name.startswith(CONTEXT) and name not in segment["context"]]
    table = read_part(storage, segment, [name for name in wanted if name not in absent])
    for name in absent:
        table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
    return table.select(wanted)


def source_order(event_ids: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Where events stand in the sources: ``[N]`` int64, by source, then path, then row.

    Args:
        event_ids: ``[N]`` int64.
        ranks: ``[F]`` int64, the place of each file. Files that came later may belong before earlier ones.
    """
    rows = event_ids & np.int64((1 << ROW_BITS) - 1)
    return (ranks[event_ids >> np.int64(ROW_BITS)] << np.int64(ROW_BITS)) | rows


def ordered(events: pa.Table, ranks: np.ndarray) -> pa.Table:
    """Events by user, then time, then `source_order`."""
    sources = source_order(events["event_id"].to_numpy(), ranks)
    order = chronological(events["user"].to_numpy(), events["timestamp"].to_numpy(), sources)
    return events.take(pa.array(order))


def _indexed(events: pa.Table, users: tuple[pa.Array, np.ndarray], items: pa.Array) -> pa.Table:
    """Keys replaced by their indexes, and types in an order that does not depend on how the rows came."""
    keys, indexes = users
    user = indexes[pc.index_in(events["user"], keys).to_numpy()]
    item = pc.add(pc.index_in(events["item"], items).cast(pa.int64()), 1)
    events = events.set_column(1, "user", pa.array(user)).set_column(2, "item", item)
    return events.set_column(3, "type", _in_order(events.unify_dictionaries()["type"].combine_chunks()))


def _in_order(types: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same words with a dictionary of those that occur, sorted."""
    codes = types.indices.to_numpy()
    used = np.flatnonzero(np.bincount(codes, minlength=len(types.dictionary)))
    words = types.dictionary.take(pa.array(used))
    order = pc.sort_indices(words).to_numpy()
    places = np.zeros(len(types.dictionary), np.int32)
    places[used[order]] = np.arange(len(used))
    return pa.DictionaryArray.from_arrays(pa.array(places[codes]), words.take(pa.array(order)))


def _overlaps(segment: Json, events: pa.Table) -> bool:
    """Whether there can be equal events: those have equal times."""
    first, last = segment["time_range_ms"]
    times = pc.min_max(events["timestamp"]).as_py()
    return bool(times["min"] <= last and first <= times["max"])


def _repeated(tables: Sequence[pa.Table], log: Log) -> list[np.ndarray]:
    """Which events of each table say what another of any table says too: ``[N]`` bool each."""
    ends = np.cumsum([table.num_rows for table in tables])[:-1]
    if log.keep == "no":
        return [np.zeros(table.num_rows, bool) for table in tables]
    together = pa.concat_tables([table.select(KEY_COLUMNS) for table in tables]).unify_dictionaries()
    columns = {name: together[name].to_numpy() for name in ("event_id", "user", "item", "timestamp")}
    types = together["type"].combine_chunks().indices.to_numpy()
    order = np.arange(len(types))
    if len(tables) > 1:
        sources = source_order(columns["event_id"], log.ranks)
        order = chronological(columns["user"], columns["timestamp"], sources)
    users, times, items = (columns[name][order] for name in ("user", "timestamp", "item"))
    found = np.zeros(len(order), bool)
    found[order] = repeated(users, times, items, types[order], log.keep)
    return np.split(found, ends)
