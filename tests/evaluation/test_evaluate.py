"""The evaluate stage, on a view made by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rayrec.evaluation.evaluate as stage
from rayrec.artifacts import Json, Storage
from rayrec.data.splits import leave_last
from rayrec.data.views import Sequences
from rayrec.errors import DataError, ModelError
from rayrec.evaluation.evaluate import Measure, evaluate_here
from rayrec.evaluation.full_ranking import RankedUsers
from rayrec.evaluation.slices import by_group, by_history_length, by_popularity
from rayrec.features.histories import Histories
from rayrec.inference.bundle import publish_bundle
from rayrec.models.interactions import Interactions, here
from rayrec.models.popularity import Popularity, PopularityConfig
from rayrec.recipe_files import parse_recipe

KEYS = ["a", "b", "c", "d", "e"]
LISTS = [[1, 2, 3, 4], [1, 2, 4, 3], [2, 1, 5], [1, 3]]
MADE_FROM: Json = {"dataset": {"digest": "data"}, "view": "view", "training": {"folds": ["train"]}}
SOURCE = {"path": "x", "columns": {"user": "u", "item": "i"}}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, str]:
    """Popularity that knows the items a to d."""
    storage = Storage.open(tmp_path_factory.mktemp("evaluated"))
    model = Popularity(PopularityConfig(), 4)
    model.fit(Interactions(Histories.of([[4, 4, 4, 3, 3, 1]]), 4), here, seed=0)
    return storage, publish_bundle(storage, "popular", model, KEYS[:4], [], MADE_FROM, {})


def measured(
    monkeypatch: pytest.MonkeyPatch,
    bundle: tuple[Storage, str],
    lists: list[list[int]],
    keys: list[str],
    **evaluation: Any,
) -> Json:
    folds = leave_last(np.array([len(items) for items in lists]), 1)
    view = Sequences(np.arange(len(lists)), Histories.of(lists), folds, np.arange(len(keys)), keys)
    # A view needs no files to be measured on; those of its parts that only files have are tested with real ones.
    monkeypatch.setattr(stage, "open_dataset", lambda *_: SimpleNamespace(manifest={"order": "file"}, digest="data"))
    monkeypatch.setattr(stage, "load_view", lambda *_: view)
    monkeypatch.setattr(stage, "item_features", lambda *_: None)
    storage, path = bundle
    return evaluate_here(measure(storage, path, {"ks": [1, 2], **evaluation}))


def measure(storage: Storage, bundle: str, evaluation: Any) -> Measure:
    recipe = parse_recipe({"name": "x", "data": {"sources": [SOURCE]}, "evaluation": evaluation})
    return Measure(recipe.evaluation, recipe.metric_names, ("x", 1), "view", storage, bundle, storage)


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
    assert {"hr@2", "ndcg@10", "popularity_bias@2", "novelty@2", "gini@2", "left_out"} <= results["test"].keys()


def test_slices_share_the_users_out_by_length_of_history(
    monkeypatch: pytest.MonkeyPatch, bundle: tuple[Storage, str]
) -> None:
    test = measured(monkeypatch, bundle, LISTS, KEYS, history_lengths=[2])["test"]
    slices = test["slices"]["history_length"]
    assert {label: part["users"] for label, part in slices.items()} == {"1-2": 1, ">2": 2}
    assert sum(part["users"] * part["hr@1"] for part in slices.values()) == pytest.approx(3 * test["hr@1"])


def test_users_without_a_history_have_a_slice_of_their_own() -> None:
    ranks = np.array([[1], [2], [3], [4]])
    ranked = RankedUsers(ranks, ranks, ranks, np.array([0, 1, 5, 6]), np.arange(4))
    slices = by_history_length(ranked, [5], ["hr@1"])
    assert {label: part["users"] for label, part in slices.items()} == {"0": 1, "1-5": 2, ">5": 1}


def test_items_are_sliced_by_thirds_of_the_training_events() -> None:
    # Items 1, 2 and 3 to 5 take a third of the events each. The second user wants one of each kind.
    popularity = np.array([0, 6, 6, 2, 2, 2])
    ranked = RankedUsers(
        np.array([[1, 0, 0], [3, 1, 2]]), np.array([[1, 0, 0], [1, 2, 4]]), np.ones((2, 1)), np.ones(2), np.arange(2)
    )
    slices = by_popularity(ranked, popularity, ["hr@1"])
    assert slices == {
        "head": {"users": 2, "hr@1": 0.5, "items": 1},
        "middle": {"users": 1, "hr@1": 1.0, "items": 1},
        "tail": {"users": 1, "hr@1": 0.0, "items": 3},
    }


def test_users_are_sliced_by_a_feature_of_theirs() -> None:
    ranks = np.array([[1], [2], [1]])
    ranked = RankedUsers(ranks, ranks, ranks, np.ones(3), np.array([0, 2, 3]))
    groups = np.array(["young", "nobody ranked", "old", "young"], dtype=object)
    slices = by_group(ranked, groups, ["hr@1"])
    assert slices == {"young": {"users": 2, "hr@1": 1.0}, "old": {"users": 1, "hr@1": 0.0}}


def test_the_smallest_groups_are_one() -> None:
    ranks = np.ones((30, 1), np.int64)
    ranked = RankedUsers(ranks, ranks, ranks, np.ones(30), np.arange(30))
    groups = np.array(["(others)"] * 6 + [f"group {n}" for n in range(24)], dtype=object)
    slices = by_group(ranked, groups, ["hr@1"])
    assert (slices["(others)"]["users"], slices["(5 others)"]["users"]) == (6, 5)
    assert sum(values["users"] for values in slices.values()) == 30


def test_the_mean_lies_within_its_interval(monkeypatch: pytest.MonkeyPatch, bundle: tuple[Storage, str]) -> None:
    test = measured(monkeypatch, bundle, LISTS, KEYS)["test"]
    assert test["intervals"].keys() >= {"hr@1", "ndcg@2"}
    assert all(low <= test[name] <= high for name, (low, high) in test["intervals"].items())


def test_the_ranks_of_every_user_are_kept(monkeypatch: pytest.MonkeyPatch, bundle: tuple[Storage, str]) -> None:
    test = measured(monkeypatch, bundle, LISTS, KEYS)["test"]
    outcomes = pq.read_table(pa.BufferReader(bundle[0].read(test["outcomes"])))
    assert outcomes.num_rows == test["users"]
    assert np.mean([ranks == [1] for ranks in outcomes["ranks"].to_pylist()]) == pytest.approx(test["hr@1"])


def test_a_fold_that_a_model_has_learnt_from_is_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    storage, model = Storage.open(tmp_path), Popularity(PopularityConfig(), 4)
    model.exports = False  # an export takes a second
    model.fit(Interactions(Histories.of([[4, 3, 1]]), 4), here, seed=0)
    lineage = MADE_FROM | {"training": {"folds": ["train", "validation"]}}
    path = publish_bundle(storage, "x", model, KEYS[:4], [], lineage, {})
    with pytest.raises(ModelError, match="was trained on the validation events that it is to be measured on"):
        measured(monkeypatch, (storage, path), LISTS[:2], KEYS[:4])
    # Another view has other events.
    path = publish_bundle(storage, "x", model, KEYS[:4], [], lineage | {"view": "another"}, {})
    assert measured(monkeypatch, (storage, path), LISTS[:2], KEYS[:4]).keys() == {"validation", "test"}


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
    with pytest.raises(DataError) as caught:
        stage.evaluate(measure(Storage.open(tmp_path), "models/x/y", {}))
    assert str(caught.value).startswith("there is no Dataset 'x'")
    assert len(str(caught.value).splitlines()) == 1
