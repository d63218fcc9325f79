"""Views: the sequences a model sees, after filters, each event with its fold. Rebuildable from the log at any time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rayrec.artifacts import Json, canonical, code_version, digest, short_digest
from rayrec.data.dataset import Dataset, read_part
from rayrec.data.passes import Row, parquet_bytes, part, run_pass
from rayrec.errors import DataError, RecipeError
from rayrec.features.histories import Histories
from rayrec.recipe import Recipe
from rayrec.recipe_data import Split, View

TRAIN, VALIDATION, TEST = 0, 1, 2
HISTOGRAM_BINS = 1 << 16


@dataclass(frozen=True)
class Sequences:
    """A view in memory.

    Attributes:
        users: ``[U]`` int64, index of each user in the vocabulary.
        histories: The events of these users as item rows, from 1 to ``len(item_indexes)``.
        folds: ``[N]`` int8, the fold of each event: 0 train, 1 validation, 2 test.
        item_indexes: ``[V]`` int64, index in the vocabulary of each item row from 1 on.
        item_keys: The key of each item row from 1 on.
    """

    users: np.ndarray
    histories: Histories
    folds: np.ndarray
    item_indexes: np.ndarray
    item_keys: list[str]

    def fold(self, *folds: int) -> Histories:
        """The events of these folds; users stay, if need be with none."""
        return self.histories.keep(np.isin(self.folds, folds))


def build_view(recipe: Recipe, dataset: Dataset) -> str:
    """Build the view the recipe asks for, unless it is there. Returns its digest.

    Raises:
        DataError: The filters leave nobody, or nothing to train or test on.
        RecipeError: A split by time of a log without times.
    """
    view, split = recipe.data.view, recipe.data.split
    check_split(split, timed=dataset.manifest["order"] == "timestamp")
    wanted = {"log": dataset.manifest["events"], "view": view.model_dump(), "split": split.model_dump()}
    identity = short_digest({**wanted, "code": code_version("data/views", "features")})
    folder = f"{dataset.path}/views/{identity}"
    if dataset.storage.exists(f"{folder}/view.json"):
        return identity
    keep_items = _k_core(dataset, view)
    bounds = _time_bounds(dataset, view, split, keep_items)
    work = partial(_write_shard, dataset=dataset, view=view, keep_items=keep_items, bounds=bounds, folder=folder)
    shards = [row for row in run_pass(work, _shards(dataset)) if row["users"]]
    _check(view, split, shards)
    events = np.sum([np.frombuffer(row["item_events"], np.int64) for row in shards], axis=0)
    items = np.flatnonzero(events)
    table = pa.table({"index": pa.array(items + 1, pa.int64()), "events": pa.array(events[items], pa.int64())})
    data = parquet_bytes(table)
    path = dataset.storage.write_content(folder, data, ".parquet")
    manifest = {
        "schema": 1,
        "dataset": dataset.digest,
        "view": view.model_dump(mode="json"),
        "split": split.model_dump(mode="json"),
        "shards": [{key: row[key] for key in ("path", "sha256", "bytes", "rows")} for row in shards],
        "items": part(path, data, digest(data), table.num_rows),
        "counts": _counts(shards) | {"items": len(items)},
    }
    dataset.storage.write_new(f"{folder}/view.json", canonical(manifest))
    return identity


def check_split(split: Split, timed: bool) -> None:
    """Find what is wrong with a split before any work is done.

    Raises:
        RecipeError: A split by time of a log without times, or by what is no time.
    """
    if split.kind != "time":
        return
    if not timed:
        raise RecipeError(
            "data.split.kind = 'time': the log has no timestamp column, so there is no time to split by. "
            "Map `columns.timestamp`, or use leave-one-out."
        )
    given = isinstance(split.validation_share, str) and isinstance(split.test, str)
    if given and _moment(str(split.validation_share)) >= _moment(str(split.test)):
        raise RecipeError(f"data.split: validation ({split.validation_share}) must begin before test ({split.test}).")


def open_view(dataset: Dataset, view: str) -> Json:
    """The manifest of a view.

    Raises:
        DataError: It is not there.
    """
    try:
        return dataset.storage.read_json(f"{dataset.path}/views/{view}/view.json")
    except FileNotFoundError as error:
        raise DataError(f"Dataset '{dataset.name}' has no view {view}. Run `rayrec prepare` again.") from error


def load_view(dataset: Dataset, view: str) -> Sequences:
    """A whole view in memory, users in the order of their index.

    Raises:
        DataError: It is not there, or damaged.
    """
    manifest = open_view(dataset, view)
    item_indexes = read_part(dataset.storage, manifest["items"])["index"].to_numpy()
    vocabulary = dataset.vocabulary("item")
    rows = np.zeros(vocabulary.num_rows + 1, dtype=np.int64)
    rows[item_indexes] = np.arange(1, len(item_indexes) + 1)
    table = pa.concat_tables([read_part(dataset.storage, shard) for shard in manifest["shards"]]).sort_by("user")
    items = table["items"].combine_chunks()
    keys = vocabulary["key"].take(pa.array(item_indexes - 1)).to_pylist()
    fold = next(name for name in table.column_names if name.startswith("fold_"))
    return Sequences(
        users=table["user"].to_numpy(),
        histories=Histories.grouped(items.value_lengths().to_numpy(), rows[items.flatten().to_numpy()]),
        folds=table[fold].combine_chunks().flatten().to_numpy(),
        item_indexes=item_indexes,
        item_keys=keys,
    )


def _shards(dataset: Dataset) -> Iterator[Row]:
    for listed in dataset.manifest["events"]:
        yield {"path": listed["path"], "sha256": listed["sha256"]}


def _filtered(row: Row, dataset: Dataset, view: View, keep_items: np.ndarray | None) -> pd.DataFrame:
    """One segment of the log as the view sees it: user, item, timestamp; ordered by user, then time."""
    listed = {"path": str(row["path"]), "sha256": str(row["sha256"])}
    events = read_part(dataset.storage, listed, ["user", "item", "type", "timestamp"]).to_pandas()
    if view.event_types:
        events = events[events["type"].isin(view.event_types)]
    if keep_items is not None:
        events = events[keep_items[events["item"].to_numpy()]]
    many = events.groupby("user")["item"].transform("size") >= view.min_user_events
    return events[many].drop(columns="type")


def _k_core(dataset: Dataset, view: View) -> np.ndarray | None:
    """Which items stay: bool by vocabulary index; None where every item does.

    Dropping users takes events from items and the other way round, so the counts are repeated until nothing changes.
    """
    if view.min_item_events == 1:
        return None
    keep = np.ones(dataset.manifest["vocab"]["item"]["rows"] + 1, dtype=bool)
    while True:
        work = partial(_count_items, dataset=dataset, view=view, keep_items=keep)
        counted = run_pass(work, _shards(dataset))
        counts = sum(np.frombuffer(row["item_events"], np.int64) for row in counted)
        enough = np.concatenate([[False], np.asarray(counts) >= view.min_item_events])
        if (enough == (keep & np.concatenate([[False], np.asarray(counts) > 0]))).all():
            return enough
        keep = enough


def _count_items(row: Row, dataset: Dataset, view: View, keep_items: np.ndarray) -> Row:
    events = _filtered(row, dataset, view, keep_items)
    return {"item_events": _item_events(events, dataset).tobytes()}


def _item_events(events: pd.DataFrame, dataset: Dataset) -> np.ndarray:
    """Events of each item by vocabulary index from 1 on: ``[V]`` int64."""
    items = dataset.manifest["vocab"]["item"]["rows"]
    return np.bincount(events["item"].to_numpy(), minlength=items + 1)[1:].astype(np.int64)


def _time_bounds(
    dataset: Dataset, view: View, split: Split, keep_items: np.ndarray | None
) -> tuple[float, float] | None:
    """Where validation and test begin (epoch ms), for a split by time."""
    if split.kind != "time":
        return None
    if isinstance(split.validation_share, str) and isinstance(split.test, str):
        return _moment(split.validation_share), _moment(split.test)
    test = float(split.test)
    shares = np.array([1 - float(split.validation_share) - test, 1 - test])
    first, last = dataset.manifest["time_range_ms"]
    low, high = np.array([first, first]), np.array([last + 1, last + 1])
    # Bins of bins, down to the millisecond: one event dated 1970 must not make the bins as wide as a day.
    while (high - low > 1).any():
        edges = np.unique(np.concatenate([_edges(*bounds) for bounds in zip(low, high, strict=True)]))
        work = partial(_counts_before, dataset=dataset, view=view, keep_items=keep_items, edges=edges)
        rows = run_pass(work, _shards(dataset))
        before = np.sum([np.frombuffer(row["counts"], np.int64) for row in rows], axis=0)
        total = sum(row["events"] for row in rows)
        found = np.searchsorted(before, np.ceil(shares * total - 1e-6))
        low, high = edges[found - 1], edges[found]
    return float(high[0]), float(high[1])


def _edges(low: int, high: int) -> np.ndarray:
    """Bounds of equal bins of whole milliseconds: ``[at most HISTOGRAM_BINS + 1]`` int64, both ends included."""
    step = -(-(high - low) // HISTOGRAM_BINS)
    return np.append(np.arange(low, high, step, dtype=np.int64), high)


def _moment(text: str) -> float:
    moment: Any = pd.to_datetime(text, utc=True, errors="coerce")
    if pd.isna(moment):
        raise RecipeError(f"data.split: '{text}' is no date or time. Write it as 2025-03-31 or 2025-03-31T12:00:00Z.")
    return float(moment.timestamp() * 1000)


def _counts_before(row: Row, dataset: Dataset, view: View, keep_items: np.ndarray | None, edges: np.ndarray) -> Row:
    """How many events are before each edge."""
    times = np.sort(_filtered(row, dataset, view, keep_items)["timestamp"].to_numpy())
    return {"counts": np.searchsorted(times, edges, side="left").astype(np.int64).tobytes(), "events": len(times)}


def _write_shard(
    row: Row,
    dataset: Dataset,
    view: View,
    keep_items: np.ndarray | None,
    bounds: tuple[float, float] | None,
    folder: str,
) -> Row:
    """The sequences of one segment's users."""
    events = _filtered(row, dataset, view, keep_items)
    users, starts, lengths = np.unique(events["user"].to_numpy(), return_index=True, return_counts=True)
    folds = leave_one_out(lengths) if bounds is None else by_time(events["timestamp"].to_numpy(), bounds)
    offsets = pa.array(np.append(starts, len(events)), pa.int32())
    name = "leave_one_out" if bounds is None else "time"

    def lists(values: np.ndarray, dtype: pa.DataType) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, pa.array(values, dtype))

    table = pa.table(
        {
            "user": pa.array(users, pa.int64()),
            "items": lists(events["item"].to_numpy(), pa.int64()),
            "timestamps": lists(events["timestamp"].to_numpy(), pa.int64()),
            f"fold_{name}": lists(folds, pa.int8()),
        }
    )
    data = parquet_bytes(table)
    path = dataset.storage.write_content(folder, data, ".parquet") if len(users) else ""
    by_fold = np.bincount(folds, minlength=3).tolist()
    counts = {"users": len(users), "events": len(events), "item_events": _item_events(events, dataset).tobytes()}
    return {
        **part(path, data, digest(data), len(users)),
        **counts,
        **dict(zip(("train", "validation", "test"), by_fold, strict=True)),
    }


