"""Item and user tables: read whole, all columns kept as given."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import pyarrow as pa

from rayrec.artifacts import Storage
from rayrec.data.blocks import require_columns
from rayrec.data.cleaning import column_as_text, good_keys
from rayrec.data.files import list_files
from rayrec.data.passes import Row, from_bytes, run_pass, to_bytes
from rayrec.data.readers import read_blocks
from rayrec.errors import DataError
from rayrec.recipe import Recipe
from rayrec.recipe_data import ItemSource, TableSource

_LOG = logging.getLogger(__name__)

VALID_FROM_START = 0
"""Without a column that says since when a row holds, it holds since ever."""


def read_items(recipe: Recipe, storage: Storage) -> pa.Table | None:
    """The item table: ``item`` (the key), ``valid_from`` int64 (epoch ms), then the given columns as strings."""
    source = recipe.data.items
    return None if source is None else _read(source, source.columns.model_dump(), "item", storage)


def read_users(recipe: Recipe, storage: Storage) -> pa.Table | None:
    """The user table: ``user`` (the key), ``valid_from`` int64 (epoch ms), then the given columns as strings."""
    source = recipe.data.users
    return None if source is None else _read(source, source.columns.model_dump(), "user", storage)


def _read(source: TableSource, columns: dict[str, Any], name: str, storage: Storage) -> pa.Table:
    """All files of a table; of rows with the same key the first counts, those without a key do not.

    Raises:
        DataError: The table has no rows, or a column is absent.
    """
    files = list_files([source], storage)
    results = run_pass(partial(_read_file, source=source), ({"uri": file.uri} for file in files))
    tables = [table for row in results if (table := from_bytes(row["table"])).num_rows]
    if not tables:
        raise DataError(f"{source.path}: the table has no rows. Check `path` in the recipe.")
    whole = pa.concat_tables(tables, promote_options="default")
    mapped = [column for column in columns.values() if column is not None]
    require_columns(source.path, whole.column_names, mapped)
    (key,) = require_columns(source.path, whole.column_names, [columns[name]])
    keys, good = good_keys(name, whole[key].combine_chunks())
    repeated = good & keys.to_pandas().duplicated().to_numpy()
    if not (good & ~repeated).any():
        raise DataError(f"{source.path}: no row has a key in column '{key}'. Check `columns` in the recipe.")
    if repeated.any() or not good.all():
        _LOG.warning(
            "%s: of %d rows, %d without a usable key and %d that repeat a key are left out.",
            *(source.path, whole.num_rows, (~good).sum(), repeated.sum()),
        )
    kept = pa.array(good & ~repeated)
    given = {f"given_{column}": whole[column].filter(kept) for column in whole.column_names}
    keys = keys.filter(kept)
    return pa.table({name: keys, "valid_from": pa.array([VALID_FROM_START] * len(keys), pa.int64()), **given})


def _read_file(row: Row, source: TableSource) -> Row:
    uri = str(row["uri"])
    separator = source.category_separator if isinstance(source, ItemSource) else "|"
    tables = [
        pa.table({name: _text(block.table[name], separator) for name in block.table.column_names})
        for block in read_blocks(uri, source, None)
        if block.table.num_rows
    ]
    return {"table": to_bytes(pa.concat_tables(tables, promote_options="default") if tables else pa.table({}))}


def _text(column: pa.ChunkedArray, separator: str) -> pa.Array:
    """A column as text; a list, as JSON and Parquet have them for categories, as CSV would write it."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return column_as_text(column)
    lists = column.to_pylist()
    joined = [None if v is None else separator.join(str(part) for part in v if part is not None) for v in lists]
    return pa.array(joined, pa.string())
