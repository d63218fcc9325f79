"""Item and user tables: read whole, all columns kept as given."""

from __future__ import annotations

import json
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
    tables = [_texts(block.table, source) for block in read_blocks(str(row["uri"]), source, None) if len(block.rows)]
    return {"table": to_bytes(pa.concat_tables(tables, promote_options="default") if tables else pa.table({}))}


def _texts(table: pa.Table, source: TableSource) -> pa.Table:
    """All columns as text. Lists are JSON, but those of categories are as CSV has them."""
    texts = {name: column_as_text(table[name]) for name in table.column_names}
    if isinstance(source, ItemSource) and source.columns.categories is not None:
        categories = source.columns.categories
        name = table.column_names[categories] if isinstance(categories, int) else categories
        if name in texts:
            joined = (_joined(text, source.category_separator) for text in texts[name].to_pylist())
            texts[name] = pa.array(joined, pa.string())
    return pa.table(texts)


def _joined(text: str | None, separator: str) -> str | None:
    """What a JSON list says, between separators; any other text as it is."""
    try:
        parts = json.loads(text) if text and text.startswith("[") else None
    except (ValueError, RecursionError):
        parts = None
    return text if parts is None else separator.join(str(part) for part in parts if part is not None)
