"""The first pass of prepare: files -> clean events, grouped by user in working files."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec.artifacts import Json, Storage, canonical
from rayrec.data.blocks import Block, require_columns
from rayrec.data.cleaning import clean_events, empty_events
from rayrec.data.dataset import write_table
from rayrec.data.files import SourceFile
from rayrec.data.passes import Row, parquet_bytes, run_pass
from rayrec.data.readers import column_names, read_blocks
from rayrec.data.spill import partition_of, write_spill
from rayrec.data.tombstones import Erased, forget
from rayrec.errors import DataError
from rayrec.recipe import Recipe
from rayrec.recipe_data import EventSource

SPILL_BYTES = 64 << 20
"""Clean events in memory before they are written, in Arrow's size."""

QUARANTINED = 250_000
"""Rejected rows a file of the quarantine."""


@dataclass(frozen=True)
class Shuffle:
    """Where the working files of one prepare go.

    Attributes:
        storage: The storage.
        folder: The folder in it.
        partitions: Into how many parts users, and items, are divided.
    """

    storage: Storage
    folder: str
    partitions: int


@dataclass(frozen=True)
class Ingested:
    """What the first pass found.

    Attributes:
        files: For each file, in order: ``read``, ``accepted``, ``erased``, ``reasons``, ``first``, ``last``,
            ``columns``, ``example`` and ``quarantine``.
        events: Working files of events, in source order, grouped by user.
        items: Working files of item keys, grouped by item.
    """

    files: list[Json]
    events: list[str]
    items: list[str]

    def total(self, count: str) -> int:
        """The sum of a count over the files."""
        return int(sum(file[count] for file in self.files))

    @property
    def reasons(self) -> Counter[str]:
        """Rejected rows by reason."""
        return sum((Counter(file["reasons"]) for file in self.files), Counter[str]())

    @property
    def time_range(self) -> tuple[int, int]:
        """The first and last timestamp, epoch milliseconds."""
        return min(file["first"] for file in self.files), max(file["last"] for file in self.files)


def ingest(recipe: Recipe, files: Sequence[SourceFile], shuffle: Shuffle, erased: Erased) -> Ingested:
    """Read and clean files.

    Args:
        recipe: The recipe.
        files: Which.
        shuffle: Where to.
        erased: Users whose rows are passed over.

    Raises:
        DataError: A file or column cannot be read, or too many rows are unusable.
    """
    work = partial(_ingest_file, recipe=recipe, shuffle=shuffle, erased=erased)
    items = ({"file": f.ordinal, "uri": f.uri, "source": f.source, "name": f.name} for f in files)
    found = [json.loads(row["found"]) for row in run_pass(work, items)]
    _check_columns(recipe, found, files)
    _check_rows(recipe, found, files)
    # Not before: logs that are refused leave nothing behind.
    published = [file | {"quarantine": _publish(recipe, shuffle.storage, file["quarantine"])} for file in found]
    return Ingested(
        published,
        [path for file in found for path in file["events"]],
        [path for file in found for path in file["items"]],
    )


def _ingest_file(row: Row, recipe: Recipe, shuffle: Shuffle, erased: Erased) -> Row:
    """One file: its events written by user, its rejected rows to the quarantine; counts and paths come back."""
    uri, source = str(row["uri"]), recipe.data.sources[int(row["source"])]
    names = _column_names(uri, source)
    wanted = [*dict.fromkeys([*names.values(), *source.context])]
    counts = _FileCounts()
    writer = _SpillWriter(shuffle)
    quarantine = _Quarantine(shuffle, int(row["source"]), str(row["name"]))
    for block in read_blocks(uri, source, wanted):
        cleaned = clean_events(block, names, source, int(row["file"]))
        everyone = _with_contexts(cleaned.events, context_columns(recipe))
        events, rejected = forget(everyone, cleaned.rejected, erased)
        counts.add(block, wanted, events, rejected, everyone.num_rows - events.num_rows)
        quarantine.add(rejected)
        writer.add(events)
    paths = writer.finish()
    found = {**counts.found(), **paths, "quarantine": quarantine.finish(), "example": quarantine.example}
    return {"found": canonical(found).decode()}


def _column_names(uri: str, source: EventSource) -> dict[str, str]:
    """The file's own name of each mapped column; none when there is nothing in the file.

    Raises:
        DataError: A column is absent.
    """
    mapped = {key: column for key, column in source.columns.model_dump().items() if column is not None}
    names = column_names(uri, source, list(mapped.values()))
    return {} if names is None else dict(zip(mapped, names, strict=True))


def context_columns(recipe: Recipe) -> list[str]:
    """The context columns of all sources, sorted."""
    return sorted({column for source in recipe.data.sources for column in source.context})


def _with_contexts(events: pa.Table, contexts: Sequence[str]) -> pa.Table:
    """Every source's events in one schema: context columns a source does not have are null."""
    for column in contexts:
        if f"context_{column}" not in events.column_names:
            events = events.append_column(f"context_{column}", pa.nulls(events.num_rows, pa.string()))
    return events.select(empty_events(tuple(contexts)).column_names)


@dataclass
class _FileCounts:
    """What is counted while a file is read."""

    read: int = 0
    accepted: int = 0
    erased: int = 0
    first: int = int(np.iinfo(np.int64).max)
    last: int = int(np.iinfo(np.int64).min)
    columns: set[str] = field(default_factory=set)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, block: Block, wanted: Sequence[str], events: pa.Table, rejected: pa.Table, erased: int) -> None:
        self.columns |= {*(wanted if block.columns is None else block.columns)}
        self.read += block.table.num_rows + len(block.bad)
        self.accepted += events.num_rows
        self.erased += erased
        counted = rejected["reason"].value_counts()
        self.reasons.update(dict(zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True)))
        if events.num_rows:
            bounds = pc.min_max(events["timestamp"]).as_py()
            self.first, self.last = min(self.first, bounds["min"]), max(self.last, bounds["max"])

    def found(self) -> Json:
        return {**self.__dict__, "columns": sorted(self.columns), "reasons": dict(self.reasons)}


