"""From the columns of a file to events: keys, times and values understood, unusable rows set aside with the reason."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.blocks import BROKEN, CUT, TOO_LONG, Block, readable
from rayrec.recipe_data import EventSource

UNITS = {"s": 1e3, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
"""Milliseconds of each unit of epoch numbers."""

UNIT_FROM = (1e11, 1e14, 1e17)
"""An epoch number from here on is in milli-, micro- or nanoseconds: in the unit before it would lie after 5000."""

LATEST = 4_102_444_800_000
"""Timestamps (epoch ms) from 2100 on are taken for errors."""

ROW_BITS = 40
"""Bits of an event id that number the row; those above number the file."""

LONGEST_KEY = 1024
"""Characters of a key: longer ones are broken rows, and would not fit the index of any database."""

NULLS = ("", "NA", "N/A", "NULL", "null", "None", "NaN", "nan")
"""What stands for a missing number or time. In keys, types and texts only the empty string does: "NA" is a word."""

EVENT_SCHEMA = pa.schema(
    [
        ("event_id", pa.int64()),
        ("user", pa.string()),
        ("item", pa.string()),
        ("type", pa.dictionary(pa.int32(), pa.string())),
        ("value", pa.float64()),
        ("timestamp", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Cleaned:
    """A block after cleaning.

    Attributes:
        events: `EVENT_SCHEMA` with the timestamp in epoch milliseconds, then ``context_*`` columns of strings.
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
        columns = dict.fromkeys([*names.values(), *source.context])
        text = {column: _as_text(table[column], problems) for column in columns}
        user = problems.key("user", text[names["user"]])
        item = problems.key("item", text[names["item"]])
        events = pa.table(
            {
                "event_id": pa.array(event_ids(file, block.rows)),
                "user": user,
                "item": item,
                "type": _types(text, names, source, rows),
                "value": _values(text, names, problems),
                "timestamp": _timestamps(table, text, names, source, problems),
                **{f"context_{column}": text[column] for column in source.context},
            }
        )
    else:
        events = empty_events(source.context)
    bad = [(row.row, row.reason, row.text) for row in block.bad] + problems.rejected(table, block.rows)
    rejected = pa.table(
        {
            "row": pa.array([b[0] for b in bad], pa.int64()),
            "reason": pa.array([b[1] for b in bad], pa.string()),
            "text": pa.array([b[2] for b in bad], pa.string()),
        }
    )
    return Cleaned(events.filter(pa.array(problems.good)) if rows else events, rejected)


def event_ids(file: int, rows: np.ndarray) -> np.ndarray:
    """The ids of a file's events: ``[N]`` int64, the file's ordinal and the number of the row in it."""
    return (np.int64(file) << np.int64(ROW_BITS)) + rows


def empty_events(context: tuple[str, ...]) -> pa.Table:
    """No events, in the schema of `Cleaned.events`."""
    return pa.schema([*EVENT_SCHEMA, *((f"context_{c}", pa.string()) for c in context)]).empty_table()


def column_as_text(column: pa.ChunkedArray) -> pa.Array:
    """Any column as strings; what is no text becomes null."""
    return _as_text(column, _Problems(len(column)))


class _Problems:
    """The first reason against each row of a block."""

    def __init__(self, rows: int) -> None:
        self.reasons = np.full(rows, "", dtype=object)
        self.good = np.ones(rows, dtype=bool)

    def add(self, bad: np.ndarray, reason: str) -> None:
        self.reasons[bad & self.good] = reason
        self.good &= ~bad

    def key(self, what: str, column: pa.Array) -> pa.Array:
        """The column trimmed; what can be no key is a problem."""
        trimmed = pc.utf8_trim_whitespace(column)
        length = pc.fill_null(pc.utf8_length(trimmed), 0).to_numpy(zero_copy_only=False)
        self.add(length == 0, f"{what} missing")
        self.add(length > LONGEST_KEY, f"{what} longer than {LONGEST_KEY} characters")
        # Databases and C libraries end a text there.
        nul = pc.fill_null(pc.match_substring(trimmed, "\0"), False).to_numpy(zero_copy_only=False)
        self.add(nul, f"{what} holds a NUL")
        return trimmed

    def rejected(self, table: pa.Table, rows: np.ndarray) -> list[tuple[int, str, str]]:
        """Row number, reason and text of each bad row."""
        bad = np.flatnonzero(~self.good)
        texts = _as_texts(table.take(pa.array(bad))).to_pylist() if len(bad) else []
        return [(int(rows[i]), str(self.reasons[i]), _shown(t)) for i, t in zip(bad, texts, strict=True)]


def _as_texts(table: pa.Table) -> pa.Table:
    """What is bytes stays so: it may be no text. The type of the rest depends on the rows around it."""
    columns = {name: table[name] for name in table.column_names}
    return pa.table({n: c if pa.types.is_binary(c.type) else column_as_text(c) for n, c in columns.items()})


def _shown(row: dict[str, Any]) -> str:
    texts = {key: readable(value.decode(errors="replace")) for key, value in row.items() if isinstance(value, bytes)}
    return str({**row, **texts})[:1000]


