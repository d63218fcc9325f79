"""Recipes written from a header."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pyarrow import feather, orc

from rayrec.data.starter import guess_columns, starter_recipe
from rayrec.errors import DataError
from rayrec.recipe_files import parse_recipe


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["user_id", "item_id", "timestamp"], {"user": "user_id", "item": "item_id", "timestamp": "timestamp"}),
        (["userId", "movieId", "rating"], {"user": "userId", "item": "movieId", "value": "rating"}),
        (["ts", "SKU", "Customer ID"], {"user": "Customer ID", "item": "SKU", "timestamp": "ts"}),
        (
            ["Bestellnr", "Kundennummer", "Artikelnummer", "Bestelldatum"],
            {"user": "Kundennummer", "item": "Artikelnummer", "timestamp": "Bestelldatum"},
        ),
        (["user_id:token", "item_id:token"], {"user": "user_id:token", "item": "item_id:token"}),
        (["who", "what"], {"user": "who", "item": "what"}),
    ],
)
def test_columns_are_guessed_by_their_names_then_by_their_places(columns: list[str], expected: dict[str, str]) -> None:
    assert guess_columns(columns) == expected


def test_the_recipe_is_valid_and_says_what_was_only_guessed(tmp_path: Path) -> None:
    log = tmp_path / "Log File.csv"
    log.write_text("who;item;when\na;b;1\n")

    text = starter_recipe(log, folder=tmp_path)

    source = parse_recipe(yaml.safe_load(text)).data.sources[0]
    assert (source.path, source.columns.user, source.columns.item) == ("Log File.csv", "who", "item")
    assert "who   # only guessed" in text
    assert "item: item\n" in text


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("196\t242\t3\t881250949", {"user": 0, "item": 1}),
        ("196\t242\t3\t1081250949", {"user": 0, "item": 1, "timestamp": 3}),
        ("2024-01-01T10:00:00,u1,i1", {"user": 1, "item": 2, "timestamp": 0}),
        ("7,8", {"user": 0, "item": 1}),
        ("user,item", {"user": "user", "item": "item"}),
        ("0,1,2", {"user": "0", "item": "1"}),
    ],
)
def test_a_first_row_that_is_data_is_no_header(tmp_path: Path, row: str, expected: dict[str, str | int]) -> None:
    (tmp_path / "log.csv").write_text(f"{row}\n{row}\n")

    source = parse_recipe(yaml.safe_load(starter_recipe(tmp_path / "log.csv", folder=tmp_path))).data.sources[0]

    assert source.columns.model_dump(exclude_none=True) == expected
    assert source.header == isinstance(expected["user"], str)


def test_columns_of_any_format_are_found_and_those_of_folders(tmp_path: Path) -> None:
    table = pa.table({"who": ["a"], "sku": ["x"]})
    for write, name in ((pq.write_table, "p.parquet"), (orc.write_table, "p.orc"), (feather.write_feather, "p.arrow")):
        path = tmp_path / name.partition(".")[2] / "day=1" / name
        path.parent.mkdir(parents=True)
        write(table, path)
        text = starter_recipe(path.parent.parent, folder=tmp_path)
        assert "The columns found: who, sku, day" in text
        assert parse_recipe(yaml.safe_load(text)).data.sources[0].columns.item == "sku"


def test_titles_and_categories_of_items_are_found(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\na,b\n")
    (tmp_path / "items.csv").write_text("sku,name,genre\nb,B,x\n")

    text = starter_recipe(tmp_path / "log.csv", tmp_path / "items.csv", folder=tmp_path)

    items = parse_recipe(yaml.safe_load(text)).data.items
    assert items is not None
    assert (items.columns.item, items.columns.title, items.columns.categories) == ("sku", "name", "genre")


def test_a_log_with_one_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user\na\n")

    with pytest.raises(DataError, match="one column"):
        starter_recipe(tmp_path / "log.csv")
