"""Partitions: what folders say is a column of every file below them, whatever its format."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather, orc

from rayrec.artifacts import Storage
from rayrec.data.files import list_files
from rayrec.data.prepare import prepare
from rayrec.data.readers import all_columns, column_names, read_blocks
from rayrec.errors import DataError
from rayrec.recipe import Recipe
from rayrec.recipe_data import TableSource

FOLDER = "day=2025-01-01/city=K%C3%B6ln%2F1"


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"user": ["a", "b"], "item": ["x", "y"]})
    formats = {".parquet": pq.write_table, ".orc": orc.write_table, ".feather": feather.write_feather}
    if path.suffix in formats:
        formats[path.suffix](table, path)
    else:
        json, csv = '{"user": "a", "item": "x"}\n{"user": "b", "item": "y"}\n', "user,item\na,x\nb,y\n"
        content = (json if ".jsonl" in path.name else csv).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def read(path: Path | str, columns: list[str | int] | None, store: Storage, **options: Any) -> list[tuple[Any, ...]]:
    source = TableSource(path=str(path), **options)
    rows: list[dict[str, Any]] = []
    for file in list_files([source], store):
        rows += [row for block in read_blocks(file.uri, source, columns) for row in block.table.to_pylist()]
    names = rows[0] if columns is None else columns
    texts = [{k: v.decode() if isinstance(v, bytes) else v for k, v in row.items()} for row in rows]
    return [tuple(row[str(name)] for name in names) for row in texts]


@pytest.mark.parametrize("name", ["p.csv", "p.csv.gz", "p.jsonl", "p.parquet", "p.orc", "p.feather"])
def test_the_keys_of_the_path_are_columns(logs: Path, store: Storage, name: str) -> None:
    write(logs / FOLDER / name)
    assert read(logs, ["user", "day", "city"], store) == [
        ("a", "2025-01-01", "Köln/1"),
        ("b", "2025-01-01", "Köln/1"),
    ]
    assert read(logs, ["item"], store) == [("x",), ("y",)]
    assert read(logs, None, store)[0] == ("a", "x", "2025-01-01", "Köln/1")
    source, uri = TableSource(path=str(logs)), str(logs / FOLDER / name)
    assert all_columns(uri, source) == ["user", "item", "day", "city"]
    assert column_names(uri, source, ["day"]) == ["day"]


def test_only_the_path_below_the_source_counts(logs: Path, store: Storage) -> None:
    write(logs / FOLDER / "p.csv")
    assert read(logs / "day=2025-01-01", None, store)[0] == ("a", "x", "Köln/1")
    assert read(logs / FOLDER / "p.csv", None, store)[0] == ("a", "x")
    assert read(logs / "day=*" / "*" / "*.csv", ["day"], store)[0] == ("2025-01-01",)
    assert read(logs / "day=2025-01-01" / "**" / "*.csv", None, store)[0] == ("a", "x", "Köln/1")


def test_hives_default_partition_is_no_value(logs: Path, store: Storage) -> None:
    write(logs / "_day=__HIVE_DEFAULT_PARTITION__" / "a=b=c" / "p.csv")
    assert read(logs, ["_day", "a"], store)[0] == (None, "b=c")


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.parquet"])
def test_the_files_own_column_wins(logs: Path, store: Storage, name: str) -> None:
    write(logs / "user=other" / "day=1" / name)
    assert read(logs, ["user", "day"], store) == [("a", "1"), ("b", "1")]
    assert sorted(read(logs, None, store)[0]) == ["1", "a", "x"]


def test_a_format_that_is_said_needs_no_ending(logs: Path, store: Storage) -> None:
    write(logs / "day=1" / "p.orc")
    (logs / "day=1" / "p.orc").rename(logs / "day=1" / "000000_0")
    assert read(logs, ["user", "day"], store, format="orc")[0] == ("a", "1")


def test_an_absent_column_is_refused_and_the_keys_are_named(logs: Path, store: Storage) -> None:
    write(logs / FOLDER / "p.csv")
    with pytest.raises(DataError, match=r"Did you mean 'day'.*Its columns: user, item, day, city"):
        read(logs, ["dey"], store)


def test_the_day_in_the_path_can_be_the_time_of_its_events(
    without_ray: None, make_recipe: Callable[..., Recipe], logs: Path, store: Storage
) -> None:
    for day in ("2025-01-01", "2025-01-02", "2025-01-03"):
        write(logs / f"day={day}" / "country=DE" / "p.parquet")
    source = {"columns": {"user": "user", "item": "item", "timestamp": "day"}, "context": ["country"]}
    manifest = prepare(make_recipe(".", source=source), store).dataset.manifest
    assert manifest["counts"]["events"] == 6
    assert manifest["time_range_ms"] == [1_735_689_600_000, 1_735_862_400_000]
