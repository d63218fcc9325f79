"""Streaming readers: a file of any format to Arrow tables with the row numbers of its rows."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.data.blocks import Block, require_columns
from rayrec.data.delimited import layout, read_csv
from rayrec.data.json_lines import read_jsonl
from rayrec.errors import DataError
from rayrec.recipe_data import TableSource

FORMATS = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}


def read_blocks(uri: str, source: TableSource, columns: Sequence[str | int] | None) -> Iterator[Block]:
    """The rows of a file, block by block; ``columns`` None means all. A file without rows gives no block.

    Raises:
        DataError: The file is not what it is said to be, or a column is absent. Of JSON lines, whose rows may leave
            out what they have no value for, the blocks say which columns they had.
    """
    readers = {"csv": read_csv, "jsonl": read_jsonl, "parquet": _read_parquet}
    kind = file_format(uri, source)
    with _reporting(uri, kind):
        yield from readers[kind](uri, source, columns)


def file_format(uri: str, source: TableSource) -> str:
    """``csv``, ``jsonl`` or ``parquet``: as the recipe says, else by the file's name."""
    if source.format != "auto":
        return source.format
    suffixes = [suffix.lower() for suffix in PurePosixPath(uri).suffixes]
    return next((FORMATS[suffix] for suffix in reversed(suffixes) if suffix in FORMATS), "csv")


def header(uri: str, source: TableSource) -> tuple[list[str], str]:
    """The column names of a CSV file (positions as text where it has no header) and its separator.

    Raises:
        DataError: There is nothing in it, or it cannot be read.
    """
    with _reporting(uri, "csv"):
        found = layout(uri, source)
    if found is None:
        raise DataError(f"{uri}: the file is empty.")
    return found.names, found.separator


def column_names(uri: str, source: TableSource, wanted: Sequence[str | int]) -> list[str] | None:
    """The file's own names of columns given by name or position; None when there is nothing in the file.

    Raises:
        DataError: One is absent, or the file cannot be read.
    """
    kind = file_format(uri, source)
    with _reporting(uri, kind):
        if kind == "jsonl":
            return [str(column) for column in wanted]
        if kind == "parquet":
            with fsspec.open(uri, "rb").open() as file:
                return require_columns(uri, pq.read_schema(file).names, wanted)
        found = layout(uri, source)
        return None if found is None else require_columns(uri, found.names, wanted)


def _read_parquet(uri: str, source: TableSource, columns: Sequence[str | int] | None) -> Iterator[Block]:
    first = 0
    with fsspec.open(uri, "rb").open() as file:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        if len(set(names)) < len(names):
            raise DataError(f"{uri}: two columns have the same name. Its columns: {', '.join(names)}.")
        wanted = require_columns(uri, names, columns)
        for batch in parquet.iter_batches(batch_size=1 << 17, columns=list(dict.fromkeys(wanted))):
            yield Block(pa.Table.from_batches([batch]), np.arange(first, first + batch.num_rows))
            first += batch.num_rows


@contextmanager
def _reporting(uri: str, kind: str) -> Iterator[None]:
    """One message from whatever the libraries below raise about a file's content."""
    try:
        yield
    except (ValueError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        hint = ""
        if "straddling" in str(error):
            hint = " A row is longer than 8 MiB: perhaps a quote is not closed, or `separator` or `format` is wrong."
        raise DataError(f"{uri}: cannot be read as {kind}: {error}.{hint}") from error
    except OSError as error:
        raise DataError(f"{uri}: cannot be read: {error}") from error
