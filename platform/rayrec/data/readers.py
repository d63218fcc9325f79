"""Streaming readers: a file of any format to Arrow tables with the row numbers of its rows."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from rayrec.errors import DataError
from rayrec.recipe import TableSource

BLOCK_BYTES = 8 << 20
SEPARATORS = (",", ";", "\t", "|", "::", " ")
UNIT_SEPARATOR = "\x1f"
NULLS = ["", "NA", "N/A", "NULL", "null", "None", "NaN", "nan"]
FORMATS = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}


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
        first_row: The number of the first row in the file, from 0.
        bad: Rows left out.
    """

    table: pa.Table
    first_row: int
    bad: list[BadRow] = field(default_factory=list)


def read_blocks(uri: str, source: TableSource, columns: Sequence[str | int] | None) -> Iterator[Block]:
    """The rows of a file, block by block; ``columns`` None means all.

    Raises:
        DataError: The file is not what it is said to be, or a column is absent.
    """
    readers = {"csv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet}
    try:
        yield from readers[file_format(uri, source)](uri, source, columns)
    except (pa.ArrowInvalid, EOFError, UnicodeError, LookupError) as error:
        raise DataError(f"{uri}: cannot be read as {file_format(uri, source)}: {error}") from error
    except OSError as error:
        raise DataError(f"{uri}: cannot be read: {error}") from error


def file_format(uri: str, source: TableSource) -> str:
    """``csv``, ``jsonl`` or ``parquet``: as the recipe says, else by the file's name."""
    if source.format != "auto":
        return source.format
    suffixes = [suffix.lower() for suffix in PurePosixPath(uri).suffixes]
    return next((FORMATS[suffix] for suffix in reversed(suffixes) if suffix in FORMATS), "csv")


def header(uri: str, source: TableSource) -> tuple[list[str], str]:
    """The column names of a CSV file (positions as text where it has no header) and its separator."""
    with _open(uri) as file:
        lines = file.read(65536).decode(source.encoding, errors="replace").lstrip("\ufeff").splitlines()
    if not lines:
        raise DataError(f"{uri}: the file is empty.")
    separator = source.separator if source.separator != "auto" else _sniff(lines)
    first = next(iter(_split(lines[0], separator)))
    return (first if source.header else [str(i) for i in range(len(first))]), separator


def require_columns(uri: str, present: Sequence[str], wanted: Sequence[str | int] | None) -> list[str]:
    """The wanted columns by name, checked against those that are there."""
    import difflib

    if wanted is None:
        return list(present)
    names = [present[c] if isinstance(c, int) and c < len(present) else str(c) for c in wanted]
    for name in names:
        if name not in present:
            nearest = difflib.get_close_matches(name, present, n=1, cutoff=0.0)
            hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
            raise DataError(f"{uri}: there is no column '{name}'.{hint} Its columns: {', '.join(present)}.")
    return names


def _open(uri: str) -> IO[bytes]:
    """The decompressed bytes of a file."""
    opened: IO[bytes] = fsspec.open(uri, "rb", compression="infer").open()
    return opened


def _sniff(lines: Sequence[str]) -> str:
    """The separator that splits the first lines into equally many columns, most columns first."""
    sample = [line for line in lines[:-1] or lines if line.strip()][:50]
    widths = {s: [line.count(s) for line in sample] for s in SEPARATORS}
    even = {s: counts[0] for s, counts in widths.items() if counts and min(counts) == max(counts) > 0}
    if even:
        return max(even, key=lambda s: (s != " ", even[s] * len(s)))
    # Quoted text may hold separators: then the first line decides.
    return max(SEPARATORS, key=lambda s: (s != " " and widths[s][0] > 0, widths[s][0]))


def _split(line: str, separator: str) -> Iterator[list[str]]:
    import csv

    if len(separator) > 1:
        yield line.split(separator)
    else:
        yield from csv.reader([line], delimiter=separator)


class _Replacing(io.RawIOBase):
    """A byte stream with a separator of several characters replaced by one that text does not hold."""

    def __init__(self, file: IO[bytes], separator: str) -> None:
        self._file, self._separator, self._rest = file, separator.encode(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = b"".join(self._file.readlines(len(buffer))).replace(self._separator, UNIT_SEPARATOR.encode())
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _read_csv(uri: str, source: TableSource, columns: Sequence[str | int] | None) -> Iterator[Block]:
    names, separator = header(uri, source)
    wanted = require_columns(uri, names, columns)
    bad: list[BadRow] = []

    def refuse(row: Any) -> str:
        reason = f"{row.actual_columns} columns instead of {row.expected_columns}"
        bad.append(BadRow(int(row.number or 0), reason, str(row.text)[:1000]))
        return "skip"

    with _open(uri) as file:
        stream: Any = file if len(separator) == 1 else io.BufferedReader(_Replacing(file, separator))
        reader = pa_csv.open_csv(
            stream,
            pa_csv.ReadOptions(
                use_threads=False,
                block_size=BLOCK_BYTES,
                column_names=names,
                skip_rows=int(source.header),
                encoding=source.encoding.replace("utf-8", "utf8"),
            ),
            pa_csv.ParseOptions(
                delimiter=separator if len(separator) == 1 else UNIT_SEPARATOR, invalid_row_handler=refuse
            ),
            # Binary, so that one broken character costs its row and not the file.
            pa_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.binary()),
                include_columns=wanted,
                null_values=NULLS,
                strings_can_be_null=True,
            ),
        )
        yield from _numbered((pa.Table.from_batches([batch]) for batch in reader), lambda: _drained(bad))


