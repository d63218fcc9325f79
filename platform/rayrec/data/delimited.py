"""CSV and its kin: columns between separators, perhaps quoted, perhaps without a header."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from rayrec.data import blocks
from rayrec.data.blocks import CUT, TOO_LONG, BadRow, Block, Transcoded, codec, open_file, readable, require_columns
from rayrec.recipe_data import TableSource

SEPARATORS = (",", ";", "\t", "|", "::", " ")
UNIT_SEPARATOR = "\x1f"
SAMPLE_BYTES = 1 << 16
LINE_END = re.compile(b"[\r\n]")
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Layout:
    """How a file is laid out, from its first lines.

    Attributes:
        names: The columns; positions as text where there is no header. Of repeated names the later ones get a number.
        separator: Between columns.
        quoted: Whether a field may stand in quotes.
        skipped: Lines before the first row: blank ones and the header.
        has_rows: Whether anything follows them.
    """

    names: list[str]
    separator: str
    quoted: bool
    skipped: int
    has_rows: bool


def layout(uri: str, source: TableSource) -> Layout | None:
    """How a file is laid out; None when there is nothing in it."""
    with open_file(uri) as file:
        start = file.read(SAMPLE_BYTES)
    text = start.decode(codec(source.encoding), errors="replace").lstrip(BYTE_ORDER_MARK)
    lines = re.split("\r\n|\r|\n", text)
    blank = next((number for number, line in enumerate(lines) if line.strip()), None)
    if blank is None:
        return None
    # The last line of a sample may be cut off in the middle.
    whole = lines[blank:-1] if len(start) == SAMPLE_BYTES and len(lines) - blank > 1 else lines[blank:]
    separator = source.separator if source.separator != "auto" else _sniff(whole)
    quoted = _quotes(whole, separator)
    first = _split(whole[0], separator, quoted)
    names = _unique(first) if source.header else [str(i) for i in range(len(first))]
    has_rows = not source.header or len(start) == SAMPLE_BYTES or any(line.strip() for line in whole[1:])
    return Layout(names, separator, quoted, blank + int(source.header), has_rows)


def read_csv(uri: str, source: TableSource, columns: Sequence[str | int] | None) -> Iterator[Block]:
    """See `rayrec.data.readers.read_blocks`."""
    found = layout(uri, source)
    if found is None or not found.has_rows:
        return
    wanted = require_columns(uri, found.names, columns)
    numbers = _Numbers(found, source.header)
    single = len(found.separator.encode()) == 1
    with open_file(uri) as file:
        stream: Any = io.BufferedReader(_Lines(file, codec(source.encoding)), blocks.BLOCK_BYTES)
        stream = stream if single else io.BufferedReader(_Replacing(stream, found.separator))
        reader = pa_csv.open_csv(
            stream,
            pa_csv.ReadOptions(
                use_threads=False,
                block_size=blocks.BLOCK_BYTES,
                column_names=found.names,
                skip_rows=found.skipped,
            ),
            pa_csv.ParseOptions(
                delimiter=found.separator if single else UNIT_SEPARATOR,
                quote_char='"' if found.quoted else False,
                newlines_in_values=found.quoted,
                invalid_row_handler=numbers.refuse,
            ),
            # Binary, as many columns are no text in the end. Only the empty field is null: "NA"
            # and "null" may well be somebody's key; what they mean elsewhere is decided in cleaning.
            pa_csv.ConvertOptions(
                column_types=dict.fromkeys(found.names, pa.binary()),
                include_columns=list(dict.fromkeys(wanted)),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        for batch in reader:
            yield numbers.block(pa.Table.from_batches([batch]))
        if numbers.bad:
            yield numbers.block(pa.table({}))


class _Numbers:
    """Which rows of the file the good ones are: Arrow numbers only those that it refuses."""

    def __init__(self, found: Layout, header: bool) -> None:
        self._found, self._header, self._next = found, header, 0
        self.bad: list[BadRow] = []

    def refuse(self, row: Any) -> str:
        reason = f"{row.actual_columns} columns instead of {row.expected_columns}"
        reason = TOO_LONG if CUT in row.text else reason
        text = readable(row.text).replace(UNIT_SEPARATOR, self._found.separator)
        # Arrow counts from 1, and what was skipped too.
        self.bad.append(BadRow(int(row.number) - 1 - self._found.skipped, reason, text))
        return "skip"

    def block(self, table: pa.Table) -> Block:
        """The next good rows, with the bad ones among them; the reader may be ahead with later bad ones."""
        bad = np.array([row.row for row in self.bad], np.int64)
        candidates = np.arange(self._next, self._next + table.num_rows + len(bad))
        rows = candidates[~np.isin(candidates, bad)][: table.num_rows]
        end = int(rows[-1]) + 1 if len(rows) else self._next + len(bad)
        among = [row for row in self.bad if row.row < end or not len(rows)]
        self.bad = [row for row in self.bad if row.row >= end and len(rows)]
        self._next = end
        headers = _headers(table, self._found.names[0]) if self._header else np.empty(0, np.int64)
        if len(headers):
            header = self._found.separator.join(self._found.names)
            among += [BadRow(int(row), "the header once more", header) for row in rows[headers]]
            rows, table = np.delete(rows, headers), table.take(np.delete(np.arange(len(rows)), headers))
        return Block(table, rows, among)


def _headers(table: pa.Table, first: str) -> np.ndarray:
    """Positions of the rows that say the names of the columns, as where files were put together: ``[H]`` int64."""
    found = np.arange(table.num_rows)
    # The later columns first: they leave hardly a row to look at.
    for name in reversed(table.column_names):
        column = table[name] if len(found) == table.num_rows else table[name].take(pa.array(found))
        words = [name, BYTE_ORDER_MARK + name] if name == first else [name]
        same = [pc.fill_null(pc.equal(column, word.encode()), False).to_numpy() for word in words]
        found = found[np.logical_or.reduce(same)]
    return found


class _Lines(Transcoded):
    """A file in UTF-8 whose lines are cut off where they get too long: Arrow gives up on a file with such a row.

    A quote that is open where the line is cut is closed, if the rest of the line would have closed it.
    """

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        super().__init__(file, encoding)
        self._limit = blocks.BLOCK_BYTES // 2
        self._length, self._cut, self._quotes = 0, False, 0

    def changed(self, text: bytes, final: bool) -> bytes:
        kept: list[bytes] = []
        start = at = 0
        while at < len(text):
            if not self._cut:
                at = self._whole(text, at)
                kept += [text[start:at]] if self._cut else []
            else:
                found = LINE_END.search(text, at)
                start = found.start() if found else len(text)
                self._quotes += text.count(b'"', at, start)
                kept += [self._closed()] if found else []
                at = start
        kept += [self._closed()] if final and self._cut else []
        return b"".join([*kept, text[start:]]) if kept or start else text

    def _whole(self, text: bytes, at: int) -> int:
        """Up to where lines are whole, or one is to be cut."""
        end = at + self._limit - self._length
        line = 1 + max(text.rfind(b"\n", at, end), text.rfind(b"\r", at, end))
        if end >= len(text):
            self._length = len(text) - line if line else self._length + len(text) - at
            return len(text)
        if line:
            self._length = 0
            return line
        while text[end] & 0xC0 == 0x80:  # in the middle of a character
            end -= 1
        self._length, self._cut, self._quotes = 0, True, 0
        return end

    def _closed(self) -> bytes:
        self._cut = False
        return CUT.encode() + b'"' * (self._quotes % 2)


class _Replacing(io.RawIOBase):
    """A byte stream with a separator of several characters replaced by one that text does not hold."""

    def __init__(self, file: IO[bytes], separator: str) -> None:
        self._file, self._rest = file, b""
        self._separator = separator.encode()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = b"".join(self._file.readlines(len(buffer))).replace(self._separator, UNIT_SEPARATOR.encode())
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _sniff(lines: Sequence[str]) -> str:
    """The separator that splits the first lines into equally many columns, most columns first."""
    sample = [line for line in lines if line.strip()][:50]
    widths = {s: [len(_split(line, s, quoted=len(s) == 1)) - 1 for line in sample] for s in SEPARATORS}
    even = {s: counts[0] for s, counts in widths.items() if min(counts) == max(counts) > 0}
    if even:
        return max(even, key=lambda s: (s != " ", even[s] * len(s)))
    # Broken rows: then the first line decides.
    return max(SEPARATORS, key=lambda s: (s != " " and widths[s][0] > 0, widths[s][0]))


def _quotes(lines: Sequence[str], separator: str) -> bool:
    """Whether quotes enclose fields, or are part of the text.

    In CSV they do (RFC 4180). Tables with other separators mostly do without, and a title that begins with a quote
    would swallow the rows after it: there every quoted field of the sample has to be closed where it should be.
    """
    if separator in {",", ";"}:
        return True
    if len(separator) > 1:
        return False
    text, mark = "\n".join(lines), re.escape(separator)
    opened = len(re.findall(rf'(?:^|{mark})"', text, re.MULTILINE))
    closed = len(re.findall(rf'(?:^|(?<={mark}))"(?:[^"]|"")*"(?={mark}|$)', text, re.MULTILINE))
    return opened == closed > 0


def _split(line: str, separator: str, quoted: bool) -> list[str]:
    if not quoted or len(separator) > 1:
        return line.split(separator)
    return next(csv.reader([line], delimiter=separator), [""])


def _unique(names: Sequence[str]) -> list[str]:
    """Repeated names made different, so that every column can be meant: by position, or by the name shown."""
    taken: dict[str, None] = {}
    for name in names:
        unique, number = name, 1
        while unique in taken:
            unique, number = f"{name}.{number}", number + 1
        taken[unique] = None
    return list(taken)
