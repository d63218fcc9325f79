"""Lists of words and of numbers, given as Arrow lists or as text."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.features.columns import as_numbers, as_text, as_words, json_text, plain


def as_lists(column: pa.Array, separator: str) -> tuple[pa.Array, np.ndarray]:
    """The words of all rows one after the other: ``[M]`` large_string without nulls, and ``[M]`` int64, their rows.

    Args:
        column: Lists, or texts: JSON lists, or words between separators.
        separator: Between the words of a text.
    """
    column = plain(column)
    lists = column if is_list(column.type) else _split(as_text(column), separator)
    words = as_words(pc.list_flatten(lists))
    kept = words.is_valid()
    return words.filter(kept), pc.list_parent_indices(lists).filter(kept).to_numpy()


def as_vectors(column: pa.Array, dimension: int) -> np.ndarray:
    """``[N, dimension]`` float32; zeros where there are not as many finite numbers. See `features.vector`."""
    column = plain(column)
    if not is_list(column.type):
        spaced = pl.Series(as_text(column)).str.replace_all(r"[\s,;\[\]()]+", " ").str.strip_chars(" ")
        column = spaced.str.split(" ").to_arrow(compat_level=pl.CompatLevel.oldest())
    whole = pc.fill_null(pc.equal(pc.list_value_length(column), dimension), False)
    rows = np.flatnonzero(whole.to_numpy(zero_copy_only=False))
    vectors = np.zeros((len(column), dimension), np.float32)
    with np.errstate(over="ignore"):
        found = as_numbers(pc.list_flatten(column.filter(whole))).astype(np.float32).reshape(len(rows), dimension)
    finite = np.isfinite(found).all(axis=1)
    vectors[rows[finite]] = found[finite]
    return vectors


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds a list in each row."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _split(text: pa.Array, separator: str) -> pa.Array:
    """Words of each text: list<large_string>."""
    lists = pc.split_pattern(text, separator)
    # The log keeps lists of JSON lines as the JSON they were.
    opened = pc.fill_null(pc.starts_with(pc.utf8_ltrim_whitespace(text), "["), False).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(opened)
    parsed = [_json_list(value) for value in text.take(pa.array(rows)).to_pylist()]
    good = [number for number, words in enumerate(parsed) if words is not None]
    if not good:
        return lists
    chosen = np.arange(len(lists))
    chosen[rows[good]] = len(lists) + np.arange(len(good))
    given = pa.array([parsed[number] for number in good], lists.type)
    return pa.concat_arrays([lists, given]).take(pa.array(chosen))


def _json_list(text: str) -> list[str | None] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return [json_text(part) for part in value] if isinstance(value, list) else None
