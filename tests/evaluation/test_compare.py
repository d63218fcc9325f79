"""Comparing Releases: the same users for all, tests of differences, and what makes figures too good."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.evaluation.conftest import View

from rayrec.artifacts import Storage
from rayrec.errors import ModelError, RecipeError
from rayrec.evaluation.compare import Comparison, Entrant, compare_here
from rayrec.evaluation.comparison_page import comparison_page
from rayrec.metrics.significance import paired_test
from rayrec.plots import plot_comparison

# Of the items that nobody had before, e is what most are asked for.
HISTORIES = {f"user{n:02d}": "abc" + ("e" if n % 4 else "d") for n in range(16)}
Prepared = Callable[..., View]
Entrants = Callable[..., Entrant]


@pytest.fixture
def view(prepared: Prepared) -> View:
    return prepared(HISTORIES)


@pytest.fixture
def comparison(view: View, entrant: Entrants) -> Comparison:
    """One that prefers d, one that prefers e."""
    return compare_here([entrant(1, view, "dabce"), entrant(2, view, "eabcd")])


def test_the_better_model_is_found_to_be_better(comparison: Comparison) -> None:
    first, second = (model["test"]["ndcg@3"] for model in comparison.models)
    # At test both have d and e to choose from: one is first, the other second.
    assert first == pytest.approx((4 + 12 / np.log2(3)) / 16)
    assert second == pytest.approx((12 + 4 / np.log2(3)) / 16)
    (test,) = comparison.tests
    assert (test["model"], test["metric"]) == ("test/2", "ndcg@3")
    assert test["difference"] == pytest.approx(second - first)
    assert test["low"] < test["difference"] < test["high"]
    assert (test["better"], test["equal"], test["worse"]) == (12, 0, 4)


def test_the_users_of_all_models_are_paired_and_the_tests_corrected_as_one_family(
    view: View, entrant: Entrants
) -> None:
    entrants = [entrant(1, view, "dabce"), entrant(2, view, "eabcd"), entrant(3, view, "dabec")]
    found = compare_here(entrants, ["hr@1", "ndcg@3"])
    mine = np.array([0.0 if user % 4 == 0 else 1.0 for user in range(16)])
    p = paired_test(mine, 1 - mine).p_value
    tests = {(test["model"], test["metric"]): test for test in found.tests}
    assert tests["test/2", "hr@1"]["p_value"] == p
    assert p < tests["test/2", "hr@1"]["p_holm"] <= 4 * p
    assert tests["test/3", "hr@1"]["equal"] == 16
    assert tests["test/3", "hr@1"]["p_holm"] == 1.0


def test_models_with_other_items_are_measured_on_the_events_of_the_first(view: View, entrant: Entrants) -> None:
    found = compare_here([entrant(1, view, "eabcd"), entrant(2, view, "ezabcd"), entrant(3, view, "abc")])
    same, unknown = found.models[1]["test"], found.models[2]["test"]
    assert same["ndcg@3"] == found.models[0]["test"]["ndcg@3"]
    assert unknown["hr@1"] < same["hr@1"]
    assert {model["test"]["users"] for model in found.models} == {16}


def test_another_cut_off_is_measured_when_asked_for(view: View, entrant: Entrants) -> None:
    found = compare_here([entrant(1, view, "dabce"), entrant(2, view, "eabcd")], ["recall@2"])
    assert found.metrics == ("recall@2",)
    assert found.models[0]["test"]["recall@2"] == 1.0
    assert found.beyond_accuracy[:2] == ["coverage@2", "novelty@2"]


def test_an_unknown_metric_is_refused(view: View, entrant: Entrants) -> None:
    with pytest.raises(RecipeError, match="did you mean 'ndcg@10'"):
        compare_here([entrant(1, view, "dabce"), entrant(2, view, "eabcd")], ["ndgc@10"])


def test_a_release_that_does_not_say_how_it_was_measured_is_refused(view: View, entrant: Entrants) -> None:
    first = entrant(1, view, "dabce")
    content = {key: value for key, value in first.release.content.items() if key != "evaluation"}
    with pytest.raises(ModelError, match="Run its recipe again"):
        compare_here([Entrant("test/1", replace(first.release, content=content)), first])


# ---- leakage


def test_a_model_that_was_trained_on_test_events_is_told_though_its_indexes_are_others(
    prepared: Prepared, entrant: Entrants
) -> None:
    older = prepared(HISTORIES)
    newer = prepared({"another": "0a1b", **{user: items + "01" for user, items in HISTORIES.items()}})
    found = compare_here([entrant(1, older, "dabce"), entrant(2, newer, "01abcde")])
    assert [model["trained_on_test"] for model in found.models] == [0, 16]
    assert "test/2 was trained on 16 of the test events: it knows what it is asked for." in found.warnings
    back = compare_here([entrant(2, newer, "01abcde"), entrant(1, older, "dabce")])
    assert [model["trained_on_test"] for model in back.models] == [0, 0]


def test_what_was_trained_again_is_measured_unless_it_knows_the_test_events(view: View, entrant: Entrants) -> None:
    folds = ("train", "validation", "test")
    entrants = [
        entrant(1, view, "dabce"),
        entrant(2, view, "eabcd", folds[:2], before="dabce"),
        entrant(3, view, "eabcd", folds, before="dabce"),
    ]
    first, second, third = compare_here(entrants).models
    assert second["bundle"] == entrants[1].release.content["models"]["main"]
    assert (second["trained_on_test"], second["refit_on_test"]) == (0, 0)
    assert second["test"]["ndcg@3"] > first["test"]["ndcg@3"]
    assert third["bundle"] == entrants[2].release.evaluated["main"]
    assert (third["trained_on_test"], third["refit_on_test"]) == (0, 16)
    assert third["test"]["ndcg@3"] == first["test"]["ndcg@3"]
    note = "test/3: what it serves was trained again on 16 of the test events, so the model before that was measured."
    assert note in compare_here(entrants).warnings


def test_where_a_models_data_is_gone_that_is_said(prepared: Prepared, entrant: Entrants, store: Storage) -> None:
    older = prepared(HISTORIES)
    newer = prepared({user: items + "01" for user, items in HISTORIES.items()})
    entrants = [entrant(1, newer, "01abcde"), entrant(2, older, "dabce")]
    store.remove(f"datasets/test/views/{older[1]}")
    found = compare_here(entrants)
    assert found.warnings[0].startswith("test/2: whether it was trained on test events is not known: ")
    assert older[1] in found.warnings[0]


@pytest.mark.parametrize(("split", "share"), [({}, 15 / 16), ({"kind": "time", "validation": 0.2, "test": 0.2}, 0.0)])
def test_popularity_from_after_the_test_events_is_told_and_a_split_by_time_avoids_it(
    prepared: Prepared, entrant: Entrants, split: dict[str, Any], share: float
) -> None:
    view = prepared(HISTORIES, split=split)
    found = compare_here([entrant(1, view, "dabce"), entrant(2, view, "eabcd")])
    assert found.models[0]["test"]["after_test"] == share
    assert any("after them" in warning for warning in found.warnings) == (share > 0)


def test_repeated_events_are_told_where_they_count(prepared: Prepared, entrant: Entrants) -> None:
    view = prepared({f"user{n}": "abcda" for n in range(4)})
    entrants = [entrant(n, view, order, exclude_seen=False) for n, order in enumerate(["abcd", "dcba"])]
    assert any("4 test events are on items" in warning for warning in compare_here(entrants).warnings)


# ---- what is shown


def test_the_page_and_the_plot_show_all_of_it_and_no_user(comparison: Comparison) -> None:
    page = comparison_page(comparison)
    for text in ("test/1 against test/2", "coverage@3", "p (Holm)", "ndcg@3 by item popularity", "default-src 'none'"):
        assert text in page
    assert page.count("<svg") == 2
    assert "user0" not in page
    assert len(plot_comparison(comparison).axes) == 2
    assert json.loads(json.dumps(comparison.to_json()))["tests"][0]["better"] == 12