def good_keys(what: str, column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """A table's keys as the log has them, and which of them (``[N]`` bool) can be keys."""
    problems = _Problems(len(column))
    return problems.key(what, column), problems.good


def _as_text(column: pa.ChunkedArray, problems: _Problems) -> pa.Array:
    """Any column as strings; bytes that are no text are a problem of their row."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_floating(array.type):
        return _floats_as_text(array)
    if pa.types.is_timestamp(array.type):
        # Without a zone this is UTC.
        array = array.cast(pa.timestamp(array.type.unit))
    if pa.types.is_nested(array.type):
        dumps = partial(json.dumps, default=str, ensure_ascii=False)
        return pa.array([None if value is None else dumps(value) for value in array.to_pylist()], pa.string())
    try:
        text = array.cast(pa.string())
        if pa.types.is_binary(array.type):
            return _whole_texts(text, problems)
        return text
    except pa.ArrowInvalid:
        return _decoded(array, problems)


def _floats_as_text(array: pa.Array) -> pa.Array:
    """Integers in disguise, as a missing value makes them in pandas, are written as integers; NaN is missing.

    Decided for each value: the same number must not be another key because of its neighbours.
    """
    array = pc.if_else(pc.is_nan(array), None, array.cast(pa.float64()))
    whole = pc.and_(pc.equal(pc.floor(array), array), pc.less(pc.abs(array), float(1 << 53)))
    integers = pc.if_else(whole, array, None).cast(pa.int64())
    return pc.coalesce(integers.cast(pa.string()), array.cast(pa.string()))


def _whole_texts(text: pa.Array, problems: _Problems) -> pa.Array:
    """Null for texts with a mark where they were none."""
    broken = pc.fill_null(pc.match_substring(text, BROKEN), False)
    if not pc.any(broken).as_py():
        return text
    cut = pc.fill_null(pc.match_substring(text, CUT), False)
    problems.add(cut.to_numpy(zero_copy_only=False), TOO_LONG)
    problems.add(broken.to_numpy(zero_copy_only=False), "broken UTF-8")
    return pc.if_else(broken, None, text)


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
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([source.type]))
    encoded = text[names["type"]].dictionary_encode()
    trimmed = pc.utf8_trim_whitespace(encoded.dictionary)
    words = pc.if_else(pc.equal(trimmed, ""), source.type, trimmed)
    types = pa.DictionaryArray.from_arrays(encoded.indices, words)
    if not types.null_count and len(words.unique()) == len(words):
        return types
    return pc.fill_null(types.cast(pa.string()), source.type).dictionary_encode()


def _values(text: dict[str, pa.Array], names: dict[str, str], problems: _Problems) -> pa.Array:
    if "value" not in names:
        return pa.nulls(len(problems.reasons), pa.float64())
    column = _given(text[names["value"]])
    numbers = _numbers(column)
    given = column.is_valid().to_numpy(zero_copy_only=False)
    problems.add(given & ~np.isfinite(numbers), "value is not a number")
    return pa.array(numbers, pa.float64(), from_pandas=True)


def _given(column: pa.Array) -> pa.Array:
    """The column with null for what stands for missing."""
    missing = pc.is_in(pc.utf8_trim_whitespace(column), pa.array(NULLS))
    return pc.if_else(missing, None, column)


def _timestamps(
    table: pa.Table, text: dict[str, pa.Array], names: dict[str, str], source: EventSource, problems: _Problems
) -> pa.Array:
    """Epoch milliseconds: ``[rows]`` int64. Without a time column 0: the source order alone decides."""
    if "timestamp" not in names:
        return pa.array(np.zeros(table.num_rows, np.int64))
    typed = table[names["timestamp"]]
    column = _given(text[names["timestamp"]])
    problems.add(column.is_null().to_numpy(zero_copy_only=False), "timestamp missing")
    # A column that is a time by its type needs no `time_unit`.
    is_time = pa.types.is_timestamp(typed.type) or pa.types.is_date(typed.type)
    milliseconds = _time_typed(typed) if is_time else to_milliseconds(column, source.time_unit)
    problems.add(np.isnan(milliseconds), "timestamp not understood")
    problems.add(~((milliseconds >= 0) & (milliseconds < LATEST)), "timestamp out of range (1970 to 2100)")
    return pa.array(np.where(problems.good, milliseconds, 0).astype(np.int64))


def _time_typed(column: pa.ChunkedArray) -> np.ndarray:
    """Timestamps or dates to epoch milliseconds: ``[n]`` float64, NaN where there is none."""
    zone = getattr(column.type, "tz", None)
    whole = column.cast(pa.timestamp("ms", zone), safe=False).cast(pa.int64())
    return whole.to_pandas().to_numpy(dtype=float, na_value=np.nan)


def to_milliseconds(column: pa.Array, unit: str) -> np.ndarray:
    """Text to epoch milliseconds: ``[n]`` float64, NaN where it is no time. Times without a zone are UTC."""
    milliseconds = np.full(len(column), np.nan)
    if unit != "iso":
        numbers = _numbers(column)
        milliseconds = np.rint(numbers * (UNITS[unit] if unit in UNITS else _likely_unit(numbers)))
    if unit in {"auto", "iso"}:
        rest = np.flatnonzero(np.isnan(milliseconds))
        if len(rest):
            parsed: Any = pd.to_datetime(
                pd.Series(column.take(pa.array(rest)).to_pandas()), utc=True, errors="coerce", format="ISO8601"
            )
            iso = parsed.dt.as_unit("ms").astype("int64").to_numpy().astype(float)
            milliseconds[rest] = np.where(parsed.isna().to_numpy(), np.nan, iso)
    return milliseconds


def _likely_unit(numbers: np.ndarray) -> np.ndarray:
    """Milliseconds of the unit that each epoch number is probably in: ``[n]`` float64."""
    return np.array(list(UNITS.values()))[np.searchsorted(UNIT_FROM, np.abs(numbers), side="right")]


def _numbers(column: pa.Array) -> np.ndarray:
    """Text to ``[n]`` float64, NaN where it is no number."""
    text: Any = pl.from_arrow(pc.utf8_trim_whitespace(column))
    return cast("np.ndarray", text.cast(pl.Float64, strict=False).to_numpy())
