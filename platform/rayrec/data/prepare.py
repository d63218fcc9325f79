"""The prepare stage: logs -> Dataset, through Ray Data.

Three passes, each in parallel and in memory bounded by its pieces: read and clean every file into partitions by user;
sort, deduplicate and index every partition into a segment of the log; build the view. What has to be global (the
vocabularies, counts) comes from small partial results. Everything depends on content and source order only, so the
same input gives the same digests however the work is spread.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from rayrec.artifacts import TEMPORARY, Json, Storage, canonical, digest
from rayrec.data.blocks import require_columns
from rayrec.data.cleaning import clean_events, empty_events
from rayrec.data.dataset import Dataset, publish_manifest, write_table
from rayrec.data.files import SourceFile, list_files, provide
from rayrec.data.passes import Row, from_bytes, parquet_bytes, part, run_pass, to_bytes
from rayrec.data.readers import column_names, read_blocks
from rayrec.data.tables import read_items, read_users
from rayrec.data.views import build_view, check_split
from rayrec.errors import DataError
from rayrec.recipe import Recipe
from rayrec.recipe_data import EventSource

_LOG = logging.getLogger(__name__)

PARTITION_BYTES = 64 << 20
MAX_PARTITIONS = 512
REJECTED = pa.schema([("row", pa.int64()), ("reason", pa.string()), ("text", pa.string())])
SEEN = pa.schema([("key", pa.string()), ("first_seen", pa.int64()), ("last_seen", pa.int64())])


@dataclass(frozen=True)
class Prepared:
    """What prepare leaves behind: a Dataset and the view the recipe asks for."""

    dataset: Dataset
    view: str


def prepare(recipe: Recipe, storage: Storage) -> Prepared:
    """Turn the recipe's logs into a Dataset and a view.

    Raises:
        DataError: The logs cannot be used; nothing is published then.
        RecipeError: The split cannot be made of these logs.
    """
    check_split(recipe.data.split, timed=_timed(recipe))
    _warn_of_untimed(recipe)
    provide(recipe, storage)
    files = list_files(list(recipe.data.sources), storage)
    workspace = f"datasets/{recipe.name}/{TEMPORARY}{uuid.uuid4().hex[:12]}"
    try:
        partitions = min(MAX_PARTITIONS, 1 + sum(file.size for file in files) // PARTITION_BYTES)
        read = run_pass(
            partial(_read_file, recipe=recipe, storage=storage, workspace=workspace, partitions=partitions),
            ({"file": file.ordinal, "uri": file.uri, "source": file.source} for file in files),
        )
        items, users = read_items(recipe, storage), read_users(recipe, storage)
        _check_read(recipe, read, files)
        vocabularies = {
            "user": _vocabulary([from_bytes(row["users"]) for row in read], users, "user"),
            "item": _vocabulary([from_bytes(row["items"]) for row in read], items, "item"),
        }
        segments = _write_log(recipe, storage, workspace, partitions, vocabularies, files)
        quarantine = _merge_quarantine(recipe, storage, workspace, files)
    finally:
        if storage.exists(workspace):
            storage.remove(workspace)
    manifest = _manifest(recipe, read, segments) | {
        "events": [row["part"] for row in segments],
        "vocab": {name: write_table(storage, recipe.name, "vocab", table) for name, table in vocabularies.items()},
        "items": write_table(storage, recipe.name, "items", items) if items is not None else None,
        "users": write_table(storage, recipe.name, "users", users) if users is not None else None,
        "quarantine": quarantine,
        "transforms": _write_transforms(recipe, storage),
    }
    # The view first: a Dataset that the recipe can make nothing of is not published.
    view = build_view(recipe, Dataset(storage, recipe.name, 0, manifest))
    return Prepared(publish_manifest(storage, recipe.name, manifest), view)


# ---- pass 1: files -> partitions by user


def _read_file(row: Row, recipe: Recipe, storage: Storage, workspace: str, partitions: int) -> Row:
    """Read and clean one file; write its events by partition; report keys, counts and rejected rows."""
    file, uri = int(row["file"]), str(row["uri"])
    source = recipe.data.sources[int(row["source"])]
    names = _column_names(uri, source)
    wanted = [*dict.fromkeys([*names.values(), *source.context])]
    present = set[str]()
    counts, bounds = Counter[str](), [np.iinfo(np.int64).max, np.iinfo(np.int64).min]
    seen: dict[str, list[pa.Table]] = {"user": [], "item": []}
    rejected: list[pa.Table] = []
    contexts = _contexts(recipe)
    for number, block in enumerate(read_blocks(uri, source, wanted)):
        present |= {*(wanted if block.columns is None else block.columns)}
        cleaned = clean_events(block, names, source, file)
        events = _with_contexts(cleaned.events, contexts)
        counts["read"] += block.table.num_rows + len(block.bad)
        counts["accepted"] += events.num_rows
        rejected.append(cleaned.rejected)
        if events.num_rows:
            low_high = pc.min_max(events["timestamp"]).as_py()
            bounds = [min(bounds[0], low_high["min"]), max(bounds[1], low_high["max"])]
            for key, partials in seen.items():
                partials.append(_seen(events, key))
            _write_partitions(storage, workspace, events, partitions, f"{file:06d}-{number:06d}")
    bad = pa.concat_tables([REJECTED.empty_table(), *rejected])
    if bad.num_rows:
        storage.replace(f"{workspace}/quarantine/{file:06d}.parquet", parquet_bytes(bad))
    return {
        "read": counts["read"],
        "accepted": counts["accepted"],
        "columns": canonical(sorted(present)).decode(),
        "first": bounds[0],
        "last": bounds[1],
        "users": to_bytes(_merge_seen(seen["user"])),
        "items": to_bytes(_merge_seen(seen["item"])),
        "rejected": to_bytes(bad.slice(0, 1000)),
        "reasons": canonical(dict(Counter(bad["reason"].to_pylist()))).decode(),
    }


def _column_names(uri: str, source: EventSource) -> dict[str, str]:
    """The file's own name of each mapped column; none when there is nothing in the file.

    Raises:
        DataError: A column is absent.
    """
    mapped = {key: column for key, column in source.columns.model_dump().items() if column is not None}
    names = column_names(uri, source, list(mapped.values()))
    return {} if names is None else dict(zip(mapped, names, strict=True))


def _contexts(recipe: Recipe) -> list[str]:
    return sorted({column for source in recipe.data.sources for column in source.context})


def _with_contexts(events: pa.Table, contexts: Sequence[str]) -> pa.Table:
    """Every source's events in one schema: context columns a source does not have are null."""
    for column in contexts:
        if f"context_{column}" not in events.column_names:
            events = events.append_column(f"context_{column}", pa.nulls(events.num_rows, pa.string()))
    return events.select([*empty_events(()).column_names, *(f"context_{c}" for c in contexts)])


