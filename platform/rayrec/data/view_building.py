"""How a view is made: filters, folds and features of a log, a shard a partition."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from rayrec.artifacts import Json, canonical, code_version, digest, short_digest
from rayrec.data.cleaning import ROW_BITS
from rayrec.data.dataset import Dataset
from rayrec.data.fitting import (
    CONTEXT,
    FEATURE,
    USER,
    EventFit,
    Fitted,
    Table,
    event_columns,
    fit_table,
    publish_fitted,
)
from rayrec.data.passes import Row, Shared, from_bytes, parquet_bytes, part, run_pass, share, to_bytes
from rayrec.data.selection import Selection, count_items, item_counts, latest, select
from rayrec.data.splits import FOLDS, TRAIN, Events, check_split, fixed_bounds, folds
from rayrec.errors import DataError
from rayrec.recipe import Recipe
from rayrec.recipe_data import Data

HISTOGRAM_BINS = 1 << 16


def build_view(recipe: Recipe, dataset: Dataset) -> str:
    """Build the view the recipe asks for, unless it is there. Returns its digest.

    Raises:
        DataError: The filters leave nobody, or nothing to train or test on.
        RecipeError: A split by time of a log without times.
    """
    data = recipe.data
    check_split(data.split, timed=dataset.manifest["order"] == "timestamp")
    settings = _settings(data)
    identity = short_digest({"dataset": dataset.digest, **settings, "code": code_version("data", "features")})
    folder = f"{dataset.path}/views/{identity}"
    if dataset.storage.exists(f"{folder}/view.json"):
        return identity
    with dataset.storage.workspace(dataset.path) as workspace:
        manifest = _make(data, dataset, folder, workspace) | settings
    dataset.storage.write_new(f"{folder}/view.json", canonical(manifest))
    return identity


def _settings(data: Data) -> Json:
    """What of the recipe a view depends on, besides the log."""
    given = [source.fold for source in data.sources] if data.split.kind == "given" else None
    return {
        "view": data.view.model_dump(mode="json"),
        "split": data.split.model_dump(mode="json"),
        "clean": data.clean.model_dump(mode="json", exclude={"max_bad_rows", "deduplicate"}),
        "features": data.features.model_dump(mode="json"),
        "given": given,
    }


@dataclass(frozen=True)
class _Plan:
    """What the passes over a selection share.

    Attributes:
        data: The recipe's section.
        dataset: The log.
        folder: Where the shards go.
        selection: The events.
        bounds: Where validation and test begin, for a split by time.
    """

    data: Data
    dataset: Dataset
    folder: str
    selection: Selection
    bounds: tuple[float, float] | None

    def events(self, path: str) -> tuple[pa.Table, np.ndarray]:
        """A partition's events, ordered by user and time, and the fold of each: ``[N]`` int8."""
        events = self.selection.read(path)
        event_ids = events["event_id"].to_numpy()
        sources = np.array([file["source"] for file in self.dataset.manifest["files"]])
        given = np.array([FOLDS[source.fold or "train"] for source in self.data.sources], np.int8)
        seen = Events(
            lengths_of(events["user"].to_numpy()),
            events["timestamp"].to_numpy(),
            event_ids,
            given[sources[event_ids >> np.int64(ROW_BITS)]],
        )
        return events, folds(self.data.split, seen, self.bounds)


@dataclass(frozen=True)
class _Learnt:
    """What shards are written with.

    Attributes:
        fitted: The transforms.
        keep_items: ``[V + 1]`` bool by vocabulary index: those that the view knows; None where that is all.
        users: The user table, where its features are wanted.
    """

    fitted: Fitted
    keep_items: np.ndarray | None
    users: Shared | None


def lengths_of(users: np.ndarray) -> np.ndarray:
    """Events of each user, from the user of each event, ascending: ``[U]`` int64."""
    return np.diff(np.flatnonzero(np.diff(users, prepend=-1)), append=len(users))


