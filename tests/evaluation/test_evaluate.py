"""The evaluate stage, on a view made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rayrec.evaluation.evaluate as stage
from rayrec.artifacts import Json, Storage
from rayrec.data.splits import leave_last
from rayrec.data.views import Sequences
from rayrec.errors import DataError
from rayrec.evaluation.evaluate import evaluate_here
from rayrec.features.histories import Histories
from rayrec.inference.bundle import publish_bundle
from rayrec.models.popularity import Popularity, PopularityConfig
from rayrec.recipe_files import parse_recipe

KEYS = ["a", "b", "c", "d", "e"]
LISTS = [[1, 2, 3, 4], [1, 2, 4, 3], [2, 1, 5], [1, 3]]
SOURCE = {"path": "x", "columns": {"user": "u", "item": "i"}}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, str]:
    """Popularity that knows the items a to d."""
    storage = Storage.open(tmp_path_factory.mktemp("evaluated"))
    model = Popularity(PopularityConfig(), 4)
    model.fit(np.array([4, 4, 4, 3, 3, 1]))
    return storage, publish_bundle(storage, "popular", model, KEYS[:4], [], {}, {})


def measured(
    monkeypatch: pytest.MonkeyPatch,
    bundle: tuple[Storage, str],
    lists: list[list[int]],
    keys: list[str],
    **evaluation: Any,
) -> Json:
    folds = leave_last(np.array([len(items) for items in lists]), 1)
    view = Sequences(np.arange(len(lists)), Histories.of(lists), folds, np.arange(len(keys)), keys)
    monkeypatch.setattr(stage, "open_dataset", lambda *_: None)
    monkeypatch.setattr(stage, "load_view", lambda *_: view)
    recipe = parse_recipe({"name": "x", "data": {"sources": [SOURCE]}, "evaluation": {"ks": [1, 2], **evaluation}})
    storage, path = bundle
    return evaluate_here(recipe, ("x", 1), "view", path, storage)


def test_every_metric_is_measured_on_both_folds(monkeypatch: pytest.MonkeyPatch, bundle: tuple[Storage, str]) -> None:
    lists = [[1, 2, 3, 4], [1, 2, 4, 3]]
    results = measured(monkeypatch, bundle, lists, KEYS[:4])
    assert results.keys() == {"validation", "test"}
    # Popular first: d, c, a, b. Each user has one item left to be asked for at test, two at validation.
    assert results["test"]["hr@1"] == 1.0
    assert results["validation"]["hr@1"] == 0.5
    assert results["validation"]["ndcg@2"] == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert results["validation"]["coverage@1"] == 0.25
    assert results["test"]["users"] == 2
    assert {"hr@2", "ndcg@10", "popularity_bias@2", "by_history_length", "left_out"} <= results["test"].keys()


def test_slices_share_the_users_out_by_length_of_history(
    monkeypatch: pytest.MonkeyPatch, bundle: tuple[Storage, str]
) -> None:
    test = measured(monkeypatch, bundle, LISTS, KEYS, history_lengths=[2])["test"]
    slices = test["by_history_length"]
    assert {label: part["users"] for label, part in slices.items()} == {"1-2": 1, ">2": 2}
    assert sum(part["users"] * part["hr@1"] for part in slices.values()) == pytest.approx(3 * test["hr@1"])


def test_users_without_a_history_have_a_slice_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse_recipe({"name": "x", "data": {"sources": [SOURCE]}, "evaluation": {"history_lengths": [5]}})
    ranks, recommended = np.array([[1], [2], [3], [4]]), np.ones((4, 20), np.int64)
    ranked = stage.RankedUsers(ranks, recommended, np.array([0, 1, 5, 6]))
    slices = stage._summary(recipe, ranked, np.ones(6, np.int64))["by_history_length"]
    assert {label: part["users"] for label, part in slices.items()} == {"0": 1, "1-5": 2, ">5": 1}


def test_a_model_is_measured_on_a_view_with_other_items(
    monkeypatch: pytest.MonkeyPatch, bundle: tuple[Storage, str]
) -> None:
    same = measured(monkeypatch, bundle, LISTS[:2], KEYS[:4])
    # The same users and items in another order, and an item that the model does not know.
    order = ["new", "d", "c", "b", "a"]
    renamed = [[order.index(KEYS[item - 1]) + 1 for item in items] for items in LISTS[:2]]
    other = measured(monkeypatch, bundle, renamed, order)
    for name in ("hr@1", "hr@2", "ndcg@2", "mrr@2"):
        assert other["test"][name] == same["test"][name], name
        assert other["validation"][name] == same["validation"][name], name
    assert measured(monkeypatch, bundle, [[2, 3, 4, 1]], order)["test"]["hr@1"] == 0.0, "the unknown item ranks last"


def test_a_fold_on_which_nobody_can_be_ranked_is_one_message(
    monkeypatch: pytest.MonkeyPatch, bundle: tuple[Storage, str]
) -> None:
    with pytest.raises(DataError, match="no user of the test fold can be ranked"):
        measured(monkeypatch, bundle, [[1, 2, 1]], KEYS[:4])
    assert measured(monkeypatch, bundle, [[1, 2, 1]], KEYS[:4], exclude_seen=False)["test"]["users"] == 1


@pytest.mark.usefixtures("ray_cluster")
def test_what_fails_in_a_worker_is_told_as_it_was(tmp_path: Path) -> None:
    recipe = parse_recipe({"name": "x", "data": {"sources": [SOURCE]}})
    with pytest.raises(DataError) as caught:
        stage.evaluate(recipe, ("x", 1), "view", "models/x/y", Storage.open(tmp_path))
    assert str(caught.value).startswith("there is no Dataset 'x'")
    assert len(str(caught.value).splitlines()) == 1