class _SpillWriter:
    """Collects events, and writes them in large pieces."""

    def __init__(self, shuffle: Shuffle) -> None:
        self._shuffle = shuffle
        self._waiting: list[pa.Table] = []
        self._paths: dict[str, list[str]] = {"events": [], "items": []}

    def add(self, events: pa.Table) -> None:
        if events.num_rows:
            self._waiting.append(events)
        if sum(table.nbytes for table in self._waiting) >= SPILL_BYTES:
            self._write()

    def finish(self) -> dict[str, list[str]]:
        if self._waiting:
            self._write()
        return self._paths

    def _write(self) -> None:
        events, self._waiting = pa.concat_tables(self._waiting), []
        items = pa.table({"key": events["item"].unique()})
        for name, table, keys in (("events", events, "user"), ("items", items, "key")):
            of = np.concatenate([partition_of(chunk, self._shuffle.partitions) for chunk in table[keys].chunks])
            folder = f"{self._shuffle.folder}/{name}"
            self._paths[name].append(write_spill(self._shuffle.storage, folder, table, of, self._shuffle.partitions))


class _Quarantine:
    """Rejected rows with where they came from, in working files of equally many rows however they come."""

    def __init__(self, shuffle: Shuffle, source: int, name: str) -> None:
        self._shuffle = shuffle
        # The file's name, not where it lies: the same logs make the same Dataset on every machine.
        self._where = {"source": source, "file": name}
        self._waiting: list[pa.Table] = []
        self._paths: list[str] = []
        self.example: Json | None = None

    def add(self, rejected: pa.Table) -> None:
        if not rejected.num_rows:
            return
        # Cleaning tells first of what was no row at all, of each block.
        rejected = rejected.sort_by("row")
        self.example = self.example or rejected.slice(0, 1).to_pylist()[0]
        self._waiting.append(rejected)
        for table in self._whole():
            self._write(table)

    def _whole(self) -> Iterator[pa.Table]:
        while sum(table.num_rows for table in self._waiting) >= QUARANTINED:
            together = pa.concat_tables(self._waiting)
            self._waiting = [together.slice(QUARANTINED)]
            yield together.slice(0, QUARANTINED)

    def finish(self) -> list[str]:
        rest = pa.concat_tables(self._waiting) if self._waiting else None
        if rest is not None and rest.num_rows:
            self._write(rest)
        return self._paths

    def _write(self, rejected: pa.Table) -> None:
        rows = rejected.num_rows
        table = pa.table(
            {
                "source": pa.repeat(pa.scalar(self._where["source"], pa.int32()), rows),
                "file": pa.repeat(pa.scalar(self._where["file"], pa.string()), rows),
                **{name: rejected[name].combine_chunks() for name in rejected.column_names},
            }
        )
        path = f"{self._shuffle.folder}/quarantine/{uuid.uuid4().hex}.parquet"
        with self._shuffle.storage.scratch(path) as file:
            file.write(parquet_bytes(table))
        self._paths.append(path)


def _publish(recipe: Recipe, storage: Storage, paths: Sequence[str]) -> list[Json]:
    """Move the rejected rows from working files to the Dataset."""
    tables = (pq.read_table(pa.BufferReader(storage.read(path))) for path in paths)
    return [write_table(storage, recipe.name, "quarantine", table) for table in tables]


# ---- what makes logs unusable


def _check_columns(recipe: Recipe, found: Sequence[Json], files: Sequence[SourceFile]) -> None:
    """Refuse a source none of whose rows has a column. Rows of JSON leave out what they have no value for."""
    for index, source in enumerate(recipe.data.sources):
        rows = [row for row, file in zip(found, files, strict=True) if file.source == index]
        present = sorted({name for row in rows for name in row["columns"]})
        wanted = [c for c in (*source.columns.model_dump().values(), *source.context) if isinstance(c, str)]
        if present:
            require_columns(source.path, present, wanted)


def _check_rows(recipe: Recipe, found: Sequence[Json], files: Sequence[SourceFile]) -> None:
    """Refuse logs with no rows, or with too many unusable ones."""
    total, usable = sum(row["read"] for row in found), sum(row["accepted"] + row["erased"] for row in found)
    where = ", ".join(source.path for source in recipe.data.sources)
    if not total:
        raise DataError(f"{where}: no rows (only a header, or nothing). Check `path` in the recipe.")
    share, limit = (total - usable) / total, recipe.data.clean.max_bad_rows
    if share > limit or not usable:
        reasons = sum((Counter(row["reasons"]) for row in found), Counter[str]())
        counted = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.most_common(5))
        raise DataError(
            f"{where}: {total - usable:,} of {total:,} rows ({share:.1%}) cannot be used, more than "
            f"data.clean.max_bad_rows = {limit:g} allows. {counted}. For example {_example(found, files)}. "
            "Check `columns`, `separator` and `time_unit` of the source (times are epoch numbers or ISO 8601), "
            "or raise the limit."
        )


def _example(found: Sequence[Json], files: Sequence[SourceFile]) -> str:
    for row, file in zip(found, files, strict=True):
        if row["example"]:
            first = row["example"]
            return f"row {first['row']} (from 0) of {file.uri}: {first['reason']}: {first['text'][:200]!r}"
    return "none"