def _make(data: Data, dataset: Dataset, folder: str, workspace: str) -> Json:
    """Write what a view's manifest lists. Returns the manifest, but for the settings."""
    selection = select(data, dataset, _columns(data), workspace)
    bounds = fixed_bounds(data.split, partial(latest, selection)) or _shares_of_time(data, dataset, selection)
    plan = _Plan(data, dataset, folder, selection, bounds)
    learnt, items = _learn(plan)
    rows = run_pass(partial(_write_shard, plan=plan, learnt=learnt), selection.work())
    shards = [json.loads(row["shard"]) for row in rows]
    counts = {key: sum(shard[key] for shard in shards) for key in ("users", "events", *FOLDS)}
    unknown = sum(shard["unknown"] for shard in shards)
    _check(data, counts, unknown)
    known = item_counts([from_bytes(row["items"]) for row in rows], dataset.manifest["vocab"]["item"]["rows"])
    indexes = np.flatnonzero(known)
    listed = pa.table({"index": pa.array(indexes), "events": pa.array(known[indexes])})
    if items is not None:
        listed = _with_features(listed, FEATURE, items.encode(learnt.fitted.items, indexes))
    return {
        "schema": 2,
        "dataset": dataset.digest,
        "shards": [shard["part"] for shard in shards if shard["part"]],
        "items": _write(dataset, folder, listed),
        "transform": publish_fitted(dataset, learnt.fitted),
        "counts": counts | {"items": len(indexes)},
        "filtered": _filtered(selection, unknown, counts),
    }


def _filtered(selection: Selection, unknown: int, counts: Json) -> Json:
    """Events of the log that are not in the view, by reason."""
    few = selection.events - unknown - counts["events"]
    late = {"too few events of the user or item": few, "item without training events": unknown}
    return selection.filtered | {reason: count for reason, count in late.items() if count}


def _write(dataset: Dataset, folder: str, table: pa.Table) -> Json:
    data = parquet_bytes(table)
    return part(dataset.storage.write_content(folder, data, ".parquet"), data, digest(data), table.num_rows)


def _columns(data: Data) -> list[str]:
    """Columns of the log that shards are made from."""
    valued = any(source.columns.value is not None for source in data.sources)
    return [*(["value"] if valued else []), *(["type"] if data.clean.weights else []), *event_columns(data)]


def _learn(plan: _Plan) -> tuple[_Learnt, Table | None]:
    """What has to be known before shards can be written, and the item table where its features are wanted."""
    data, dataset, features = plan.data, plan.dataset, plan.data.features
    train_only = data.view.fit == "train"
    events, counts, users = EventFit(data), [], [np.empty(0, np.int64)]
    if train_only or event_columns(data):
        for row in run_pass(partial(_learn_events, plan=plan), plan.selection.work()):
            events.merge({"fill": row["fill"], "context": row["context"]})
            counts.append(from_bytes(row["items"]))
            users.append(np.frombuffer(row["users"], np.int64))
    known = item_counts(counts, dataset.manifest["vocab"]["item"]["rows"]) > 0
    item_table = Table.of(dataset, "item") if features.items else None
    user_table = Table.of(dataset, "user") if features.users else None
    fitted = Fitted(
        **events.finish(),
        items=fit_table(features.items, item_table, np.flatnonzero(known) if train_only else None),
        users=fit_table(features.users, user_table, np.concatenate(users) if train_only else None),
    )
    shared = share(user_table) if user_table else None
    return _Learnt(fitted, known if train_only else None, shared), item_table


def _learn_events(row: Row, plan: _Plan) -> Row:
    """What one partition's events teach, all of them or those of the training fold."""
    events, fold = plan.events(str(row["path"]))
    if plan.data.view.fit == "train":
        events = events.filter(pa.array(fold == TRAIN))
    fit = EventFit(plan.data)
    fit.update(events)
    return {
        **fit.to_bytes(),
        "items": to_bytes(count_items(events["item"].to_numpy())),
        "users": np.unique(events["user"].to_numpy()).tobytes(),
    }


def _write_shard(row: Row, plan: _Plan, learnt: _Learnt) -> Row:
    """The sequences of one partition's users."""
    events, fold = plan.events(str(row["path"]))
    before = len(events)
    if learnt.keep_items is not None:
        known = learnt.keep_items[events["item"].to_numpy()]
        events, fold = events.filter(pa.array(known)), fold[known]
    table = _sequences(plan.data, learnt, events, fold)
    listed = _write(plan.dataset, plan.folder, table) if table.num_rows else None
    counts = dict(zip(FOLDS, np.bincount(fold, minlength=3).tolist(), strict=True))
    shard = {"part": listed, **counts, "users": len(table), "events": len(events), "unknown": before - len(events)}
    return {"shard": canonical(shard).decode(), "items": to_bytes(count_items(events["item"].to_numpy()))}


