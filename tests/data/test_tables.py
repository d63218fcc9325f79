"""Tables: what is known of items beside the log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayrec.artifacts import Storage
from rayrec.data.prepare import prepare
from rayrec.errors import DataError
from rayrec.recipe import Recipe

Make = Callable[..., Recipe]
LOG = "user,item,time\n" + "".join(f"{user},{item},{time}\n" for user in "ab" for time, item in enumerate("xyz"))


def catalogue(recipe: Recipe, store: Storage) -> dict[str, tuple[Any, Any]]:
    rows = prepare(recipe, store).dataset.catalogue().to_pylist()
    return {row["key"]: (row["title"], row["categories"]) for row in rows}


ITEM_COLUMNS = {"item": "id", "title": "name", "categories": "kinds"}


def test_the_catalogue_has_every_item_with_what_is_known_of_it(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    (logs / "log.csv").write_text(LOG)
    (logs / "items.csv").write_text(
        'id,name,kinds\nx,"The ""X"", again",A| B||\ny,,\nnew,NA,C\nx,Another,D\n,Nobody,E\n'
    )
    recipe = make_recipe(items={"path": "items.csv", "columns": ITEM_COLUMNS})
    assert catalogue(recipe, store) == {
        "new": ("NA", ["C"]),
        "x": ('The "X", again', ["A", "B"]),
        "y": (None, []),
        "z": (None, None),
    }
    assert "of 5 rows, 1 without a usable key and 1 that repeat a key are left out" in caplog.text


@pytest.mark.parametrize("broken", ["", "not json\n"], ids=["well-formed", "with a bad line"])
def test_categories_may_be_lists(without_ray: None, make_recipe: Make, logs: Path, store: Storage, broken: str) -> None:
    (logs / "log.csv").write_text(LOG)
    rows = [{"id": "x", "name": "X", "kinds": ["A", "B"]}, {"id": "y", "name": "Y", "kinds": []}, {"id": "z"}]
    (logs / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + broken)
    recipe = make_recipe(items={"path": "items.jsonl", "columns": ITEM_COLUMNS})
    assert catalogue(recipe, store) == {"x": ("X", ["A", "B"]), "y": ("Y", []), "z": (None, [])}


def test_without_a_table_only_the_keys_are_known(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    (logs / "log.csv").write_text(LOG)
    assert catalogue(make_recipe(), store) == dict.fromkeys("xyz", (None, None))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,nam,kinds\nx,X,A\n", "no column 'name'. Did you mean 'nam'"),
        ("id,name,kinds\n", "the table has no rows"),
        ("id,name,kinds\n,X,A\n", "no row has a key in column 'id'"),
    ],
)
def test_an_item_table_that_cannot_be_used_is_refused(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage, content: str, message: str
) -> None:
    (logs / "log.csv").write_text(LOG)
    (logs / "items.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        prepare(make_recipe(items={"path": "items.csv", "columns": ITEM_COLUMNS}), store)
    assert store.list("datasets/test/manifests") == []
