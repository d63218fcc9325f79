"""Any Arrow column as words, numbers, lists or times.

Every value is read by itself: what a row gives never depends on its neighbours, so that a row of a log and the same
row in a request are the same to a model. What cannot be read is missing; nothing here raises.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

EXACT_FLOATS = float(1 << 53)
"""From here on floats leave out integers."""

BLOCK = 1 << 16
"""Rows handled at a time: what is made on the way stays small."""


def blocks(table: pa.Table) -> Iterator[pa.Table]:
    """The table a block after the other; one without rows if it has none."""
    for start in range(0, max(table.num_rows, 1), BLOCK):
        yield table.slice(start, BLOCK)


def column_of(table: pa.Table, name: str) -> pa.Array:
    """A column, in one piece; all missing where there is none of that name."""
    return table[name].combine_chunks() if name in table.column_names else pa.nulls(table.num_rows)


def as_text(column: pa.Array) -> pa.Array:
    """As the log keeps values: large_string. Whole floats are written as integers; lists and structs as JSON."""
    column = plain(column)
    if pa.types.is_floating(column.type):
        return _floats_as_text(column)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp(column.type.unit))  # without a zone: UTC
    if pa.types.is_nested(column.type):
        return _each_as_text(column)
    try:
        return column.cast(pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        # Broken UTF-8 in one row, or a type that Arrow has no text for.
        return _each_as_text(column)


def as_words(column: pa.Array) -> pa.Array:
    """Trimmed texts: large_string, null where nothing is left."""
    trimmed = pc.utf8_trim_whitespace(as_text(column))
    return pc.if_else(pc.equal(trimmed, ""), None, trimmed)


def as_numbers(column: pa.Array) -> np.ndarray:
    """``[N]`` float64, NaN where there is no finite number; true and false are 1 and 0."""
    column = plain(column)
    if is_number(column.type):
        numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    else:
        words = as_words(column)
        numbers = pl.Series(words).cast(pl.Float64, strict=False).to_numpy()
        if words.null_count < np.isnan(numbers).sum():
            truth = pc.index_in(pc.utf8_lower(words), pa.array(["false", "true"], pa.large_string()))
            numbers = np.where(np.isnan(numbers), pc.cast(truth, pa.float64()).to_numpy(False), numbers)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type holds numbers, or truth values."""
    types = pa.types
    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind)


def plain(column: pa.Array) -> pa.Array:
    """The column without what only says how it is stored."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_list_view(column.type) or pa.types.is_large_list_view(column.type):
        column = column.cast(pa.large_list(column.type.value_type))
    return column


def _floats_as_text(column: pa.Array) -> pa.Array:
    """Integers in disguise, as a missing value makes them in pandas, are written as integers; NaN is missing."""
    floats = column.cast(pa.float64())
    floats = pc.if_else(pc.is_nan(floats), None, floats)
    whole = pc.and_(pc.equal(pc.floor(floats), floats), pc.less(pc.abs(floats), EXACT_FLOATS))
    integers = pc.if_else(whole, floats, None).cast(pa.int64())
    return pc.coalesce(integers.cast(pa.large_string()), floats.cast(pa.large_string()))


def _each_as_text(column: pa.Array) -> pa.Array:
    return pa.array([_value_as_text(value) for value in column], pa.large_string())


def _value_as_text(scalar: pa.Scalar) -> str | None:
    try:
        value = scalar.as_py()
    except (ValueError, OverflowError):  # broken UTF-8, or a time that Python cannot hold
        return None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return json_text(value)


def json_text(value: object) -> str | None:
    """A JSON value as text: texts as they are, the rest as JSON; None is missing."""
    if value is None:
        return None
    if isinstance(value, float):
        text: str | None = _floats_as_text(pa.array([value], pa.float64()))[0].as_py()
        return text
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode(errors="replace").decode()  # a lone surrogate is no text that can be stored