def _sequences(data: Data, learnt: _Learnt, events: pa.Table, fold: np.ndarray) -> pa.Table:
    """One row a user: ``user``, lists of what happened, oldest first, and the user's features."""
    lengths = lengths_of(events["user"].to_numpy())
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    users = events["user"].to_numpy()[offsets[:-1]]
    filled = learnt.fitted.fill_events(events)
    columns = {"items": events["item"], "timestamps": events["timestamp"]}
    columns[f"fold_{data.split.kind.replace('-', '_')}"] = pa.array(fold)
    if "value" in events.column_names:
        columns["values"] = filled["value"]
    if data.clean.weights:
        columns["weights"] = _weights(events["type"].combine_chunks(), data.clean.weights)
    encoded = learnt.fitted.encode_events(filled) if data.features.context else pa.table({})
    columns |= {f"{CONTEXT}{name}": encoded[name] for name in encoded.column_names}
    lists = {name: pa.ListArray.from_arrays(pa.array(offsets), _whole(column)) for name, column in columns.items()}
    table = pa.table({"user": pa.array(users), **lists})
    if learnt.users is None:
        return table
    return _with_features(table, USER, learnt.users.value.encode(learnt.fitted.users, users))


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _weights(types: pa.DictionaryArray, weights: Mapping[str, float]) -> pa.Array:
    by_word = np.array([weights.get(word, 1.0) for word in types.dictionary.to_pylist()], np.float32)
    return pa.array(by_word[types.indices.to_numpy()])


def _with_features(table: pa.Table, prefix: str, features: pa.Table) -> pa.Table:
    for name in features.column_names:
        table = table.append_column(f"{prefix}{name}", features[name])
    return table


def _check(data: Data, counts: Json, unknown: int) -> None:
    """Refuse a view that nothing can be learnt or measured on."""
    view = data.view
    if unknown and not counts["train"]:
        raise DataError(
            f"data.split ({data.split.kind}) leaves no train events, from which view.fit = train takes the items: "
            f"validation ({data.split.validation_share}) and test ({data.split.test}) take them all."
        )
    if not counts["users"]:
        raise DataError(
            f"data.view leaves nobody: no user has {view.min_user_events} events"
            + (f" of {', '.join(view.event_types)}" if view.event_types else "")
            + (f" on items with {view.min_item_events}" if view.min_item_events > 1 else "")
            + ". Lower min_user_events or min_item_events, loosen `clean`, or give more data."
        )
    needed = [fold for fold in FOLDS if fold != "validation" or data.split.kind != "given"]
    for fold in needed:
        if counts[fold] == 0:
            raise DataError(
                f"data.split ({data.split.kind}) leaves no {fold} events. "
                "Leave-one-out needs users with three events or more; a split by time needs events on both sides."
            )


# ---- shares of time


def _shares_of_time(data: Data, dataset: Dataset, selection: Selection) -> tuple[float, float] | None:
    """Where validation and test begin (epoch ms), for a split by time that gives them as shares of the events."""
    if data.split.kind != "time":
        return None
    test = float(data.split.test)
    shares = np.array([1 - float(data.split.validation_share) - test, 1 - test])
    first = dataset.manifest["time_range_ms"][0]
    low, high = np.array([first, first]), np.array([selection.last + 1, selection.last + 1])
    # Bins of bins, down to the millisecond: one event dated 1970 must not make the bins as wide as a day.
    while (high - low > 1).any():
        edges = np.unique(np.concatenate([_edges(*bounds) for bounds in zip(low, high, strict=True)]))
        rows = run_pass(partial(_counts_before, selection=selection, edges=edges), selection.work())
        before = np.sum([np.frombuffer(row["counts"], np.int64) for row in rows], axis=0)
        total = sum(row["events"] for row in rows)
        found = np.searchsorted(before, np.ceil(shares * total - 1e-6))
        low, high = edges[found - 1], edges[found]
    return float(high[0]), float(high[1])


def _edges(low: int, high: int) -> np.ndarray:
    """Bounds of equal bins of whole milliseconds: ``[at most HISTOGRAM_BINS + 1]`` int64, both ends included."""
    step = -(-(high - low) // HISTOGRAM_BINS)
    return np.append(np.arange(low, high, step, dtype=np.int64), high)


def _counts_before(row: Row, selection: Selection, edges: np.ndarray) -> Row:
    """How many events are before each edge."""
    times = np.sort(selection.read(str(row["path"]), ["user", "item", "timestamp"])["timestamp"].to_numpy())
    return {"counts": np.searchsorted(times, edges, side="left").astype(np.int64).tobytes(), "events": len(times)}
