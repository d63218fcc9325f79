"""JSON lines: one object a line, whose keys and types may change from line to line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from rayrec.data import blocks
from rayrec.data.blocks import BROKEN, BadRow, Block, Transcoded, codec, open_file, readable
from rayrec.errors import DataError
from rayrec.recipe_data import TableSource

EXACT_FLOATS = float(1 << 53)
"""From here on floats leave out integers: an id that large must not become one."""

NESTED = 100
"""Brackets in a line that may well be nested; more of them are not given to Arrow, which may run out of stack."""

TOGETHER, SPARSE = 4000, 64
"""Lines that Arrow gets at a time, and how many times their size it may make of them.

It gives every row the keys of all the others, and there may be as many keys as rows.
"""

LONGEST_LINE = 64 << 20
"""Bytes: a file of one line must not fill the memory."""

NAMED = 100
"""Columns that a block names besides the wanted ones."""


def read_jsonl(uri: str, source: TableSource, columns: Sequence[str | int] | None) -> Iterator[Block]:
    """See `rayrec.data.readers.read_blocks`."""
    positions = [column for column in columns or () if isinstance(column, int)]
    if positions:
        raise DataError(f"{uri}: there is no column '{positions[0]}': JSON has no positions, give the column's name.")
    wanted = None if columns is None else [str(column) for column in columns]
    first, encoding = 0, codec(source.encoding)
    with open_file(uri) as file:
        text: Any = file if encoding.startswith("utf-8") else io.BufferedReader(Transcoded(file, encoding))
        for lines in _lines(text):
            yield _selected(_parsed(lines, first, wanted), wanted)
            first += len(lines)


def _lines(file: IO[bytes]) -> Iterator[list[bytes]]:
    """The lines of a file, about a block at a time.

    Raises:
        ValueError: There is hardly any line in it, as where all objects are in one list.
    """
    rest = b""
    while chunk := file.read(blocks.BLOCK_BYTES):
        rest += chunk
        end = rest.rfind(b"\n") + 1
        if end:
            yield io.BytesIO(rest[:end]).readlines()
            rest = rest[end:]
        elif len(rest) > LONGEST_LINE:
            raise ValueError(f"a line is longer than {LONGEST_LINE >> 20} MiB. JSON lines have one object in each line")
    if rest:
        yield [rest]


def _selected(block: Block, wanted: Sequence[str] | None) -> Block:
    """The wanted columns. One that no row of this block has may be in the next: here it is null."""
    if wanted is None or block.columns is None:
        return block
    present, nothing = block.table.column_names, pa.nulls(len(block.rows), pa.string())
    table = pa.table({name: block.table[name] if name in present else nothing for name in wanted})
    others = [name for name in block.columns if name not in wanted][:NAMED]
    return Block(table, block.rows, block.bad, (*present, *others))


def _parsed(lines: list[bytes], first: int, wanted: Sequence[str] | None) -> Block:
    """Fast when every line is well-formed and columns keep their type; else line by line, to leave out only the bad."""
    if not first and lines[0].startswith(b"\xef\xbb\xbf"):
        lines = [lines[0][3:] or b"\n", *lines[1:]]
    return _parsed_fast(lines, first, wanted) or _parsed_by_line(lines, first, wanted)


def _parsed_fast(lines: list[bytes], first: int, wanted: Sequence[str] | None) -> Block | None:
    """None where Arrow would refuse the lines, or read something else than what they say."""
    filled = np.array([not line.isspace() for line in lines])
    tables, names = [], dict[str, None]()
    try:
        for start in range(0, len(lines), TOGETHER):
            end = start + TOGETHER
            table = _read(lines[start:end], int(filled[start:end].sum()), wanted)
            names |= dict.fromkeys(table.column_names)
            tables.append(table if wanted is None else table.select([n for n in wanted if n in table.column_names]))
        together = pa.concat_tables(tables, promote_options="permissive")
    except (ValueError, pa.ArrowTypeError):  # Arrow's, broken UTF-8, and what `_read` refuses
        return None
    exact = all(_exact(column) for column in together.columns)
    return Block(together, np.flatnonzero(filled) + first, columns=tuple(names)) if exact else None


def _read(lines: list[bytes], rows: int, wanted: Sequence[str] | None) -> pa.Table:
    """Some lines, ``rows`` of them not blank, read by Arrow.

    Raises:
        ValueError: It cannot do so, or better not.
    """
    data = b"".join(lines)
    data.decode()
    if BROKEN.encode() in data or not _harmless(data, lines, rows):
        raise ValueError("not for Arrow")
    options = pa_json.ReadOptions(use_threads=False, block_size=len(data) + 1)
    table = pa_json.read_json(pa.BufferReader(data), options)
    # Arrow loses the first null of a list (https://github.com/apache/arrow/issues/51305).
    table.validate()
    if table.num_rows != rows or table.nbytes > SPARSE * len(data):
        raise ValueError("several objects in a line, or too many keys")
    # Arrow takes text that looks like a time for one, and "2024-01-01" may be a key or a title.
    fields = [field for field in table.schema if wanted is None or field.name in wanted]
    texts = [(field.name, pa.string()) for field in fields if pa.types.is_timestamp(field.type)]
    if not texts:
        return table
    as_text = pa_json.ParseOptions(explicit_schema=pa.schema(texts))
    return pa_json.read_json(pa.BufferReader(data), options, as_text)


def _harmless(data: bytes, lines: list[bytes], rows: int) -> bool:
    """Whether Arrow can read lines. Some end the process: a null first, or what is nested deeply."""
    characters = np.frombuffer(data, np.uint8)
    braces = characters == ord("{")
    objects = int(braces[0]) + np.count_nonzero(braces[1:] & (characters[:-1] == ord("\n")))
    brackets = np.count_nonzero(braces) + np.count_nonzero(characters == ord("["))
    flat = brackets <= len(lines) + NESTED or max(line.count(b"[") + line.count(b"{") for line in lines) <= NESTED
    return bool(objects == rows and flat)


def _exact(column: pa.ChunkedArray) -> bool:
    if pa.types.is_list(column.type):
        return not pa.types.is_timestamp(column.type.value_type) and _exact(pc.list_flatten(column))
    if pa.types.is_struct(column.type):
        # Arrow would give every object the keys of all of them.
        return False
    return not pa.types.is_floating(column.type) or (pc.max(pc.abs(column)).as_py() or 0) < EXACT_FLOATS


def _parsed_by_line(lines: list[bytes], first: int, wanted: Sequence[str] | None) -> Block:
    good: list[dict[str, str | None]] = []
    rows: list[int] = []
    bad: list[BadRow] = []
    for number, line in enumerate(lines, start=first):
        if line.isspace():
            continue
        row = _row(line, wanted)
        if isinstance(row, str):
            bad.append(BadRow(number, row, readable(line[:1000].decode(errors="replace")).rstrip("\r\n")))
        else:
            good.append(row)
            rows.append(number)
    names = dict.fromkeys(name for row in good for name in row)
    columns = {n: [row.get(n) for row in good] for n in names if wanted is None or n in wanted}
    table = pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
    return Block(table, np.array(rows, np.int64), bad, tuple(names))


def _row(line: bytes, wanted: Sequence[str] | None) -> dict[str, str | None] | str:
    """What a line says, or why that is no row."""
    if BROKEN.encode() in line:
        return "broken UTF-8"
    try:
        parsed = json.loads(line.decode())
        if isinstance(parsed, dict):
            named = ((str(_as_text(name)), value) for name, value in parsed.items())
            return {name: _as_text(value) if wanted is None or name in wanted else None for name, value in named}
    except UnicodeDecodeError:
        return "broken UTF-8"
    except (ValueError, RecursionError):
        pass
    return "not a JSON object"


def _as_text(value: Any) -> str | None:
    """As Arrow writes it: 1.0 and 1 are the same key."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return None
    if isinstance(value, str):
        # A lone surrogate ("\ud800") is no text that can be stored.
        return value.encode(errors="replace").decode()
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < EXACT_FLOATS
        # Python writes 1e-07 where Arrow writes 1e-7.
        return str(int(value)) if whole else str(pa.scalar(value).cast(pa.string()))
    return json.dumps(value, ensure_ascii=False).encode(errors="replace").decode()
