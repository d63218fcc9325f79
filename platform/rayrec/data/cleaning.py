"""From the columns of a file to events: keys, times and values understood, unusable rows set aside with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.readers import Block
from rayrec.recipe import EventSource

MILLISECONDS_FROM = 1e11
"""An epoch number from here on is in milliseconds: as seconds it would lie after the year 5000."""

LATEST = 4_102_444_800_000
"""Timestamps (epoch ms) from 2100 on are taken for errors."""

EVENT_COLUMNS = ("user", "item", "type", "value", "timestamp", "file", "row")


@dataclass(frozen=True)
class Cleaned:
    """A block after cleaning.

    Attributes:
        events: ``user``, ``item``, ``type`` string; ``value`` float64; ``timestamp`` int64, epoch milliseconds;
            ``file`` int32 and ``row`` int64, the source order; then the context columns as strings.
        rejected: ``row`` int64, ``reason`` and ``text`` string.
    """

    events: pa.Table
    rejected: pa.Table


def clean_events(block: Block, names: dict[str, str], source: EventSource, file: int) -> Cleaned:
    """Clean one block.

    Args:
        block: Rows as read.
        names: The column of ``user``, ``item`` and, where mapped, ``timestamp``, ``type``, ``value``.
        source: What the recipe says of these rows.
        file: The ordinal of the file.
    """
    table, rows = block.table, block.table.num_rows
    problems = _Problems(rows)
    if rows:
        text = {column: _as_text(table[column], problems) for column in dict.fromkeys([*names.values(), *source.context])}
        user = problems.required("user", text[names["user"]])
        item = problems.required("item", text[names["item"]])
        numbers = pa.array(np.arange(block.first_row, block.first_row + rows), pa.int64())
        events = pa.table(
            {
                "user": user,
                "item": item,
                "type": _types(text, names, source, rows),
                "value": _values(text, names, problems),
                "timestamp": _timestamps(text, names, source, problems, numbers),
                "file": pa.array(np.full(rows, file), pa.int32()),
                "row": numbers,
                **{f"context_{column}": text[column] for column in source.context},
            }
        )
    else:
        events = empty_events(source.context)
    bad = [(row.row, row.reason, row.text) for row in block.bad] + problems.rejected(table, block.first_row)
    rejected = pa.table(
        {
            "row": pa.array([b[0] for b in bad], pa.int64()),
            "reason": pa.array([b[1] for b in bad], pa.string()),
            "text": pa.array([b[2] for b in bad], pa.string()),
        }
    )
    return Cleaned(events.filter(pa.array(problems.good)) if rows else events, rejected)


def empty_events(context: tuple[str, ...]) -> pa.Table:
    """No events, in the schema of `Cleaned.events`."""
    types = [pa.string(), pa.string(), pa.string(), pa.float64(), pa.int64(), pa.int32(), pa.int64()]
    fields = [*zip(EVENT_COLUMNS, types, strict=True), *((f"context_{c}", pa.string()) for c in context)]
    return pa.schema(fields).empty_table()


def column_as_text(column: pa.ChunkedArray) -> pa.Array:
    """Any column as strings; what is no text becomes null."""
    return _as_text(column, _Problems(len(column)))


class _Problems:
    """The first reason against each row of a block."""

    def __init__(self, rows: int) -> None:
        self.reasons = np.full(rows, None, dtype=object)

    @property
    def good(self) -> np.ndarray:
        return np.equal(self.reasons, None)

    def add(self, bad: np.ndarray, reason: str) -> None:
        self.reasons[bad & self.good] = reason

    def required(self, what: str, column: pa.Array) -> pa.Array:
        """The column trimmed; missing and empty ones are problems."""
        trimmed = pc.utf8_trim_whitespace(column)
        self.add(pc.fill_null(pc.equal(pc.utf8_length(trimmed), 0), True).to_numpy(zero_copy_only=False), f"{what} missing")
        return trimmed

    def rejected(self, table: pa.Table, first_row: int) -> list[tuple[int, str, str]]:
        """Row number, reason and text of each bad row."""
        bad = np.flatnonzero(~self.good)
        texts = table.take(pa.array(bad)).to_pylist() if len(bad) else []
        shown = [str({k: v.decode(errors="replace") if isinstance(v, bytes) else v for k, v in t.items()}) for t in texts]
        return [(first_row + int(i), str(self.reasons[i]), t[:1000]) for i, t in zip(bad, shown, strict=True)]


def _as_text(column: pa.ChunkedArray, problems: _Problems) -> pa.Array:
    """Any column as strings; bytes that are no text are a problem of their row."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_floating(array.type) and _whole(array):
        array = array.cast(pa.int64())
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("ms", getattr(array.type, "tz", None)), safe=False)
        return array.cast(pa.int64()).cast(pa.string())
    if pa.types.is_nested(array.type):
        return pa.array([None if v is None else str(v) for v in array.to_pylist()], pa.string())
    try:
        return array.cast(pa.string())
    except pa.ArrowInvalid:
        return _decoded(array, problems)


