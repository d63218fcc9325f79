"""Recipes written from a header."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

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
