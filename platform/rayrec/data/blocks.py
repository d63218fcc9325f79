"""What every reader gives: rows of a file, with their numbers, and the rows that are none."""

from __future__ import annotations

import codecs
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

import fsspec
import numpy as np
import pyarrow as pa

from rayrec.errors import DataError

BLOCK_BYTES = 8 << 20
BROKEN = "\ufdd0"
"""Stands where CSV was no UTF-8: a code point that Unicode keeps out of text, for programs' own use."""


@dataclass
class BadRow:
    """A row that is not even a row: its number in the file, what is wrong, and its text."""

    row: int
    reason: str
    text: str


@dataclass
class Block:
    """Consecutive rows of a file.

    Attributes:
        table: The wanted columns. CSV gives binary columns (not yet known to be text), the others typed ones.
        rows: ``[N]`` int64, the number of each row in the file, from 0; ascending. Of JSON lines that is the line.
        bad: Rows left out.
        columns: Of JSON lines: every column that a row of this block has, wanted or not. Wanted ones that none has
            are null in ``table``.
    """

    table: pa.Table
    rows: np.ndarray
    bad: list[BadRow] = field(default_factory=list)
    columns: tuple[str, ...] | None = None


def open_file(uri: str) -> IO[bytes]:
    """The decompressed bytes of a file."""
    opened: IO[bytes] = fsspec.open(uri, "rb", compression="infer").open()
    return opened


def codec(encoding: str) -> str:
    """The one name of an encoding that has many.

    Raises:
        DataError: Python knows no such encoding.
    """
    try:
        return codecs.lookup(encoding).name
    except LookupError as error:
        raise DataError(f"encoding: '{encoding}' is not known. Use utf-8, latin-1, cp1252 or utf-16.") from error


def require_columns(uri: str, present: Sequence[str], wanted: Sequence[str | int] | None) -> list[str]:
    """The wanted columns by name, checked against those that are there; None means all.

    Raises:
        DataError: One is absent.
    """
    if wanted is None:
        return list(present)
    names = []
    for column in wanted:
        if isinstance(column, int) and not 0 <= column < len(present):
            columns = f"{len(present)} column{'s' * (len(present) != 1)}, from 0"
            raise DataError(f"{uri}: there is no column at position {column}. It has {columns}: {', '.join(present)}.")
        name = present[column] if isinstance(column, int) else column
        if name not in present:
            nearest = difflib.get_close_matches(name, present, n=1, cutoff=0.0)
            hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
            raise DataError(f"{uri}: there is no column '{name}'.{hint} Its columns: {', '.join(present)}.")
        names.append(name)
    return names
