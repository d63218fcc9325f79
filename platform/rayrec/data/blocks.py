"""What every reader gives: rows of a file, with their numbers, and the rows that are none."""

from __future__ import annotations

import codecs
import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any, cast

import fsspec
import numpy as np
import pyarrow as pa

from rayrec.errors import DataError

BLOCK_BYTES = 8 << 20
BROKEN = "\ufdd0"
"""Stands where a file was no text: a code point that Unicode keeps out of text, for programs' own use."""
CUT = BROKEN + "\ufdd1"
"""Stands at the end of a line that was too long."""
TOO_LONG = "line too long"


def readable(text: str) -> str:
    """Text as it is shown to people: without marks, and not longer than they read."""
    return text[:1000].replace(CUT, " ...").replace(BROKEN, "\ufffd")


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
        # Python also has codecs that are not of text.
        "".encode(encoding)
        return codecs.lookup(encoding).name
    except (LookupError, UnicodeError) as error:
        raise DataError(f"encoding: '{encoding}' is not known. Use utf-8, latin-1, cp1252 or utf-16.") from error


codecs.register_error("rayrec.mark", lambda error: (BROKEN, cast("UnicodeDecodeError", error).end))


class Transcoded(io.RawIOBase):
    """A file in UTF-8, with `BROKEN` where it was no text.

    So that one broken character costs its row and not the file: Arrow gives up on a row that is both broken text and
    of the wrong width, as a line cut off in the middle is.
    """

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self._file, self._rest = file, b""
        self._decoder = codecs.getincrementaldecoder(encoding)("rayrec.mark")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase.readinto`."""
        chunk = b"-"
        while chunk and not self._rest:
            chunk = self._file.read(len(buffer))
            self._rest = self.changed(self._decoder.decode(chunk, final=not chunk).encode(), final=not chunk)
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def changed(self, text: bytes, final: bool) -> bytes:
        """The next whole characters, as they are to be."""
        return text


def require_columns(uri: str, present: Sequence[str], wanted: Sequence[str | int] | None) -> list[str]:
    """The wanted columns by name, checked against those that are there; None means all.

    Raises:
        DataError: One is absent.
    """
    if wanted is None:
        return list(present)
    names, shown = [], _shown(", ".join(present))
    for column in wanted:
        if isinstance(column, int) and not 0 <= column < len(present):
            columns = f"{len(present)} column{'s' * (len(present) != 1)}, from 0"
            raise DataError(f"{uri}: there is no column at position {column}. It has {columns}: {shown}.")
        name = present[column] if isinstance(column, int) else column
        if name not in present:
            nearest = difflib.get_close_matches(name, present, n=1, cutoff=0.0)
            hint = f" Did you mean '{_shown(nearest[0])}'?" if nearest else ""
            raise DataError(f"{uri}: there is no column '{name}'.{hint} Its columns: {shown}.")
        names.append(name)
    return names


def _shown(text: str) -> str:
    """For a message, however long it is: what is no table may look like one with a thousand columns."""
    return text if len(text) <= 500 else f"{text[:500]} ..."