def _seen(events: pa.Table, key: str) -> pa.Table:
    grouped = events.group_by(key).aggregate([("timestamp", "min"), ("timestamp", "max")])
    return pa.table([grouped[key], grouped["timestamp_min"], grouped["timestamp_max"]], schema=SEEN)


def _merge_seen(tables: Sequence[pa.Table]) -> pa.Table:
    merged = pa.concat_tables([SEEN.empty_table(), *tables]).group_by("key")
    aggregated = merged.aggregate([("first_seen", "min"), ("last_seen", "max")])
    return pa.table([aggregated["key"], aggregated["first_seen_min"], aggregated["last_seen_max"]], schema=SEEN)


def _write_partitions(storage: Storage, workspace: str, events: pa.Table, partitions: int, name: str) -> None:
    """Split events by a hash of the user that is the same in every process and version of Python."""
    hashed = pd.util.hash_array(events["user"].to_numpy(zero_copy_only=False).astype(object))
    chosen = (hashed % np.uint64(partitions)).astype(np.int64)
    for partition in np.unique(chosen):
        rows = events.filter(pa.array(chosen == partition))
        storage.replace(f"{workspace}/partition-{partition:05d}/{name}.parquet", parquet_bytes(rows))


# ---- between the passes: what is global


def _check_read(recipe: Recipe, read: Sequence[Row], files: Sequence[SourceFile]) -> None:
    _check_columns(recipe, read, files)
    _check_rows(recipe, read, files)


