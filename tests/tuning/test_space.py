"""Search spaces: what they say, what they refuse, and that a wrong one is found before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.recipes import recipe_values

from rayrec.errors import RecipeError
from rayrec.recipe import Recipe
from rayrec.recipe_files import parse_recipe
from rayrec.tuning.objectives import Objectives
from rayrec.tuning.sampling import Sampler
from rayrec.tuning.space import Changes, Space, as_it_is, changed, check_against, parse_space

EVERY_KIND = {
    "training.learning_rate": {"log_uniform": [1.0e-4, 1.0e-2]},
    "training.batch_size": {"choice": [16, 32]},
    "training.weight_decay": {"uniform": [0.0, 0.1]},
    "training.averaging": {"quantised": [0.0, 0.9, 0.3]},
    "model.blocks": {"int": [1, 3]},
    "model.max_length": {"log_int": [4, 64]},
}
ONE = Objectives(("ndcg@10",))


@pytest.fixture
def recipe() -> Recipe:
    return parse_recipe(recipe_values("log.csv"))


def draws(space: Space, count: int, seed: int = 0) -> list[Changes]:
    sampler = Sampler(space, "random", seed, ONE)
    found = [sampler.ask(number) for number in range(count)]
    return [suggestion.changes for suggestion in found if suggestion]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_kind_stays_within_its_bounds(seed: int) -> None:
    for changes in draws(parse_space(EVERY_KIND, "space"), 3, seed):
        assert 1e-4 <= changes["training.learning_rate"] <= 1e-2
        assert changes["training.batch_size"] in {16, 32}
        assert 0 <= changes["training.weight_decay"] <= 0.1
        assert any(abs(changes["training.averaging"] - step) < 1e-9 for step in (0, 0.3, 0.6, 0.9))
        assert changes["model.blocks"] in {1, 2, 3}
        assert 4 <= changes["model.max_length"] <= 64


def test_a_trial_is_the_recipe_with_the_changes_and_nothing_else(recipe: Recipe) -> None:
    trial = changed(recipe, {"training.learning_rate": 0.5, "training.objective.loss": "bce", "model.dim": 32})
    assert (trial.training.learning_rate, trial.training.objective.loss, trial.model.config.dim) == (0.5, "bce", 32)
    assert (
        changed(trial, {"training.learning_rate": 0.01, "training.objective.loss": "softmax", "model.dim": 16})
        == recipe
    )
    assert changed(recipe, {}) == recipe


def test_another_model_has_its_own_defaults(recipe: Recipe) -> None:
    other = changed(recipe, {"model.name": "gru4rec", "model.dim": 8})
    assert (other.model.name, other.model.config.dim) == ("gru4rec", 8)
    assert "blocks" not in other.sections("model")["model"]


def test_a_key_with_a_condition_is_there_only_where_that_holds() -> None:
    space = parse_space(
        {
            "model.heads": {"choice": [1, 2], "when": {"model.blocks": [2, 3]}},
            "model.blocks": {"int": [1, 3], "when": {"model.name": "sasrec"}},
            "model.name": {"choice": ["sasrec", "popularity"]},
        },
        "space",
    )
    found = draws(space, 60)
    for changes in found:
        assert ("model.blocks" in changes) == (changes["model.name"] == "sasrec")
        assert ("model.heads" in changes) == (changes.get("model.blocks", 1) > 1)
    assert {len(changes) for changes in found} == {1, 2, 3}


def test_a_grid_is_every_combination_once() -> None:
    space = parse_space(
        {
            "model.name": {"choice": ["sasrec", "popularity"]},
            "model.blocks": {"int": [1, 3], "when": {"model.name": "sasrec"}},
            "training.averaging": {"quantised": [0.0, 0.5, 0.5]},
        },
        "space",
    )
    combinations = [tuple(sorted(changes.items())) for changes in space.grid()]
    assert len(combinations) == len(set(combinations)) == 2 * 3 + 2


def test_the_recipe_as_it_is_is_a_point_of_the_space_or_none(recipe: Recipe) -> None:
    space = parse_space(
        {"training.learning_rate": {"log_uniform": [0.001, 0.1]}, "model.dim": {"choice": [16, 32]}}, "s"
    )
    assert as_it_is(space, recipe) == {"training.learning_rate": 0.01, "model.dim": 16}
    assert as_it_is(parse_space({"model.dim": {"choice": [32, 64]}}, "s"), recipe) is None


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({}, "expected recipe keys"),
        ([1], "expected recipe keys"),
        ({"training.learning_rate": {"unifrom": [0, 1]}}, "Did you mean 'uniform'?"),
        ({"training.learning_rate": 0.1}, "expected a kind with its values"),
        ({"training.learning_rate": {}}, "found none"),
        ({"training.learning_rate": {"uniform": [1, 0]}}, "the lowest (1) must be below the highest (0)"),
        ({"training.learning_rate": {"uniform": [0.1, 0.1]}}, "must be below"),
        ({"training.learning_rate": {"log_uniform": [0, 1]}}, "must be above 0 on a logarithmic scale"),
        ({"training.learning_rate": {"log_uniform": ["1e-4", 0.1]}}, "write 1e-3 as 1.0e-3 or 0.001"),
        ({"training.learning_rate": {"uniform": [0.1]}}, "expected [lowest, highest]"),
        ({"training.learning_rate": {"uniform": [0.1, 10**400]}}, "is not a number"),
        ({"training.averaging": {"quantised": [1e-300, 1e308, 1e-300]}}, "leave the step out"),
        ({"model.dim": {"choice": [8, 16], "when": {"model.name": []}}}, "an empty list allows nothing"),
        ({"model.dim": {"choice": list(range(1001))}}, "at most 1000 values. Write a range"),
        ({"training.learning_rate": {"uniform": [0, float("inf")]}}, "inf is not a number"),
        ({"training.learning_rate": {"quantised": [0, 1, 2]}}, "the step must be above 0 and at most 1"),
        ({"training.batch_size": {"int": [16, 32.5]}}, "32.5 is not a whole number"),
        ({"training.batch_size": {"int": [True, 8]}}, "True is not a whole number"),
        ({"training.batch_size": {"choice": []}}, "expected a list of values"),
        ({"training.batch_size": {"choice": [16, 16]}}, "a value stands twice"),
        ({"data.view.min_item_events": {"int": [1, 5]}}, "trials share one Dataset"),
        ({"learning_rate": {"uniform": [0, 1]}}, "Did you mean 'training.learning_rate'?"),
        ({"training.metric": {"choice": ["ndcg@10"]}}, "--metric chooses it"),
        ({"training.threads": {"int": [1, 2]}}, "set it in the recipe"),
        (
            {"model.dim": {"int": [1, 2], "when": {"model.nam": "x"}}, "model.name": {"choice": ["sasrec"]}},
            "Did you mean",
        ),
        (
            {"model.dim": {"int": [1, 2], "when": {"model.name": "sasre"}}, "model.name": {"choice": ["sasrec"]}},
            "model.name is never 'sasre' in this space. Did you mean 'sasrec'?",
        ),
        (
            {
                "model.dim": {"int": [1, 2], "when": {"model.blocks": 1}},
                "model.blocks": {"int": [1, 2], "when": {"model.dim": 1}},
            },
            "go round in a circle",
        ),
    ],
)
def test_an_impossible_space_is_refused_with_what_is_wrong(space: Any, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_space(space, "space")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (
            {"training.learning_rat": {"uniform": [0.1, 1]}},
            "training.learning_rat: unknown key. Did you mean 'learning_rate'?",
        ),
        ({"model.dimm": {"int": [8, 16]}}, "model.dimm: unknown key. Did you mean 'dim'?"),
        ({"training.learning_rate": {"uniform": [-1, 1]}}, "learning_rate must be above 0"),
        ({"training.optimizer": {"choice": ["adam", "adamm"]}}, "Did you mean 'adam'?"),
        ({"model.dropout": {"uniform": [0, 2]}}, "dropout"),
        ({"model.name": {"choice": ["sasrec", "gru5rec"]}}, "Did you mean 'gru4rec'?"),
        ({"training.batch_size": {"uniform": [16.5, 32]}}, "training.batch_size"),
        ({"training.seed.x": {"int": [1, 2]}}, "'seed' has no keys of its own"),
    ],
)
def test_what_would_be_wrong_in_every_trial_is_found_before_the_first(
    recipe: Recipe, space: Any, expected: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        check_against(parse_space(space, "space"), recipe, "space")
    assert expected in str(caught.value)


def test_values_that_go_only_with_some_others_are_allowed(recipe: Recipe) -> None:
    """No 16 parts into 3 heads, but 48 do."""
    check_against(parse_space({"model.dim": {"choice": [16, 48]}, "model.heads": {"choice": [2, 3]}}, "s"), recipe, "s")
    with pytest.raises(RecipeError, match="heads"):
        check_against(parse_space({"model.heads": {"choice": [2, 3]}}, "s"), recipe, "s")


def test_values_that_go_with_some_of_a_condition_are_allowed(recipe: Recipe) -> None:
    space = {"model.dim": {"choice": [16, 48]}, "model.heads": {"choice": [2, 3], "when": {"model.dim": [16, 48]}}}
    check_against(parse_space(space, "s"), recipe, "s")


def test_steps_are_the_numbers_that_people_write() -> None:
    space = parse_space(
        {"model.dropout": {"quantised": [0.0, 0.6, 0.1]}, "model.dim": {"int": [8, 9], "when": {"model.dropout": 0.3}}},
        "s",
    )
    steps = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert space.parameters[0].levels == steps
    assert {changes["model.dropout"] for changes in draws(space, 60)} == set(steps)


def test_keys_of_another_model_are_checked_against_that_model(recipe: Recipe) -> None:
    space = {
        "model.name": {"choice": ["sasrec", "gru4rec"]},
        "model.hidden": {"int": [8, 16], "when": {"model.name": "gru4rec"}},
    }
    check_against(parse_space(space, "s"), recipe, "s")
    space["model.hidden"]["when"] = {"model.name": "sasrec"}
    with pytest.raises(RecipeError, match=r"model\.hidden: unknown key"):
        check_against(parse_space(space, "s"), recipe, "s")
