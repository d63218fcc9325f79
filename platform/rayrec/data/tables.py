"""Item and user tables: read whole, all columns kept as given."""

from __future__ import annotations

from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from rayrec.artifacts import Storage
from rayrec.data.cleaning import column_as_text
from rayrec.data.files import list_files
from rayrec.data.passes import Row, from_bytes, run_pass, to_bytes
from rayrec.data.readers import file_format, header, read_blocks, require_columns
from rayrec.errors import DataError
from rayrec.recipe import Recipe, TableSource

VALID_FROM_START = 0
"""Without a column that says since when a row holds, it holds since ever."""


def read_items(recipe: Recipe, storage: Storage) -> pa.Table | None:
    """The item table: ``item`` (the key), ``valid_from`` int64 (epoch ms), then the given columns as strings."""
    source = recipe.data.items
    return None if source is None else _read(source, source.columns.item, "item", storage)


def read_users(recipe: Recipe, storage: Storage) -> pa.Table | None:
    """The user table: ``user`` (the key), ``valid_from`` int64 (epoch ms), then the given columns as strings."""
    source = recipe.data.users
    return None if source is None else _read(source, source.columns.user, "user", storage)


def _read(source: TableSource, key: str | int, name: str, storage: Storage) -> pa.Table:
    """All files of a table; of rows with the same key the first counts.

    Raises:
        DataError: The table has no rows or no such key column.
    """
    files = list_files([source], storage)
    results = run_pass(partial(_read_file, source=source), ({"uri": file.uri} for file in files))
    tables = [table for row in results if (table := from_bytes(row["table"])).num_rows]
    if not tables:
        raise DataError(f"{source.path}: the table has no rows. Check `path` in the recipe.")
    whole = pa.concat_tables(tables, promote_options="default")
    (column,) = require_columns(source.path, whole.column_names, [key])
    keys = pc.utf8_trim_whitespace(whole[column])
    first = ~keys.to_pandas().duplicated().to_numpy() & keys.is_valid().to_numpy()
    whole = whole.add_column(0, f"{name}:key", keys).filter(pa.array(first))
    valid_from = pa.array([VALID_FROM_START] * whole.num_rows, pa.int64())
    given = {f"given_{column}": whole[column] for column in whole.column_names[1:]}
    return pa.table({name: whole[f"{name}:key"], "valid_from": valid_from, **given})


def _read_file(row: Row, source: TableSource) -> Row:
    uri = str(row["uri"])
    columns = header(uri, source)[0] if file_format(uri, source) == "csv" else None
    tables = [
        pa.table({name: column_as_text(block.table[name]) for name in block.table.column_names})
        for block in read_blocks(uri, source, columns)
        if block.table.num_rows
    ]
    return {"table": to_bytes(pa.concat_tables(tables, promote_options="default") if tables else pa.table({}))}
