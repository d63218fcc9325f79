"""JSON lines: one object a line, whose keys and types may change from line to line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from rayrec.data import blocks
from rayrec.data.blocks import BadRow, Block, codec, open_file
from rayrec.errors import DataError
from rayrec.recipe_data import TableSource

EXACT_FLOATS = float(1 << 53)
"""From here on floats leave out integers: an id that large must not become one."""


def read_jsonl(uri: str, source: TableSource, columns: Sequence[str | int] | None) -> Iterator[Block]:
    """See `rayrec.data.readers.read_blocks`."""
    positions = [column for column in columns or () if isinstance(column, int)]
    if positions:
        raise DataError(f"{uri}: there is no column '{positions[0]}': JSON has no positions, give the column's name.")
    first = 0
    with open_file(uri) as file:
        while lines := file.readlines(blocks.BLOCK_BYTES):
            if codec(source.encoding) not in {"utf-8", "utf-8-sig"}:
                lines = [line.decode(source.encoding).encode() for line in lines]
            yield _selected(_parsed(lines, first), columns)
            first += len(lines)


def _selected(block: Block, columns: Sequence[str | int] | None) -> Block:
    """The wanted columns. One that no row of this block has may be in the next: here it is null."""
    if columns is None:
        return block
    present, nothing = block.table.column_names, pa.nulls(len(block.rows), pa.string())
    wanted = {str(column): block.table[column] if column in present else nothing for column in columns}
    return Block(pa.table(wanted), block.rows, block.bad, tuple(present))


def _parsed(lines: list[bytes], first: int) -> Block:
    """Fast when every line is well-formed and columns keep their type; else line by line, to leave out only the bad."""
    if not first and lines[0].startswith(b"\xef\xbb\xbf"):
        lines = [lines[0][3:], *lines[1:]]
    rows = np.flatnonzero([not line.isspace() for line in lines]) + first
    table = _parsed_fast(b"".join(lines))
    if table is not None and table.num_rows == len(rows):
        return Block(table, rows)
    return _parsed_by_line(lines, first)


def _parsed_fast(data: bytes) -> pa.Table | None:
    """None where Arrow would refuse the lines, or read something else than what they say."""
    options = pa_json.ReadOptions(use_threads=False, block_size=len(data) + 1)
    try:
        data.decode()
        table = pa_json.read_json(io.BytesIO(data), options)
        # Arrow takes text that looks like a time for one, and "2024-01-01" may be a key or a title.
        texts = [field for field in table.schema if pa.types.is_timestamp(field.type)]
        if texts:
            schema = pa.schema([(field.name, pa.string()) for field in texts])
            table = pa_json.read_json(io.BytesIO(data), options, pa_json.ParseOptions(explicit_schema=schema))
    except ValueError:  # Arrow's and broken UTF-8
        return None
    return table if all(_exact(column) for column in table.columns) else None


def _exact(column: pa.ChunkedArray) -> bool:
    if pa.types.is_struct(column.type):
        # Arrow would give every object the keys of all of them.
        return False
    return not pa.types.is_floating(column.type) or (pc.max(pc.abs(column)).as_py() or 0) < EXACT_FLOATS


def _parsed_by_line(lines: list[bytes], first: int) -> Block:
    good: list[dict[str, Any]] = []
    rows: list[int] = []
    bad: list[BadRow] = []
    for number, line in enumerate(lines, start=first):
        if line.isspace():
            continue
        try:
            parsed, reason = json.loads(line.decode()), "not a JSON object"
        except UnicodeDecodeError:
            parsed, reason = None, "broken UTF-8"
        except (ValueError, RecursionError):
            parsed, reason = None, "not a JSON object"
        if isinstance(parsed, dict):
            good.append({str(_as_text(name)): value for name, value in parsed.items()})
            rows.append(number)
        else:
            bad.append(BadRow(number, reason, line[:1000].decode(errors="replace").rstrip("\r\n")))
    names = list(dict.fromkeys(name for row in good for name in row))
    columns = [_column([row.get(name) for row in good]) for name in names]
    return Block(pa.table(columns, names=names), np.array(rows, np.int64), bad)


def _column(values: list[Any]) -> pa.Array:
    """Lists as lists of text, anything else as text."""
    if any(isinstance(value, list) for value in values):
        lists = [value if isinstance(value, list | None) else [value] for value in values]
        return pa.array([v and [_as_text(part) for part in v] for v in lists], pa.list_(pa.string()))
    return pa.array([_as_text(value) for value in values], pa.string())


def _as_text(value: Any) -> str | None:
    """As Arrow writes it: 1.0 and 1 are the same key."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return None
    if isinstance(value, str):
        # A lone surrogate ("\ud800") is no text that can be stored.
        return value.encode(errors="replace").decode()
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT_FLOATS:
        return str(int(value))
    return json.dumps(value, ensure_ascii=False).encode(errors="replace").decode()
