"""Columnar files: the same rows, whoever wrote them, in blocks of bounded size; damage is one message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather, orc

from rayrec.data import blocks
from rayrec.data.blocks import Block
from rayrec.data.cleaning import column_as_text
from rayrec.data.readers import all_columns, column_names, read_blocks
from rayrec.errors import DataError
from rayrec.recipe_data import TableSource

Writer = Callable[[pa.Table, str], None]
TABLE = pa.table({"user": [f"u{n}" for n in range(1000)], "junk": ["x" * 50] * 1000, "item": range(1000)})


def write_stream(table: pa.Table, path: str) -> None:
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def write_orc(table: pa.Table, path: str) -> None:
    orc.write_table(table, path, stripe_size=4096, batch_size=64)


WRITERS: dict[str, Writer] = {
    "log.parquet": pq.write_table,
    "log.orc": write_orc,
    "log.feather": feather.write_feather,
    "log.arrow": lambda table, path: pl.DataFrame(table).write_ipc(path),  # type: ignore[arg-type]
    "stream.arrow": write_stream,
}
every_format = pytest.mark.parametrize("name", WRITERS)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, pa.Table], str]:
    def write(name: str, table: pa.Table) -> str:
        WRITERS[name](table, str(tmp_path / name))
        return str(tmp_path / name)

    return write


Write = Callable[[str, pa.Table], str]


def read(path: str, columns: list[str | int] | None = None, **options: Any) -> list[Block]:
    return list(read_blocks(path, TableSource(path=path, **options), columns))


@every_format
def test_wanted_columns_come_in_blocks_of_bounded_size(
    write: Write, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4096)
    path = write(name, TABLE)
    found = read(path, [2, "user", "user"])
    assert len(found) > 3
    assert max(block.table.nbytes for block in found) < 3 * 4096
    rows = [row for block in found for row in block.table.to_pylist()]
    assert [(row["user"], row["item"]) for row in rows] == [(f"u{n}", n) for n in range(1000)]
    assert {key for row in rows for key in row} == {"user", "item"}
    assert np.concatenate([block.rows for block in found]).tolist() == list(range(1000))


@every_format
def test_columns_are_known_and_checked(write: Write, name: str) -> None:
    path = write(name, TABLE)
    assert all_columns(path, TableSource(path=path)) == ["user", "junk", "item"]
    assert column_names(path, TableSource(path=path), [2]) == ["item"]
    with pytest.raises(DataError, match=r"no column 'users'. Did you mean 'user'\? Its columns: user, junk, item"):
        read(path, ["users"])


@every_format
def test_a_table_without_rows_gives_none(write: Write, name: str) -> None:
    path = write(name, TABLE.slice(0, 0))
    assert read(path) == []
    assert column_names(path, TableSource(path=path), ["user"]) == ["user"]


@every_format
def test_a_file_cut_off_or_of_another_kind_is_one_message(write: Write, name: str) -> None:
    path = Path(write(name, TABLE))
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:-3] + b"xxx", b"user,item\na,x\n", b"A", b"PK\3\4" * 100):
        path.write_bytes(damaged)
        if name != "stream.arrow" or damaged[-3:] != b"xxx":  # the last bytes of a stream only say that it ends
            with pytest.raises(DataError, match="cannot be read"):
                read(str(path))


def test_arrow_offsets_that_lead_out_of_the_file_are_one_message(tmp_path: Path) -> None:
    offsets = pa.py_buffer(np.array([0, 1 << 30, 2], np.int32))
    array = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"ab")])
    write_stream(pa.table({"user": array}), str(tmp_path / "log.arrow"))
    with pytest.raises(DataError, match="cannot be read as arrow"):
        read(str(tmp_path / "log.arrow"))


def test_broken_text_in_a_typed_column_costs_its_row_and_not_the_file(write: Write) -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"a"], pa.binary()).buffers())
    (block,) = read(write("log.parquet", pa.table({"user": broken})))
    assert column_as_text(block.table["user"]).to_pylist() == [None, "a"]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array(["a", None], pa.string_view()), ["a", None]),
        (pa.array(["a", None], pa.string_view()).dictionary_encode(), ["a", None]),
        (pa.array([b"a", None], pa.binary_view()), ["a", None]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.RunEndEncodedArray.from_arrays([1, 2], ["a", "b"]), ["a", "b"]),
        (pa.array([UUID(int=10), None]), ["00000000-0000-0000-0000-00000000000a", None]),
        (pa.array(["[1]", None], pa.json_()), ["[1]", None]),
    ],
    ids=str,
)
def test_arrows_rarer_types_are_understood(write: Write, array: pa.Array, expected: list[str | None]) -> None:
    (block,) = read(write("stream.arrow", pa.table({"user": array})))
    assert column_as_text(block.table["user"]).to_pylist() == expected
