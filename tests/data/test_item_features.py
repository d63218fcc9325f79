"""Item features: a column for each thing declared of items, and what each kind of feature puts there."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrec.artifacts import Storage
from rayrec.data.item_features import TEXT_COLUMNS, item_features
from rayrec.data.prepare import prepare
from rayrec.data.views import load_view
from rayrec.models.interactions import SparseRows
from rayrec.recipe import Recipe

ITEMS = [
    {"item": "a", "class": "Drama", "tags": "x|y|x", "price": "1", "out": "1999-05-01", "place": "0.5 -1", "title": ""},
    {"item": "b", "class": "Crime", "tags": "", "price": "3", "out": "2001-05-02", "place": "", "title": "Of War, of"},
    {"item": "c", "class": "", "tags": "y", "price": "", "out": "", "place": "0 2", "title": "war & peace"},
]
Matrix = Callable[[dict[str, Any]], SparseRows | None]


@pytest.fixture
def matrix(without_ray: None, make_recipe: Callable[..., Recipe], logs: Path, store: Storage) -> Matrix:
    """The features of four items, of which the table does not have the last."""

    def make(features: dict[str, Any]) -> SparseRows | None:
        with (logs / "items.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(ITEMS[0]))
            writer.writeheader()
            writer.writerows(ITEMS)
        events = [f"{user},{item},{time}" for user in "uv" for time, item in enumerate("abcd")]
        (logs / "log.csv").write_text("\n".join(["user,item,time", *events]))
        prepared = prepare(
            make_recipe(items={"path": "items.csv", "columns": {"item": "item"}}, features={"items": features}), store
        )
        assert load_view(prepared.dataset, prepared.view).item_keys == ["a", "b", "c", "d"]
        return item_features(prepared.dataset, prepared.view)

    return make


def dense(rows: SparseRows | None) -> np.ndarray:
    assert rows is not None
    assert all((np.diff(rows.part(range(row, row + 1)).columns) > 0).all() for row in range(len(rows)))
    filled = np.zeros((len(rows), rows.width), np.float32)
    filled[rows.rows, rows.columns] = rows.values
    return filled


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"class": {"kind": "categorical"}}, [[0, 1], [1, 0], [0, 0], [0, 0]]),
        ({"tags": {"kind": "multi-valued"}}, [[1, 1], [0, 0], [0, 1], [0, 0]]),
        ({"tags": {"kind": "multi-valued", "buckets": 1}}, [[1], [0], [1], [0]]),
        ({"price": {"kind": "numeric", "scale": "none"}}, [[1], [3], [2], [2]]),
        ({"price": {"kind": "numeric", "scale": "quantile", "buckets": 2}}, [[1, 0], [0, 1], [0, 1], [0, 1]]),
        ({"place": {"kind": "vector", "dimension": 2}}, [[0.5, -1], [0, 0], [0, 2], [0, 0]]),
    ],
    ids=["category", "tags", "hashed tags", "number", "buckets", "vector"],
)
def test_each_kind_has_its_columns(matrix: Matrix, features: dict[str, Any], expected: list[list[float]]) -> None:
    assert dense(matrix(features)).tolist() == [[0] * len(expected[0]), *expected]


def test_a_moment_has_a_column_for_every_value_of_its_parts(matrix: Matrix) -> None:
    """Whatever the data, so that what is asked later finds the same columns."""
    found = dense(matrix({"out": {"kind": "timestamp", "parts": ["year", "month"]}}))
    assert found.shape == (5, 200 + 12)
    assert np.argwhere(found).tolist() == [[1, 1999 - 1900], [1, 200 + 4], [2, 2001 - 1900], [2, 200 + 4]]


def test_the_words_of_a_text_are_hashed_in_lower_case(matrix: Matrix) -> None:
    found = dense(matrix({"title": {"kind": "text"}}))
    assert found.shape == (5, TEXT_COLUMNS)
    assert found.sum(axis=1).tolist() == [0, 0, 2, 2, 0]
    assert (found[2] * found[3]).sum() == 1, "both have `war`"


def test_features_stand_side_by_side_in_the_order_of_their_names(matrix: Matrix) -> None:
    tags, place = {"kind": "multi-valued"}, {"kind": "vector", "dimension": 2}
    found = dense(matrix({"tags": tags, "place": place}))
    assert found[1:].tolist() == [[0.5, -1, 1, 1], [0, 0, 0, 0], [0, 2, 0, 1], [0, 0, 0, 0]]


def test_without_declared_features_there_are_none(matrix: Matrix) -> None:
    assert matrix({}) is None
