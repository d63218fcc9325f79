"""Which events of the log a view is made of: filters, then a k-core to its fixed point."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.artifacts import Storage, canonical
from rayrec.data.dataset import Dataset
from rayrec.data.fitting import log_column
from rayrec.data.passes import Row, from_bytes, run_pass, to_bytes
from rayrec.data.segments import read_partition
from rayrec.data.spill import read_spills, write_spill
from rayrec.recipe_data import Clean, Data, Rate, moment

COUNTS = pa.schema([("item", pa.int64()), ("events", pa.int64())])


@dataclass(frozen=True)
class Selection:
    """Events that passed the filters, in working files, one a partition.

    Attributes:
        storage: Where they are.
        paths: The files.
        filtered: Events left out so far, by reason.
        events: Events in the files.
        last: The latest timestamp; maybe of an event that does not stay (see `latest`).
        keep_items: ``[V + 1]`` bool by vocabulary index: which items stay; None where all do.
        min_user_events: Users with fewer events on them do not.
    """

    storage: Storage
    paths: list[str]
    filtered: dict[str, int]
    events: int
    last: int
    keep_items: np.ndarray | None
    min_user_events: int

    def work(self) -> list[Row]:
        """One work item a partition."""
        return [{"path": path} for path in self.paths]

    def read(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The events of a partition that stay, ordered by user and time; ``user`` and ``item`` among the columns."""
        batches = list(read_spills(self.storage, [path], 0, columns))
        events = pa.Table.from_batches(batches)
        kept = self.kept(events["user"].to_numpy(), events["item"].to_numpy())
        return events if kept.all() else events.filter(pa.array(kept))

    def kept(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Which events stay: ``[N]`` bool, of users (ascending) with enough events on items that stay."""
        good = np.ones(len(items), bool) if self.keep_items is None else self.keep_items[items]
        starts = np.flatnonzero(np.diff(users, prepend=-1))
        counts = np.add.reduceat(good, starts, dtype=np.int64) if len(users) else np.empty(0, np.int64)
        lengths = np.diff(np.append(starts, len(users)))
        kept: np.ndarray = good & np.repeat(counts >= self.min_user_events, lengths)
        return kept


def select(data: Data, dataset: Dataset, columns: Sequence[str], workspace: str) -> Selection:
    """Apply the filters of `clean` and `view`.

    Args:
        data: The recipe's section.
        dataset: The log.
        columns: Columns that the view needs besides ``event_id``, ``user``, ``item`` and ``timestamp``.
        workspace: A folder for working files.
    """
    work = partial(_select, data=data, dataset=dataset, columns=tuple(columns), workspace=workspace)
    partitions = sorted({segment["partition"] for segment in dataset.manifest["events"]})
    rows = run_pass(work, ({"partition": partition} for partition in partitions))
    found = [json.loads(row["found"]) for row in rows]
    filtered: dict[str, int] = {}
    for result in found:
        for reason, count in result["filtered"].items():
            filtered[reason] = filtered.get(reason, 0) + count
    selection = Selection(
        dataset.storage,
        [result["path"] for result in found if result["path"]],
        filtered,
        sum(result["events"] for result in found),
        max((result["last"] for result in found), default=0),
        None,
        data.view.min_user_events,
    )
    if data.view.min_item_events == 1:
        return selection
    return _k_core(selection, data.view.min_item_events, dataset.manifest["vocab"]["item"]["rows"])


def latest(selection: Selection) -> int:
    """The latest timestamp of the events that stay, epoch milliseconds."""
    rows = run_pass(partial(_latest, selection=selection), selection.work())
    return max((int(row["last"]) for row in rows), default=0)


def _latest(row: Row, selection: Selection) -> Row:
    events = selection.read(str(row["path"]), ["user", "item", "timestamp"])
    return {"last": pc.max(events["timestamp"]).as_py() or 0}


def _select(row: Row, data: Data, dataset: Dataset, columns: Sequence[str], workspace: str) -> Row:
    wanted = dict.fromkeys(["event_id", "user", "item", "type", "timestamp", *columns])
    needed = dict.fromkeys([*wanted, *_filtered_columns(data.clean)])
    manifest = dataset.manifest
    events = read_partition(dataset.storage, manifest["events"], int(row["partition"]), dataset.ranks, [*needed])
    filtered = {}
    for reason, keeps in _filters(data).items():
        before = events.num_rows
        events = events.filter(keeps(events))
        filtered[reason] = before - events.num_rows
    kept = events.select([name for name in wanted if name != "type" or "type" in columns])
    path = ""
    if kept.num_rows:
        path = write_spill(dataset.storage, workspace, kept, np.zeros(kept.num_rows, np.uint16), 1)
    found = {
        "path": path,
        "events": kept.num_rows,
        "last": pc.max(kept["timestamp"]).as_py() or 0,
        "filtered": {reason: count for reason, count in filtered.items() if count},
    }
    return {"found": canonical(found).decode()}


def _filtered_columns(clean: Clean) -> list[str]:
    dropped = [log_column(name) for name, how in clean.missing.items() if how == "drop"]
    return [*dropped, *(["value"] if clean.min_value is not None else [])]


def _filters(data: Data) -> dict[str, Callable[[pa.Table], pa.Array]]:
    """The filters that are asked for, by the reason they give; each says which events to keep."""
    clean, types = data.clean, data.view.event_types
    filters: dict[str, Callable[[pa.Table], pa.Array]] = {}
    if types:
        filters["another event type"] = lambda e: pc.is_in(e["type"].cast(pa.string()), pa.array(types))
    if any(clean.time_range):
        filters["outside of the time range"] = partial(_in_time, clean=clean)
    for name in sorted(name for name, how in clean.missing.items() if how == "drop"):
        filters[f"{name} missing"] = partial(_given, column=log_column(name))
    if clean.min_value is not None:
        filters["value too low"] = lambda e: pc.fill_null(pc.greater_equal(e["value"], clean.min_value), True)
    if clean.repeat_seconds:
        filters["repeated too soon"] = partial(_not_repeated, seconds=clean.repeat_seconds)
    if clean.max_rate:
        filters["user too fast"] = partial(_not_too_fast, rate=clean.max_rate)
    return filters


def _given(events: pa.Table, column: str) -> pa.Array:
    return events[column].is_valid()


def _in_time(events: pa.Table, clean: Clean) -> pa.Array:
    times = events["timestamp"].to_numpy()
    first, end = (None if text is None else moment(text) for text in clean.time_range)
    after = np.ones(len(times), bool) if first is None else times >= first
    return pa.array(after if end is None else after & (times < end))


def _not_repeated(events: pa.Table, seconds: float) -> pa.Array:
    """Those that do not come so soon after the same user's last event with the same item and type."""
    types = events["type"].combine_chunks().indices.to_numpy()
    keys = [events["user"].to_numpy(), events["item"].to_numpy(), types]
    # Stable: within equal keys the events stay in time order.
    order = np.lexsort(keys[::-1])
    same = np.logical_and.reduce([key[order][1:] == key[order][:-1] for key in keys])
    soon = np.diff(events["timestamp"].to_numpy()[order]) <= seconds * 1000
    keep = np.ones(len(order), bool)
    keep[order[1:]] = ~(same & soon)
    return pa.array(keep)


def _not_too_fast(events: pa.Table, rate: Rate) -> pa.Array:
    """Those of users who never had more than so many events in so little time."""
    users, times, apart = events["user"].to_numpy(), events["timestamp"].to_numpy(), rate.events
    same = users[apart:] == users[:-apart]
    fast = same & (times[apart:] - times[:-apart] < rate.seconds * 1000)
    return pa.array(~np.isin(users, users[apart:][fast]))


def _k_core(selection: Selection, min_item_events: int, items: int) -> Selection:
    """The selection with the items that stay.

    Dropping users takes events from items and the other way round, so counts are repeated until nothing changes.
    """
    while True:
        counted = run_pass(partial(_count_items, selection=selection), selection.work())
        counts = item_counts([from_bytes(row["counts"]) for row in counted], items)
        enough = counts >= min_item_events
        before = selection.keep_items
        if (enough == ((counts > 0) if before is None else before & (counts > 0))).all():
            return replace(selection, keep_items=enough)
        selection = replace(selection, keep_items=enough)


def _count_items(row: Row, selection: Selection) -> Row:
    events = selection.read(str(row["path"]), ["user", "item"])
    return {"counts": to_bytes(count_items(events["item"].to_numpy()))}


def count_items(items: np.ndarray) -> pa.Table:
    """Events of each item that has any: `COUNTS`."""
    counts = np.bincount(items)
    present = np.flatnonzero(counts)
    return pa.table([present, counts[present].astype(np.int64)], schema=COUNTS)


def item_counts(tables: Sequence[pa.Table], items: int) -> np.ndarray:
    """Events of each item by vocabulary index: ``[V + 1]`` int64."""
    counts = np.zeros(items + 1, np.int64)
    for table in tables:
        counts[table["item"].to_numpy()] += table["events"].to_numpy()
    return counts
