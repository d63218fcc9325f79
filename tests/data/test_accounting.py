"""Accounting: whatever is in a file, each row is an event, a repetition, or in quarantine; or there is one message."""

from __future__ import annotations

import gzip
import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayrec.artifacts import Storage
from rayrec.data import blocks, json_lines
from rayrec.data.dataset import read_part
from rayrec.data.prepare import Prepared, prepare
from rayrec.data.views import open_view
from rayrec.errors import DataError, RayrecError
from rayrec.recipe_files import parse_recipe

COLUMNS = {"user": "user", "item": "item", "timestamp": "time"}
HEADER = b"user,item,time\n"
GOOD = [("g", "x", 1_000), ("g", "y", 2_000), ("g", "z", 3_000)]
NOW = 1_700_000_000_000

KEYS: dict[bytes, str | None] = {
    **{key.encode(): key for key in ("a", "b", "1", "1.0", "NA", "日本", "e\u0301", "'", "y" * 1024)},
    b" a\t": "a",
    **dict.fromkeys([b"", b" ", b"x\0", b"\0", b"y" * 1025, b"\xff", b"b\xc3", b"\xed\xa0\x80"]),
}
"""What a key is understood as; None where it is none."""

TIMES: dict[bytes, int | None] = {
    **{str(NOW * scale // 1000).encode(): NOW for scale in (1, 10**3, 10**6, 10**9)},
    **{b"2023-11-14T22:13:20Z": NOW, b"2023-11-14 22:13:20": NOW, b" 1.7e9 ": NOW, b"1700000000.5": NOW + 500},
    **{b"0": 0, b"4102444799": 4_102_444_799_000},
    **dict.fromkeys([b"", b"NaN", b"soon", b"-1", b"9999-12-31", b"4102444800", b"1e999", b"9" * 30, b"\xff", b"0\0"]),
}
"""What a time is understood as, epoch milliseconds."""

fuzz = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def prepared(content: bytes, name: str, source: dict[str, Any] | None = None, **data: Any) -> Prepared:
    """Prepare one file in a folder of its own; any number of bad rows is fine."""
    folder = Path(tempfile.mkdtemp(dir=FOLDER[0]))
    (folder / name).write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    sources = [{"path": name, "columns": COLUMNS} | (source or {})]
    data = {"clean": {"max_bad_rows": 1, "deduplicate": "no"}, "view": {"min_user_events": 1}} | data
    recipe = parse_recipe({"name": "test", "data": {"sources": sources} | data}, folder=folder)
    return prepare(recipe, Storage.open(folder / "store"))


FOLDER: list[Path] = []


@pytest.fixture(autouse=True)
def _here(without_ray: None, tmp_path: Path) -> None:
    FOLDER[:] = [tmp_path]


def events(found: Prepared) -> Counter[tuple[str, str, int]]:
    """User, item and time of each event of the log."""
    users, items = (found.dataset.vocabulary(name)["key"].to_pylist() for name in ("user", "item"))
    tables = [read_part(found.dataset.storage, listed) for listed in found.dataset.manifest["events"]]
    rows = pa.concat_tables(tables).to_pylist()
    return Counter((users[row["user"] - 1], items[row["item"] - 1], row["timestamp"]) for row in rows)


def quarantine(found: Prepared) -> list[tuple[int, str]]:
    """Number and reason of each rejected row."""
    parts = (read_part(found.dataset.storage, listed) for listed in found.dataset.manifest["quarantine"])
    return [(row["row"], row["reason"]) for table in parts for row in table.to_pylist()]


def check_accounts(found: Prepared) -> dict[str, int]:
    """Nothing is lost between file, log and view. Returns the counts."""
    manifest = found.dataset.manifest
    counts: dict[str, int] = manifest["counts"]
    assert counts["read"] == counts["events"] + counts["deduplicated"] + counts["quarantined"] + counts["erased"]
    assert counts["quarantined"] == sum(manifest["reasons"].values()) == len(quarantine(found))
    view = open_view(found.dataset, found.view)
    assert counts["events"] == view["counts"]["events"] + sum(view["filtered"].values())
    return counts


def check_message(error: RayrecError) -> None:
    assert len(str(error)) < 3000
    assert str(error).count("\n") < 5


# ---- CSV

keys, times = st.sampled_from(sorted(KEYS)), st.sampled_from(sorted(TIMES))
csv_fields = st.tuples(keys, keys, times)
odd_lines = st.sampled_from([b"", b" ", b",", b",,", b",,,", b"a,b", b"a,b,1,2", b"\0", b"user,item,time", b"\xff\xfe"])
line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])