def _check_columns(recipe: Recipe, read: Sequence[Row], files: Sequence[SourceFile]) -> None:
    """Refuse a source none of whose rows has a column. Rows of JSON leave out what they have no value for."""
    for index, source in enumerate(recipe.data.sources):
        rows = [row for row, file in zip(read, files, strict=True) if file.source == index]
        present = sorted({name for row in rows for name in json.loads(row["columns"])})
        wanted = [c for c in (*source.columns.model_dump().values(), *source.context) if isinstance(c, str)]
        if present:
            require_columns(source.path, present, wanted)


def _warn_of_untimed(recipe: Recipe) -> None:
    untimed = [source.path for source in recipe.data.sources if source.columns.timestamp is None]
    if untimed:
        _LOG.warning(
            "%s: no timestamp column is mapped, so the order of the rows is taken for the order in time, "
            "repeated rows are kept, and nothing can be split by time. Map `columns.timestamp` if there is one.",
            ", ".join(untimed),
        )


def _check_rows(recipe: Recipe, read: Sequence[Row], files: Sequence[SourceFile]) -> None:
    """Refuse logs with no rows, or with too many unusable ones."""
    total, accepted = sum(row["read"] for row in read), sum(row["accepted"] for row in read)
    where = ", ".join(source.path for source in recipe.data.sources)
    if not total:
        raise DataError(f"{where}: no rows (only a header, or nothing). Check `path` in the recipe.")
    share, limit = (total - accepted) / total, recipe.data.clean.max_bad_rows
    if share > limit or not accepted:
        reasons = _reasons(read)
        counted = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.most_common(5))
        raise DataError(
            f"{where}: {total - accepted:,} of {total:,} rows ({share:.1%}) cannot be used, more than "
            f"data.clean.max_bad_rows = {limit:g} allows. {counted}. For example {_example(read, files)}. "
            "Check `columns`, `separator` and `time_unit` of the source (times are epoch seconds, epoch milliseconds "
            "or ISO 8601), or raise the limit."
        )


def _reasons(read: Sequence[Row]) -> Counter[str]:
    return sum((Counter(json.loads(row["reasons"])) for row in read), Counter[str]())


def _example(read: Sequence[Row], files: Sequence[SourceFile]) -> str:
    for row, file in zip(read, files, strict=True):
        rejected = from_bytes(row["rejected"])
        if rejected.num_rows:
            first = rejected.slice(0, 1).to_pylist()[0]
            return f"row {first['row']} (from 0) of {file.uri}: {first['reason']}: {first['text'][:200]}"
    return "none"


def _vocabulary(partials: Sequence[pa.Table], table: pa.Table | None, key: str) -> pa.Table:
    """All keys in order, with their index (from 1; 0 is padding), when they were seen, and their state."""
    keys = _merge_seen(partials).to_pandas().set_index("key")
    if table is not None:
        keys = keys.reindex(keys.index.union(pd.Index(table[key].to_pylist()).dropna()))
    keys = keys.sort_index()
    return pa.table(
        {
            "key": pa.array(keys.index.astype(object), pa.string()),
            "index": pa.array(np.arange(1, len(keys) + 1), pa.int64()),
            "first_seen": pa.array(keys["first_seen"].astype("Int64"), pa.int64()),
            "last_seen": pa.array(keys["last_seen"].astype("Int64"), pa.int64()),
            "state": pa.array(["live"] * len(keys), pa.string()),
        }
    )


# ---- pass 2: partitions -> segments of the log


def _write_log(
    recipe: Recipe,
    storage: Storage,
    workspace: str,
    partitions: int,
    vocabularies: dict[str, pa.Table],
    files: Sequence[SourceFile],
) -> list[Row]:
    keys = {name: ray.put(table["key"].combine_chunks()) for name, table in vocabularies.items()}
    ids = ray.put(pa.array([file.file_id for file in files], pa.string()))
    work = partial(_write_segment, recipe=recipe, storage=storage, workspace=workspace, keys=keys, ids=ids)
    found = [row for row in run_pass(work, ({"partition": p} for p in range(partitions))) if row["rows"]]
    return [{**row, "part": {k: row[k] for k in ("path", "sha256", "bytes", "rows")}} for row in found]


