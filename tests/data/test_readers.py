"""Readers: every row of a file of any kind comes out once, with its number, or is set aside with a reason."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrec.data import blocks
from rayrec.data.blocks import Block
from rayrec.data.readers import column_names, header, read_blocks
from rayrec.errors import DataError
from rayrec.recipe_data import TableSource

Write = Callable[..., str]
COLUMNS = ["user", "item", "time"]
HEADER = "user,item,time\n"
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str | bytes, name: str = "log.csv") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def read(path: str, columns: list[str | int] | None = None, **options: Any) -> list[Block]:
    return list(read_blocks(path, TableSource(path=path, **options), columns))


def plain(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def rows(found: list[Block]) -> list[tuple[Any, ...]]:
    return [tuple(plain(value) for value in row.values()) for block in found for row in block.table.to_pylist()]


def numbers(found: list[Block]) -> list[int]:
    return [int(number) for block in found for number in block.rows]


def bad(found: list[Block]) -> list[tuple[int, str]]:
    return [(row.row, row.reason) for block in found for row in block.bad]


# ---- CSV


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "::", " "])
def test_the_separator_is_found_from_the_first_lines(write: Write, separator: str) -> None:
    path = write(f"{HEADER}a,x,1\nb,y,2\n".replace(",", separator))
    assert rows(read(path)) == [("a", "x", "1"), ("b", "y", "2")]
    assert header(path, TableSource(path=path)) == (COLUMNS, separator)


@pytest.mark.parametrize("separator", [",", "::"])
def test_without_a_header_columns_go_by_position(write: Write, separator: str) -> None:
    path = write("a,x,1\nb,y,2\n".replace(",", separator))
    assert rows(read(path, [2, 0], header=False)) == [("1", "a"), ("2", "b")]


def test_any_text_can_be_the_separator(write: Write) -> None:
    assert rows(read(write("a§x\nb§y\n"), header=False, separator="§")) == [("a", "x"), ("b", "y")]
    assert rows(read(write("a<>x\nb<>y\n"), header=False, separator="<>")) == [("a", "x"), ("b", "y")]


def test_quoted_fields_hold_separators_quotes_and_line_breaks(write: Write) -> None:
    path = write(HEADER + 'a,"x, ""the"" y\nz",1\nb,"",2\n')
    assert rows(read(path)) == [("a", 'x, "the" y\nz', "1"), ("b", None, "2")]


def test_a_separator_inside_quotes_does_not_mislead(write: Write) -> None:
    path = write('id;title\n1;"a, b, c"\n2;"d, e"\n')
    assert rows(read(path)) == [("1", "a, b, c"), ("2", "d, e")]


@pytest.mark.parametrize("separator", ["\t", "::"])
def test_in_other_tables_a_quote_is_part_of_the_text(write: Write, separator: str) -> None:
    content = 'id,title\n1,"Great" Cats\n2,"open\n3,z\n'.replace(",", separator)
    assert rows(read(write(content))) == [("1", '"Great" Cats'), ("2", '"open'), ("3", "z")]


def test_a_tab_separated_table_that_quotes_well_is_unquoted(write: Write) -> None:
    assert rows(read(write('id\ttitle\n1\t"a\tb"\n2\tc\n'))) == [("1", "a\tb"), ("2", "c")]


def test_an_unclosed_quote_costs_rows_but_they_are_reported(write: Write) -> None:
    found = read(write(HEADER + 'a,"open,1\nb,y,2\n'))
    assert rows(found) == []
    assert bad(found) == [(0, "2 columns instead of 3")]


@pytest.mark.parametrize(
    "content",
    [
        (HEADER + "a,x,1\nb,y,2\n").replace("\n", "\r\n"),
        HEADER + "a,x,1\nb,y,2",
        "\ufeff" + HEADER + "a,x,1\nb,y,2\n",
        "\n\n" + HEADER + "a,x,1\n\nb,y,2\n\n",
    ],
    ids=["CR LF", "no newline at the end", "byte order mark", "blank lines"],
)
def test_how_lines_end_and_files_begin_does_not_matter(write: Write, content: str) -> None:
    found = read(write(content), COLUMNS)
    assert rows(found) == [("a", "x", "1"), ("b", "y", "2")]
    assert numbers(found) == [0, 1]


def test_a_byte_order_mark_before_data_is_no_data(write: Write) -> None:
    assert rows(read(write("\ufeffa,x\nb,y\n"), header=False)) == [("a", "x"), ("b", "y")]
    assert rows(read(write("\ufeffa::x\nb::y\n"), header=False)) == [("a", "x"), ("b", "y")]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "UTF-8", "utf-8-sig"])
def test_other_encodings_are_read(write: Write, encoding: str) -> None:
    path = write((HEADER + "é,ü,1\n").encode(encoding))
    assert rows(read(path, COLUMNS, encoding=encoding)) == [("é", "ü", "1")]


def test_an_unknown_encoding_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match="encoding: 'klingon' is not known"):
        read(write(HEADER + "a,x,1\n"), encoding="klingon")


def test_rows_with_a_wrong_number_of_columns_are_set_aside_with_their_number(write: Write) -> None:
    found = read(write(HEADER + "a,x,1\nb,y\nc,z,3,4\nd,w,5\n"))
    assert rows(found) == [("a", "x", "1"), ("d", "w", "5")]
    assert numbers(found) == [0, 3]
    assert bad(found) == [(1, "2 columns instead of 3"), (2, "4 columns instead of 3")]
    assert [row.text for block in found for row in block.bad] == ["b,y", "c,z,3,4"]


def test_the_text_of_a_bad_row_has_its_own_separator(write: Write) -> None:
    found = read(write("a::x::1\nb::y\n"), header=False)
    assert [(row.row, row.text) for block in found for row in block.bad] == [(1, "b::y")]


def test_a_line_cut_off_inside_a_character_costs_that_line(write: Write) -> None:
    found = read(write(f"{HEADER}a,x,1\nb,ü".encode()[:-1] + b"\nc,z,3\n"))
    assert rows(found) == [("a", "x", "1"), ("c", "z", "3")]
    assert [(row.row, row.text) for block in found for row in block.bad] == [(1, "b,\ufffd")]


def test_a_file_of_only_bad_rows_gives_only_those(write: Write) -> None:
    found = read(write(HEADER + "a\nb\n"))
    assert rows(found) == []
    assert [row for row, _ in bad(found)] == [0, 1]


def test_rows_keep_their_numbers_however_the_file_is_cut_into_blocks(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = random.Random(5)
    expected, content = [], HEADER
    for number in range(400):
        if generator.random() < 0.2:
            content += "broken\n"
        else:
            title = f'"t{number}\nline"' if number % 7 == 0 else f"t{number}"
            content += f"u{number},{title},{number}\n"
            expected.append(number)
    path = write(content)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    found = read(path)
    assert len(found) > 20
    assert [int(row[2]) for row in rows(found)] == numbers(found) == expected
    assert sorted([*numbers(found), *(row for row, _ in bad(found))]) == list(range(400))


def test_only_the_empty_field_is_missing(write: Write) -> None:
    assert rows(read(write(HEADER + "NA,null,1\n,nan,2\n"))) == [("NA", "null", "1"), (None, "nan", "2")]


def test_repeated_column_names_are_told_apart_by_position(write: Write) -> None:
    path = write("user,item,user\na,x,b\n")
    assert rows(read(path, ["user", 2])) == [("a", "b")]
    assert column_names(path, TableSource(path=path), [0, 2]) == ["user", "user.1"]


def test_one_column_may_be_asked_for_twice(write: Write) -> None:
    assert rows(read(write("user\na\n"), ["user", "user"])) == [("a",)]


@pytest.mark.parametrize("content", ["", "\n\n", HEADER, HEADER.strip(), "\ufeff"])
def test_a_file_without_rows_gives_no_rows(write: Write, content: str) -> None:
    assert rows(read(write(content))) == []


def test_an_absent_column_is_refused_with_the_nearest_name(write: Write) -> None:
    path = write(HEADER + "a,x,1\n")
    with pytest.raises(DataError, match=r"no column 'users'. Did you mean 'user'\? Its columns: user, item, time"):
        read(path, ["users"])
    with pytest.raises(DataError, match=r"no column at position 9. It has 3 columns, from 0: user, item, time"):
        read(path, [9])


def test_a_row_longer_than_a_block_is_refused_in_one_message(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    with pytest.raises(DataError, match="perhaps a quote is not closed"):
        read(write(HEADER + 'a,"' + "x\n" * 500 + '",1\n'))


@pytest.mark.parametrize("name", ["log.csv.gz", "log.jsonl.gz"])
def test_a_damaged_archive_is_refused_in_one_message(write: Write, name: str) -> None:
    content = bytearray(gzip.compress(b"".join(b"%d,%d\n" % (i, i * i) for i in range(5000))))
    path = write(bytes(content[: len(content) // 2]), name)
    with pytest.raises(DataError, match="cannot be read"):
        read(path)
    content[len(content) // 2] ^= 255
    with pytest.raises(DataError, match="cannot be read"):
        read(write(bytes(content), name))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_what_is_no_such_file_is_refused_in_one_message(write: Write, kind: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        column_names(write(b"\x1f\x8b nothing", f"log.{kind}.gz"), TableSource(path="x", format=kind), ["user"])  # type: ignore[arg-type]


def test_gzip_is_read_as_what_it_holds(write: Write) -> None:
    assert rows(read(write(gzip.compress((HEADER + "a,x,1\n").encode()), "log.csv.gz"))) == [("a", "x", "1")]


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
@pytest.mark.parametrize(("ending", "compress"), COMPRESSORS.items())
def test_compressed_files_are_read_whole_or_refused(
    write: Write, name: str, ending: str, compress: Callable[[bytes], bytes]
) -> None:
    first, rest = (HEADER, "a,x,1\n" * 9000) if name == "log.csv" else ('{"user": "a"}\n', '{"user": "b"}\n' * 8999)
    # Of two files, one after the other, both count: so do tools write that append, or compress in parallel.
    content = compress(first.encode()) + compress(rest.encode())
    assert len(rows(read(write(content, f"{name}{ending}")))) == 9000
    with pytest.raises(DataError, match="cannot be read"):
        read(write(content[:-9], f"{name}{ending}"))


# ---- JSON lines


def lines(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def test_json_lines_may_leave_out_what_they_have_no_value_for(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 10)
    found = read(write(lines({"user": "a"}, {"user": "b", "item": "x"}), "log.jsonl"), ["user", "item"])
    assert rows(found) == [("a", None), ("b", "x")]
    assert [block.columns for block in found] == [("user",), ("user", "item")]


def test_an_empty_json_object_is_a_row_without_values(write: Write) -> None:
    assert rows(read(write("{}\n", "log.jsonl"), ["user"])) == [(None,)]
    assert rows(read(write('{}\n{"user": "a"}\n', "log.jsonl"), ["user"])) == [(None,), ("a",)]


def test_json_lines_whose_values_begin_with_nulls_are_read(write: Write) -> None:
    found = read(write(lines({"user": None}, {"user": "b"}), "log.jsonl"), ["user"])
    assert rows(found) == [(None,), ("b",)]


def test_malformed_json_lines_are_set_aside_with_the_number_of_their_line(write: Write) -> None:
    content = b'{"user": "a"}\n\nnot json\n[1]\n{"user": "\xff"}\n{"user": "b"}'
    found = read(write(content, "log.jsonl"), ["user"])
    assert rows(found) == [("a",), ("b",)]
    assert numbers(found) == [0, 5]
    assert bad(found) == [(2, "not a JSON object"), (3, "not a JSON object"), (4, "broken UTF-8")]


def test_blank_json_lines_count_as_lines(write: Write) -> None:
    assert numbers(read(write('{"user": 1}\n\n{"user": 2}\n', "log.jsonl"))) == [0, 2]


def test_two_objects_on_a_line_are_no_json_line(write: Write) -> None:
    assert bad(read(write('{"user": 1}{"user": 2}\n', "log.jsonl"))) == [(0, "not a JSON object")]


def test_types_that_change_become_text_and_equal_numbers_equal_text(write: Write) -> None:
    found = read(write(lines({"user": 1}, {"user": "b"}, {"user": 1.0}, {"user": True}), "log.jsonl"), ["user"])
    assert rows(found) == [("1",), ("b",), ("1",), ("true",)]


def test_ids_larger_than_64_bits_are_kept_exactly(write: Write) -> None:
    found = read(write(lines({"user": 12345678901234567890}, {"user": 1}), "log.jsonl"), ["user"])
    assert rows(found) == [("12345678901234567890",), ("1",)]


def test_text_that_looks_like_a_time_stays_text(write: Write) -> None:
    assert rows(read(write(lines({"user": "2024-01-01"}), "log.jsonl"), ["user"])) == [("2024-01-01",)]


def test_a_lone_surrogate_does_not_stop_the_file(write: Write) -> None:
    path = write('{"user": "\\ud800", "\\ud800": 1}\n{"user": "b"}\n', "log.jsonl")
    assert rows(read(path, ["user"])) == [("?",), ("b",)]


def test_json_lines_have_no_positions(write: Write) -> None:
    with pytest.raises(DataError, match="JSON has no positions"):
        read(write(lines({"user": 1}), "log.jsonl"), [0])


# ---- Parquet


def test_parquet_keeps_its_types_and_can_be_asked_by_position(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user": pa.array([1, None, 3], pa.int64()),
            "item": pa.array(["x", "y", "x"]).dictionary_encode(),
            "time": pa.array([datetime(2024, 1, 1, tzinfo=UTC)] * 3, pa.timestamp("us", "UTC")),
            "nested": [{"a": [1]}, None, {"a": []}],
        }
    )
    path = str(tmp_path / "log.parquet")
    pq.write_table(table, path)
    (block,) = read(path, [0, "item"])
    assert block.table.to_pydict() == {"user": [1, None, 3], "item": ["x", "y", "x"]}
    assert numbers([block]) == [0, 1, 2]
    assert column_names(path, TableSource(path=path), [1]) == ["item"]
    with pytest.raises(DataError, match="Did you mean 'user'"):
        read(path, ["usr"])