def expected_of(fields: tuple[bytes, bytes, bytes]) -> tuple[str, str, int] | None:
    user, item, time = KEYS[fields[0]], KEYS[fields[1]], TIMES[fields[2]]
    return None if user is None or item is None or time is None else (user, item, time)


@fuzz
@given(st.lists(st.tuples(st.one_of(csv_fields, odd_lines), line_ends), max_size=30), st.booleans(), st.booleans())
def test_every_row_of_a_dirty_csv_is_an_event_or_in_quarantine(
    rows: list[tuple[Any, bytes]], zipped: bool, in_small_blocks: bool
) -> None:
    lines = [(b",".join(row) if isinstance(row, tuple) else row) + end for row, end in rows]
    clean = b"".join(f"{user},{item},{time / 1000}\n".encode() for user, item, time in GOOD)
    content = HEADER + clean + b"".join(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", 5000 if in_small_blocks else blocks.BLOCK_BYTES)
        found = prepared(content, "log.csv.gz" if zipped else "log.csv")
    understood = [expected_of(row) for row, _ in rows if isinstance(row, tuple)]
    assert events(found) == Counter([*GOOD, *(event for event in understood if event)])
    nonempty = [line for line in re.split(b"\r\n|\r|\n", content) if line]
    assert check_accounts(found)["read"] == len(nonempty) - 1
    headers = [number for number, reason in quarantine(found) if reason == "the header once more"]
    assert headers == [number for number, line in enumerate(nonempty[1:]) if line == HEADER.strip()]


@fuzz
@given(
    st.lists(st.sampled_from([b'"', b'""', b"\n", b",", b"a", b"1", b"\r\n", b'"a,b"', b"\xff", b"\0"]), max_size=40)
)
def test_quotes_wherever_they_open_and_close_lose_no_row(parts: list[bytes]) -> None:
    content = HEADER + b"g,x,1\ng,y,2\ng,z,3\n" + b"".join(parts)
    counts = check_accounts(prepared(content, "log.csv"))
    assert counts["events"] >= 3
    assert counts["read"] <= len(content.splitlines()) - 1


@fuzz
@given(
    st.binary(max_size=300),
    st.sampled_from(["log.csv", "log.csv.gz", "log.jsonl", "log.parquet", "log.zst"]),
    st.booleans(),
)
def test_any_bytes_at_all_are_a_dataset_or_one_message(content: bytes, name: str, headed: bool) -> None:
    try:
        check_accounts(prepared(HEADER * headed + content, name, {"header": headed}))
    except RayrecError as error:
        check_message(error)


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("size", [5_000, 3 * blocks.BLOCK_BYTES])
def test_a_giant_field_costs_its_row(size: int, quote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if size < blocks.BLOCK_BYTES:
        monkeypatch.setattr(blocks, "BLOCK_BYTES", 4096)
    giant = quote + "日" * (size // 3) + quote
    rows = ["g,x,1", f"{giant},x,1", "g,y,2", f"a,x,{giant}", "", f"{giant}", "user,item,time", "g,z,3"]
    found = prepared((HEADER.decode() + "\n".join(rows)).encode(), "log.csv")
    assert events(found) == Counter(GOOD)
    check_accounts(found)
    assert found.dataset.manifest["reasons"] == {"line too long": 3, "the header once more": 1}


def test_a_giant_field_that_nobody_reads_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4096)
    rows = "".join(f'{user},{item},{time // 1000},"{"x" * 9000}"\n' for user, item, time in GOOD)
    assert events(prepared(f"user,item,time,page\n{rows}".encode(), "log.csv")) == Counter(GOOD)


def test_a_quote_that_is_never_closed_in_a_large_file_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4096)
    with pytest.raises(DataError, match="perhaps a quote is not closed") as caught:
        prepared(HEADER + b'g,"x,1\n' + b"g,x,1\n" * 9000, "log.csv")
    check_message(caught.value)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "ascii", "shift_jis"])
