"""Which trials are run: none twice, what was begun first, and the same ones however often it is interrupted."""

from __future__ import annotations

from typing import Any

import pytest
from tests.recipes import recipe_values

from rayrec.artifacts import short_digest
from rayrec.recipe import Recipe
from rayrec.recipe_files import parse_recipe
from rayrec.tuning.objectives import Objectives
from rayrec.tuning.records import TrialRecord
from rayrec.tuning.sampling import Sampler
from rayrec.tuning.searcher import Trials
from rayrec.tuning.space import as_it_is, changed, parse_space

RECIPE = parse_recipe(recipe_values("log.csv"))
ONE = Objectives(("ndcg@10",))
SMOOTH = {"training.learning_rate": {"log_uniform": [0.001, 0.1]}, "training.batch_size": {"choice": [8, 16, 32]}}
FEW = {"training.batch_size": {"choice": [8, 16, 32]}}


def name_of(recipe: Recipe) -> str:
    return short_digest(recipe.sections("model", "training"))


def searcher(
    raw: dict[str, Any], trials: int, algorithm: str = "tpe", known: list[TrialRecord] | None = None
) -> Trials:
    space = parse_space(raw, "space")
    sampler = Sampler(space, algorithm, 7, ONE)
    return Trials(sampler, ONE, lambda c: changed(RECIPE, c), name_of, as_it_is(space, RECIPE), trials, known or [])


def score(changes: dict[str, Any]) -> float:
    return changes.get("training.learning_rate", 0.01) * changes["training.batch_size"]


def run(trials: Trials, most: int = 1000) -> list[dict[str, Any]]:
    """One trial after the other, as Ray Tune would."""
    configs: list[dict[str, Any]] = []
    while len(configs) < most:
        config = trials.suggest(str(len(configs)))
        if not isinstance(config, dict):
            break
        config = config["trial"]
        best = score(config["changes"])
        trials.on_trial_complete(str(len(configs)), {"values": [["ndcg@10", best]], "best": best})
        configs.append(config)
    return configs


def ended(config: dict[str, Any]) -> TrialRecord:
    best = score(config["changes"])
    return TrialRecord(**config, state="done", curve=(best,), values={"ndcg@10": best})


def test_the_recipe_as_it_is_comes_first() -> None:
    first, *others = run(searcher(SMOOTH, 5))
    assert first["changes"] == {"training.learning_rate": 0.01, "training.batch_size": 16}
    assert [config["number"] for config in others] == [1, 2, 3, 4]
    assert searcher({"training.batch_size": {"choice": [64, 128]}}, 2).suggest("0")["trial"]["changes"] == {}  # type: ignore[index]


def test_a_trial_whose_record_is_gone_is_run_again() -> None:
    whole = run(searcher(SMOOTH, 4, "random"))
    for gone in range(4):
        known = [ended(config) for config in whole if config["number"] != gone]
        assert run(searcher(SMOOTH, 4, "random", known)) == [whole[gone]]


@pytest.mark.parametrize("algorithm", ["random", "tpe", "nsga2", "grid"])
def test_no_trial_is_run_twice_and_a_space_has_an_end(algorithm: str) -> None:
    configs = run(searcher(FEW, 10, algorithm))
    assert sorted(config["changes"]["training.batch_size"] for config in configs) == [8, 16, 32]
    assert len({config["name"] for config in configs}) == 3


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
@pytest.mark.parametrize("done", [1, 6, 12])
def test_an_interrupted_sweep_runs_the_trials_that_a_whole_one_would_have(algorithm: str, done: int) -> None:
    whole = run(searcher(SMOOTH, 16, algorithm))
    known = [ended(config) for config in whole[:done]]
    rest = searcher(SMOOTH, 16, algorithm, known)
    assert rest.left == 16 - done
    assert run(rest) == whole[done:]


def test_what_was_begun_is_finished_first_under_its_number() -> None:
    whole = run(searcher(SMOOTH, 8))
    known = [ended(whole[0]), TrialRecord(**whole[1]), ended(whole[2])]
    rest = run(searcher(SMOOTH, 8, known=known))
    assert rest[0] == whole[1]
    assert [config["number"] for config in rest] == [1, 3, 4, 5, 6, 7]


def test_a_finished_sweep_takes_more_trials() -> None:
    eight, twelve = run(searcher(SMOOTH, 8)), run(searcher(SMOOTH, 12))
    assert run(searcher(SMOOTH, 12, known=[ended(config) for config in eight])) == twelve[8:]


def test_a_grid_goes_on_however_much_of_it_is_known() -> None:
    raw = {"training.batch_size": {"int": [1, 300]}}
    whole = run(searcher(raw, 300, "grid"))
    assert len(whole) == 300
    known = [ended(config) for config in whole[:150]]
    assert run(searcher(raw, 300, "grid", known)) == whole[150:]


def test_fewer_trials_than_there_are_is_nothing_to_do() -> None:
    whole = run(searcher(SMOOTH, 6))
    known = [*(ended(config) for config in whole[:4]), TrialRecord(**whole[4]), TrialRecord(**whole[5])]
    rest = searcher(SMOOTH, 5, known=known)
    assert rest.left == 1
    assert [config["number"] for config in run(rest)] == [4]
    assert searcher(SMOOTH, 3, known=known).left == 0


def test_values_that_make_no_recipe_cost_no_trial() -> None:
    raw = {"model.dim": {"choice": [16, 48]}, "model.heads": {"choice": [2, 3]}}
    configs = run_plain(searcher(raw, 10))
    pairs = {(config["changes"]["model.dim"], config["changes"]["model.heads"]) for config in configs[1:]}
    assert pairs == {(16, 2), (48, 2), (48, 3)}


def run_plain(trials: Trials) -> list[dict[str, Any]]:
    configs = []
    while isinstance(config := trials.suggest(str(len(configs))), dict):
        trials.on_trial_complete(str(len(configs)), {"values": [["ndcg@10", 0.5]], "best": 0.5})
        configs.append(config["trial"])
    return configs


def test_tpe_learns_from_what_came_of_trials() -> None:
    """The later trials of a search are better than its first ones; those of a random one are not."""
    later = {}
    for algorithm in ("tpe", "random"):
        scores = [score(config["changes"]) for config in run(searcher(SMOOTH, 40, algorithm))]
        later[algorithm] = sum(scores[20:]) / 20
    assert later["tpe"] > 1.5 * later["random"]
