"""Streaming readers: a file of any format, or a database, to Arrow tables with the row numbers of its rows."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa

from rayrec.data.blocks import Block, require_columns
from rayrec.data.columnar import arrow_names, orc_names, parquet_names, read_arrow, read_orc, read_parquet
from rayrec.data.delimited import layout, read_csv
from rayrec.data.json_lines import read_jsonl
from rayrec.data.partitions import path_keys, with_keys
from rayrec.data.sql import is_database, read_sql, sql_names
from rayrec.data.variables import expanded, hidden, revealed
from rayrec.errors import DataError
from rayrec.recipe_data import TableSource

FORMATS = {
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".arrow", ".arrows", ".feather", ".ipc"), "arrow"),
    ".orc": "orc",
}
READERS = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "orc": read_orc,
    "arrow": read_arrow,
    "sql": read_sql,
}


def read_blocks(uri: str, source: TableSource, columns: Sequence[str | int] | None) -> Iterator[Block]:
    """The rows of a file, block by block; ``columns`` None means all. A file without rows gives no block.

    Of a file below folders such as ``day=2025-01-01`` these are columns, too.

    Args:
        uri: The file, as `rayrec.data.files.list_files` names it.
        source: What the recipe says of it; a database is opened by its ``path``.
        columns: Names or positions.

    Raises:
        DataError: The file is not what it is said to be, or a column is absent. Of JSON lines, whose rows may leave
            out what they have no value for, the blocks say which columns they had.
    """
    kind = file_format(uri, source)
    with _reporting(uri, kind, source):
        place, keys = _place(uri, kind, source)
        yield from _with_keys(place, kind, source, columns, keys) if keys else READERS[kind](place, source, columns)


def file_format(uri: str, source: TableSource) -> str:
    """A key of `READERS`: as the recipe says, else by the file's name or the URL."""
    if source.format != "auto":
        return source.format
    if is_database(source):
        return "sql"
    suffixes = [suffix.lower() for suffix in PurePosixPath(uri).suffixes]
    return next((FORMATS[suffix] for suffix in reversed(suffixes) if suffix in FORMATS), "csv")


def header(uri: str, source: TableSource) -> tuple[list[str], str]:
    """The column names of a CSV file (positions as text where it has no header) and its separator.

    Raises:
        DataError: There is nothing in it, or it cannot be read.
    """
    with _reporting(uri, "csv", source):
        found = layout(revealed(uri, source.path), source)
    if found is None:
        raise DataError(f"{uri}: the file is empty.")
    return found.names, found.separator


def column_names(uri: str, source: TableSource, wanted: Sequence[str | int]) -> list[str] | None:
    """The file's own names of columns given by name or position; None when there is nothing in the file.

    Raises:
        DataError: One is absent, or the file cannot be read.
    """
    kind = file_format(uri, source)
    if kind == "jsonl":
        return [str(column) for column in wanted]
    with _reporting(uri, kind, source):
        place, keys = _place(uri, kind, source)
        names = NAMES[kind](place, source)
        return None if names is None else require_columns(place, [*dict.fromkeys([*names, *keys])], wanted)


def all_columns(uri: str, source: TableSource) -> list[str]:
    """All columns of a file, without reading more than its beginning or end.

    Raises:
        DataError: There is nothing in it, or it cannot be read.
    """
    kind = file_format(uri, source)
    if kind == "jsonl":
        block = next(read_blocks(uri, source, None), None)
        names = None if block is None else block.table.column_names
    else:
        with _reporting(uri, kind, source):
            place, keys = _place(uri, kind, source)
            own = NAMES[kind](place, source)
            names = None if own is None else [*dict.fromkeys([*own, *keys])]
    if names is None:
        raise DataError(f"{uri}: the file is empty.")
    return names


def check_reach(uri: str, source: TableSource) -> None:
    """Find out whether this machine can open a file, or a database.

    Raises:
        DataError: It cannot.
    """
    kind = file_format(uri, source)
    with _reporting(uri, kind, source):
        if kind == "sql":
            sql_names(uri, source)
            return
        filesystem, path = fsspec.core.url_to_fs(_place(uri, kind, source)[0])
        if not filesystem.exists(path):
            raise DataError(f"{uri}: there is no such file.")


def _csv_names(uri: str, source: TableSource) -> list[str] | None:
    found = layout(uri, source)
    return None if found is None else found.names


NAMES: dict[str, Callable[[str, TableSource], list[str] | None]] = {
    "csv": _csv_names,
    "parquet": parquet_names,
    "orc": orc_names,
    "arrow": arrow_names,
    "sql": sql_names,
}
"""Where the columns are known before the rows; JSON lines have no such thing."""


def _place(uri: str, kind: str, source: TableSource) -> tuple[str, dict[str, str | None]]:
    """Where a file really is, and the columns that its folders are."""
    if kind == "sql":
        return uri, {}
    place = revealed(uri, source.path)
    return place, path_keys(place, expanded(source.path))


def _with_keys(
    uri: str, kind: str, source: TableSource, columns: Sequence[str | int] | None, keys: dict[str, str | None]
) -> Iterator[Block]:
    """The blocks of a file with the wanted ones of the columns that its folders are, unless the file has them."""
    if columns is not None and kind != "jsonl":
        names = NAMES[kind](uri, source)
        if names is None:
            return
        found = require_columns(uri, [*dict.fromkeys([*names, *keys])], columns)
        keys = {key: value for key, value in keys.items() if key in found}
        columns = [name for name in found if name in names]
    elif columns is not None:
        keys = {key: value for key, value in keys.items() if key in columns}
    for block in READERS[kind](uri, source, columns):
        yield with_keys(block, keys)


@contextmanager
def _reporting(uri: str, kind: str, source: TableSource) -> Iterator[None]:
    """One message, without the values of variables, from whatever the libraries below raise about a file's content."""
    try:
        yield
    except DataError as error:
        raise DataError(hidden(str(error), source.path)) from error
    except (ValueError, EOFError, pa.ArrowException, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        hint = ""
        if "straddling" in str(error):
            hint = " A row is longer than 8 MiB: perhaps a quote is not closed, or `separator` or `format` is wrong."
        raise DataError(f"{uri}: cannot be read as {kind}: {hidden(str(error), source.path)}.{hint}") from error
    except OSError as error:
        raise DataError(f"{uri}: cannot be read: {hidden(str(error), source.path)}") from error


def _zstd(file: Any, mode: str = "rb") -> io.BufferedReader:
    """A Zstandard file. fsspec would take what is installed, and `zstandard` takes half a file for a whole one."""
    return io.BufferedReader(pa.CompressedInputStream(file, "zstd"))


fsspec.compression.register_compression("zstd", _zstd, "zst", force=True)