def _whole(array: pa.Array) -> bool:
    """Whether floats are integers in disguise, as a missing value makes them in pandas."""
    finite = pc.all(pc.is_finite(array)).as_py()
    return bool(finite is not False and pc.all(pc.equal(pc.floor(array), array)).as_py() is not False)


def _decoded(array: pa.Array, problems: _Problems) -> pa.Array:
    """Bytes to strings one by one, where at least one is not UTF-8."""
    texts: list[str | None] = []
    bad = np.zeros(len(array), dtype=bool)
    for index, value in enumerate(array.to_pylist()):
        try:
            texts.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            texts.append(None)
            bad[index] = True
    problems.add(bad, "broken UTF-8")
    return pa.array(texts, pa.string())


def _types(text: dict[str, pa.Array], names: dict[str, str], source: EventSource, rows: int) -> pa.Array:
    if "type" not in names:
        return pa.array([source.type] * rows, pa.string())
    return pc.fill_null(pc.utf8_trim_whitespace(text[names["type"]]), source.type)


def _values(text: dict[str, pa.Array], names: dict[str, str], problems: _Problems) -> pa.Array:
    if "value" not in names:
        return pa.nulls(len(problems.reasons), pa.float64())
    column = text[names["value"]]
    numbers = _numbers(column)
    given = column.is_valid().to_numpy(zero_copy_only=False)
    problems.add(given & ~np.isfinite(numbers), "value is not a number")
    return pa.array(numbers, pa.float64(), from_pandas=True)


def _timestamps(
    text: dict[str, pa.Array], names: dict[str, str], source: EventSource, problems: _Problems, numbers: pa.Array
) -> pa.Array:
    """Epoch milliseconds: ``[rows]`` int64. Without a time column 0: the source order alone decides."""
    if "timestamp" not in names:
        return pa.array(np.zeros(len(numbers), np.int64))
    column = text[names["timestamp"]]
    problems.add(column.is_null().to_numpy(zero_copy_only=False), "timestamp missing")
    milliseconds = to_milliseconds(column, source.time_unit)
    problems.add(np.isnan(milliseconds), "timestamp not understood")
    problems.add(~((milliseconds >= 0) & (milliseconds < LATEST)), "timestamp out of range (1970 to 2100)")
    return pa.array(np.where(problems.good, milliseconds, 0).astype(np.int64))


def to_milliseconds(column: pa.Array, unit: str) -> np.ndarray:
    """Text to epoch milliseconds: ``[n]`` float64, NaN where it is no time. Times without a zone are UTC."""
    milliseconds = np.full(len(column), np.nan)
    if unit != "iso":
        numbers = _numbers(column)
        factor = {"s": 1000.0, "ms": 1.0}.get(unit) or np.where(np.abs(numbers) < MILLISECONDS_FROM, 1000.0, 1.0)
        milliseconds = np.rint(numbers * factor)
    if unit in {"auto", "iso"}:
        rest = np.flatnonzero(np.isnan(milliseconds))
        if len(rest):
            parsed: Any = pd.to_datetime(
                pd.Series(column.take(pa.array(rest)).to_pandas()), utc=True, errors="coerce", format="ISO8601"
            )
            iso = parsed.dt.as_unit("ms").astype("int64").to_numpy().astype(float)
            milliseconds[rest] = np.where(parsed.isna().to_numpy(), np.nan, iso)
    return milliseconds


def _numbers(column: pa.Array) -> np.ndarray:
    """Text to ``[n]`` float64, NaN where it is no number."""
    return pd.to_numeric(pd.Series(column.to_pandas()), errors="coerce").to_numpy(dtype=float)