def _write_segment(row: Row, recipe: Recipe, storage: Storage, workspace: str, keys: dict[str, Any], ids: Any) -> Row:
    """Sort, deduplicate and index one partition; write it under the name its content gives it."""
    folder = f"{workspace}/partition-{int(row['partition']):05d}"
    empty: Row = {"path": "", "sha256": "", "bytes": 0, "rows": 0, "duplicates": 0}
    names = storage.list(folder)
    if not names:
        return empty
    events = pa.concat_tables([pq.read_table(pa.BufferReader(storage.read(f"{folder}/{name}"))) for name in names])
    users, items, file_ids = ray.get([keys["user"], keys["item"], ids])
    indexed = {
        "user": pc.add(pc.index_in(events["user"], users).cast(pa.int64()), 1),
        "item": pc.add(pc.index_in(events["item"], items).cast(pa.int64()), 1),
    }
    events = events.set_column(0, "user", indexed["user"]).set_column(1, "item", indexed["item"])
    events = events.sort_by([(column, "ascending") for column in ("user", "timestamp", "file", "row")])
    kept = _deduplicated(events) if _deduplicates(recipe) else events
    event_id = pc.binary_join_element_wise(pc.take(file_ids, kept["file"]), kept["row"].cast(pa.string()), "-")
    log = kept.add_column(0, "event_id", event_id)
    data = parquet_bytes(log)
    path = storage.write_content(f"datasets/{recipe.name}/events", data, ".parquet")
    return {**part(path, data, digest(data), log.num_rows), "duplicates": events.num_rows - log.num_rows}


def _deduplicates(recipe: Recipe) -> bool:
    """Without times nothing tells a repeated row from a repeated event: such rows are kept."""
    return recipe.data.clean.deduplicate and _timed(recipe)


def _timed(recipe: Recipe) -> bool:
    return all(source.columns.timestamp is not None for source in recipe.data.sources)


def _deduplicated(events: pa.Table) -> pa.Table:
    """The first of equal (user, item, timestamp, type), in source order."""
    frame = events.select(["user", "item", "timestamp", "type"]).to_pandas()
    return events.filter(pa.array(~frame.duplicated().to_numpy()))


# ---- the manifest


def _manifest(recipe: Recipe, read: Sequence[Row], segments: Sequence[Row]) -> Json:
    reasons = _reasons(read)
    counts = {
        "read": int(sum(row["read"] for row in read)),
        "quarantined": int(sum(reasons.values())),
        "deduplicated": int(sum(row["duplicates"] for row in segments)),
        "events": int(sum(row["rows"] for row in segments)),
    }
    times = [int(min(row["first"] for row in read)), int(max(row["last"] for row in read))] if _timed(recipe) else None
    return {
        "schema": 1,
        "name": recipe.name,
        "parent": None,
        "simulated": recipe.simulated,
        "order": "timestamp" if _timed(recipe) else "file",
        "time_range_ms": times,
        "counts": counts,
        "reasons": dict(sorted(reasons.items())),
        "item_columns": recipe.data.items.columns.model_dump() if recipe.data.items else None,
        "category_separator": recipe.data.items.category_separator if recipe.data.items else None,
    }


def _merge_quarantine(recipe: Recipe, storage: Storage, workspace: str, files: Sequence[SourceFile]) -> Json | None:
    """All rejected rows in one file, each with where it came from."""
    tables = []
    for name in storage.list(f"{workspace}/quarantine"):
        table = pq.read_table(pa.BufferReader(storage.read(f"{workspace}/quarantine/{name}")))
        file = files[int(name.removesuffix(".parquet"))]
        # Its name, not where it lies: the same logs make the same Dataset on every machine.
        where = {"source": pa.array([file.source] * table.num_rows, pa.int32()), "file": [file.name] * table.num_rows}
        tables.append(pa.table({**where, **{column: table[column] for column in table.column_names}}))
    return write_table(storage, recipe.name, "quarantine", pa.concat_tables(tables)) if tables else None


def _write_transforms(recipe: Recipe, storage: Storage) -> Json:
    """The fitted features. So far the one that every model reads: the history of items."""
    data = canonical({"schema": 1, "features": {"history": {"kind": "sequence", "of": "item"}}})
    path = storage.write_content(f"datasets/{recipe.name}/transforms", data, ".json")
    return {"path": path, "sha256": digest(data), "bytes": len(data)}