def _read_jsonl(uri: str, source: TableSource, columns: Sequence[str | int] | None) -> Iterator[Block]:
    with _open(uri) as file:
        first_row = 0
        while lines := file.readlines(BLOCK_BYTES):
            table, bad = _parse_json(lines, first_row)
            wanted = require_columns(uri, table.column_names, columns) if table.num_rows else []
            if table.num_rows or bad:
                yield Block(table.select(wanted), first_row, bad)
            first_row += len(lines)


def _parse_json(lines: list[bytes], first_row: int) -> tuple[pa.Table, list[BadRow]]:
    """Fast when every line is well-formed and columns keep their type; else line by line, to leave out only the bad."""
    try:
        return pa_json.read_json(io.BytesIO(b"".join(lines)), pa_json.ReadOptions(use_threads=False)), []
    except pa.ArrowInvalid:
        pass
    good: list[dict[str, Any]] = []
    bad: list[BadRow] = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            good.append({str(k): None if v is None else _as_text(v) for k, v in row.items()})
        else:
            bad.append(BadRow(first_row + number, "not a JSON object", line[:1000].decode(errors="replace")))
    names = list(dict.fromkeys(name for row in good for name in row))
    arrays = [pa.array([row.get(name) for row in good], pa.string()) for name in names]
    return pa.table(arrays, names=names), bad


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _read_parquet(uri: str, source: TableSource, columns: Sequence[str | int] | None) -> Iterator[Block]:
    with fsspec.open(uri, "rb").open() as file:
        parquet = pq.ParquetFile(file)
        wanted = require_columns(uri, parquet.schema_arrow.names, columns)
        batches = parquet.iter_batches(batch_size=1 << 17, columns=list(dict.fromkeys(wanted)))
        yield from _numbered((pa.Table.from_batches([batch]) for batch in batches), list)


def _numbered(tables: Iterator[pa.Table], bad: Callable[[], list[BadRow]]) -> Iterator[Block]:
    first_row = 0
    for table in tables:
        yield Block(table, first_row, bad())
        first_row += table.num_rows
    if rest := bad():
        yield Block(pa.table({}), first_row, rest)


def _drained(rows: list[BadRow]) -> list[BadRow]:
    taken = rows.copy()
    rows.clear()
    return taken