@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_in_other_encodings_too_a_broken_character_costs_its_row(encoding: str, name: str) -> None:
    rows = [(user, item, time // 1000) for user, item, time in GOOD]
    lines = [json.dumps(dict(zip(COLUMNS.values(), row, strict=True))) for row in rows]
    text = "\n".join(lines if name == "log.jsonl" else ["user,item,time", *(f"{u},{i},{t}" for u, i, t in rows)])
    content = f"{text}\n".encode(encoding)
    broken = {"utf-16": "g,é,4\n".encode("utf-16-le")[:4] + b"\x00\xd8\n\0"}.get(encoding, b"g,\x81\n")
    found = prepared(content + broken, name, {"encoding": encoding})
    assert events(found) == Counter(GOOD)
    assert check_accounts(found)["quarantined"] == 1


@pytest.mark.parametrize("encoding", ["klingon", "rot13", "hex"])
@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_what_is_no_encoding_is_one_message(encoding: str, name: str) -> None:
    with pytest.raises(DataError, match=f"encoding: '{encoding}' is not known"):
        prepared(HEADER + b"g,x,1\n", name, {"encoding": encoding})


@pytest.mark.parametrize("separator", ["\t", "::", "§"])
def test_headers_in_the_middle_are_found_whatever_separates_columns(separator: str) -> None:
    files = "\ufeffuser,page,item,time\ng,p,x,1\ng,p,y,2\n" + "\ufeffuser,page,item,time\ng,p,z,3\n"
    found = prepared(files.replace(",", separator).encode(), "log.csv", {"separator": separator})
    assert events(found) == Counter(GOOD)
    assert quarantine(found) == [(2, "the header once more")]


def test_without_a_header_no_row_is_one() -> None:
    columns = {"user": 0, "item": 1, "timestamp": 2}
    rows = [("0", "1", 2_000), ("0", "1", 3_000), ("0", "2", 4_000)]
    content = "".join(f"{user},{item},{time // 1000}\n" for user, item, time in rows)
    assert events(prepared(content.encode(), "log.csv", {"header": False, "columns": columns})) == Counter(rows)


# ---- JSON lines

VALUES: dict[str, str | None] = {
    **{'"a"': "a", '" b "': "b", "1": "1", "1.0": "1", "2.5": "2.5", "true": "true", '"2024-01-01"': "2024-01-01"},
    **{"12345678901234567890": "12345678901234567890", "[1]": "[1]", '["é"]': '["é"]', '{"z": null}': '{"z": null}'},
    **{"-0.0": "0", '"\\ud800"': "?", '"\\u00e9"': "é", "null": None, '""': None, "NaN": None, '"x\\u0000"': None},
    f'"{"y" * 1025}"': None,
}
"""What a key is understood as; None where it is none."""

MOMENTS: dict[str, int | None] = {
    **{str(NOW * scale // 1000): NOW for scale in (1, 10**3, 10**6, 10**9)},
    **{'"2023-11-14T22:13:20Z"': NOW, '"1700000000"': NOW, "1.7e9": NOW, "1700000000.5": NOW + 500, "0": 0},
    **dict.fromkeys(["null", "true", "[1]", "{}", '"soon"', "-1", "1e999", "NaN", "9" * 30, '"9999-12-31"']),
}
json_values = st.tuples(
    st.sampled_from(sorted(VALUES)), st.sampled_from(sorted(VALUES)), st.sampled_from(sorted(MOMENTS))
)
odd_json = st.sampled_from(
    [
        b"",
        b"\t",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"user": "\xff"}',
        b"{" * 5000,
        b'{"a": 1}{"a": 1}',
        b"user,item,time",
        b"\0",
    ]
)


@fuzz
@given(
    st.lists(st.tuples(st.one_of(json_values, odd_json), st.sampled_from([b"\n", b"\r\n"])), max_size=20),
    st.booleans(),
    st.booleans(),
)
def test_every_row_of_dirty_json_lines_is_an_event_or_in_quarantine(
    rows: list[tuple[Any, bytes]], zipped: bool, in_small_blocks: bool
) -> None:
    content, understood = b"", []
    values = [(f'"{user}"', f'"{item}"', str(time)) for user, item, time in GOOD]
    for row, end in [*((row, b"\n") for row in values), *rows]:
        if isinstance(row, tuple):
            content += '{{"user": {}, "item": {}, "more": [{{}}], "time": {}}}'.format(*row).encode() + end
        else:
            content += row + end
    for row, _ in rows:
        if isinstance(row, tuple):
            user, item, time = VALUES[row[0]], VALUES[row[1]], MOMENTS[row[2]]
            understood += [(user, item, time)] if user and item and time is not None else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", 100 if in_small_blocks else blocks.BLOCK_BYTES)
        found = prepared(content, "log.jsonl.gz" if zipped else "log.jsonl")
    good = [(user, item, time * 1000) for user, item, time in GOOD]
    assert events(found) == Counter([*good, *understood])
    assert check_accounts(found)["read"] == len([line for line in content.split(b"\n") if line.strip()])


@pytest.mark.parametrize("inside", ["[", '{"a":'])
def test_json_nested_as_deep_as_it_likes_does_not_end_the_process(inside: str) -> None:
    lines = [f'{{"user": "g", "item": "{item}", "time": {time}}}' for _, item, time in GOOD]
    close = "]" if inside == "[" else "}"
    deep = [f'{{"user": "a", "item": "x", "time": 1, "more": {inside * n}1{close * n}}}' for n in (90, 900, 100_000)]
    found = prepared("\n".join([*deep, *lines]).encode(), "log.jsonl")
    counts = check_accounts(found)
    assert (counts["read"], counts["events"]) == (6, 5)


@pytest.mark.parametrize(
    "row",
    [
        '{{"user": "g", "item": "{0}", "time": {0}, "k{0}": 1}}',
        '{{"user": "g", "item": "{0}", "time": {0}, "more": {{"k{0}": 1}}}}',
    ],
)
def test_json_with_keys_that_never_come_back_takes_no_more_memory_than_it_has_lines(row: str) -> None:
    content = "\n".join(row.format(number) for number in range(6000)).encode()
    before = pa.default_memory_pool().max_memory()
    assert check_accounts(prepared(content, "log.jsonl"))["events"] == 6000
    assert pa.default_memory_pool().max_memory() - before < 200 << 20


def test_a_file_that_is_one_list_of_all_objects_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"user": "g", "item": "x", "time": n} for n in range(100)]
    with pytest.raises(DataError, match=r"1 of 1 rows .* not a JSON object"):
        prepared(json.dumps(rows).encode(), "log.json")
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 500)
    monkeypatch.setattr(json_lines, "LONGEST_LINE", 2000)
    with pytest.raises(
        DataError, match=r"cannot be read as jsonl: a line is longer than .* one object in each line"
    ) as caught:
        prepared(json.dumps(rows).encode(), "log.json")
    check_message(caught.value)


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf", b"\n", b"\xef\xbb\xbf\r\n \n", b""])
def test_json_lines_with_nothing_in_them_are_one_message(content: bytes) -> None:
    with pytest.raises(DataError, match=r"no rows|is empty"):
        prepared(content, "log.jsonl")
