"""What the recipe declares of items, users and events, as sparse matrices that models are fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.dataset import Dataset, read_part
from rayrec.data.fitting import FEATURE, load_fitted
from rayrec.data.views import open_view
from rayrec.features.base import Fitted
from rayrec.features.hashing import hash64
from rayrec.features.vocabulary import FIRST_WORD, FittedWords
from rayrec.models.interactions import SparseRows

TEXT_COLUMNS = 16_384
"""Words of a text are hashed into so many columns: a thousand titles share few, and no vocabulary has to be kept."""
MOMENTS = {
    "hour": range(24),
    "weekday": range(7),
    "day": range(1, 32),
    "month": range(1, 13),
    "year": range(1900, 2100),
}
"""The values of each part of a moment. Other years have no column."""


@dataclass(frozen=True)
class _Entries:
    """Entries of some columns, in any order.

    Attributes:
        rows: ``[N]`` int64, from 0.
        columns: ``[N]`` int64, from 0.
        values: ``[N]`` float32.
        width: Number of columns.
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    width: int


def item_features(dataset: Dataset, view: str) -> SparseRows | None:
    """The features of a view's items, by name: ``[num_items + 1]`` rows, of which row 0, padding, is empty.

    Returns:
        None where the recipe declares no features of items.

    Raises:
        DataError: A part of the view is missing or was changed.
    """
    manifest = open_view(dataset, view)
    fitted = load_fitted(dataset, manifest).items.features
    if not fitted:
        return None
    table = read_part(dataset.storage, manifest["items"])
    rows = feature_rows(fitted, {name: table[f"{FEATURE}{name}"].combine_chunks() for name in fitted})
    return SparseRows(np.concatenate([[0], rows.offsets]), rows.columns, rows.values, rows.width)


def feature_rows(fitted: Mapping[str, Fitted], columns: Mapping[str, pa.Array]) -> SparseRows:
    """Features as a row for each item, user or event; what stands in a column depends on what was fitted alone.

    A column each word of a category, tag or bucket, with 1 for those that have it (the missing and the unknown have
    none), each number and each dimension of a vector, as fitted, and each value of a part of a moment. Words of texts,
    in lower case, are hashed into `TEXT_COLUMNS` columns.

    Args:
        fitted: The features, by name; at least one.
        columns: ``[N]`` fitted values of each.
    """
    parts = [_encode(feature, columns[name]) for name, feature in fitted.items()]
    starts = np.cumsum([0, *(part.width for part in parts)])
    rows = np.concatenate([part.rows for part in parts])
    places = np.concatenate([part.columns + start for part, start in zip(parts, starts[:-1], strict=True)])
    values = np.concatenate([part.values for part in parts])
    order = np.lexsort((places, rows))
    return SparseRows.of(rows[order], places[order], values[order], len(columns[next(iter(fitted))]), int(starts[-1]))


def _encode(fitted: Fitted, column: pa.Array) -> _Entries:
    """``[N]`` fitted values of one feature as columns."""
    output, everyone = fitted.output, np.arange(len(column), dtype=np.int64)
    if isinstance(fitted, FittedWords):
        # Without a vocabulary nothing is unknown, and buckets begin at 1.
        first = FIRST_WORD if fitted.config.buckets is None else 1
        if output.kind == "multi-valued":
            rows, ids = pc.list_parent_indices(column).to_numpy().astype(np.int64), pc.list_flatten(column).to_numpy()
        else:
            rows, ids = everyone, column.to_numpy()
        return _categories(rows, ids - first, output.size - first)
    if output.kind == "text":
        return _words(column)
    if output.kind == "timestamp":
        return _moments(pc.list_flatten(column).to_numpy().reshape(-1, output.dimension), output.parts)
    if output.size:
        return _categories(everyone, column.to_numpy(), output.size)
    flat = pc.list_flatten(column) if pa.types.is_fixed_size_list(column.type) else column
    return _numbers(flat.to_numpy().reshape(-1, output.dimension))


def _categories(rows: np.ndarray, ids: np.ndarray, width: int) -> _Entries:
    """A one for each category a row has, however often; ids below 0 are left out."""
    known = ids >= 0
    distinct = np.unique(rows[known] * width + ids[known])
    found, columns = np.divmod(distinct, max(1, width))
    return _Entries(found, columns, np.ones(len(distinct), np.float32), width)


def _words(texts: pa.Array) -> _Entries:
    """The words of each text, hashed."""
    spaced = pc.replace_substring_regex(pc.utf8_lower(texts), r"[^\p{L}\p{N}]+", " ")
    lists = pc.split_pattern(pc.utf8_trim(spaced, " "), " ")
    words, rows = pc.list_flatten(lists), pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    hashed = (hash64(words) % np.uint64(TEXT_COLUMNS)).astype(np.int64)
    some = pc.not_equal(words, "").to_numpy(zero_copy_only=False)
    return _categories(rows, np.where(some, hashed, -1), TEXT_COLUMNS)


def _moments(moments: np.ndarray, parts: tuple[str, ...]) -> _Entries:
    """``[N, P]`` parts of moments: a column each value of a part; -1 is missing."""
    values = [MOMENTS[part] for part in parts]
    starts = np.cumsum([0, *map(len, values)])
    first, sizes = np.array([part.start for part in values]), np.array([len(part) for part in values])
    rows, places = np.nonzero((moments >= first) & (moments < first + sizes))
    columns = moments[rows, places] - first[places] + starts[places]
    return _Entries(rows, columns, np.ones(len(rows), np.float32), int(starts[-1]))


def _numbers(values: np.ndarray) -> _Entries:
    """``[N, D]`` numbers: a column each, zeros left out."""
    rows, columns = np.nonzero(values)
    return _Entries(rows, columns, values[rows, columns].astype(np.float32), values.shape[1])