def leave_one_out(lengths: np.ndarray) -> np.ndarray:
    """The fold of each event, users one after the other: ``[N]`` int8.

    The last event of a user is test, the one before validation. Users with fewer than three events only train.
    """
    folds = np.zeros(int(lengths.sum()), dtype=np.int8)
    ends = np.cumsum(lengths)[lengths >= 3]
    folds[ends - 1], folds[ends - 2] = TEST, VALIDATION
    return folds


def by_time(timestamps: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """The fold of each event by when it was: ``[N]`` int8; validation and test begin at ``bounds``."""
    return (np.searchsorted(np.asarray(bounds), timestamps, side="right")).astype(np.int8)


def _counts(shards: Sequence[Row]) -> dict[str, int]:
    return {key: int(sum(row[key] for row in shards)) for key in ("users", "events", "train", "validation", "test")}


def _check(view: View, split: Split, shards: Sequence[Row]) -> None:
    """Refuse a view that nothing can be learnt or measured on."""
    if not shards:
        raise DataError(
            f"data.view leaves nobody: no user has {view.min_user_events} events"
            + (f" of {', '.join(view.event_types)}" if view.event_types else "")
            + (f" on items with {view.min_item_events}" if view.min_item_events > 1 else "")
            + ". Lower min_user_events or min_item_events, or give more data."
        )
    for fold, count in _counts(shards).items():
        if count == 0:
            raise DataError(
                f"data.split ({split.kind}) leaves no {fold} events. "
                "Leave-one-out needs users with three events or more; a split by time needs events on both sides."
            )
