"""Which trials go on: Ray Tune's rules, told of an earlier session, at equal steps, sparing the recipe as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from tests.recipes import recipe_values, write_log

from rayrec.recipe_files import parse_recipe
from rayrec.tuning.options import Options
from rayrec.tuning.records import TrialRecord
from rayrec.tuning.schedulers import scheduler
from rayrec.tuning.space import Changes, parse_space
from rayrec.tuning.trial import Suggested

SPACE = parse_space({"training.batch_size": {"choice": [8, 16, 64]}}, "space")
KNOWN = [
    TrialRecord(number, {}, f"trial-{number}", state, curve=(0.1, 0.3, 0.2, 0.25))
    for number, state in enumerate(("done", "stopped", "done"))
]


class Controller:
    """As much of Ray Tune's as its rules ask for."""

    def get_live_trials(self) -> set[Trial]:
        return set()


Decide = Callable[..., list[str]]


@pytest.fixture
def decisions(tmp_path: Path) -> Decide:
    """What becomes of a trial, epoch by epoch, until it is stopped."""
    recipe = parse_recipe(recipe_values(write_log(tmp_path), training={"epochs": 12, "batch_size": 16}))

    def decide(
        rule: str, number: int, curve: list[float], known: list[TrialRecord], changes: Changes | None = None
    ) -> list[str]:
        options = Options.model_validate({"scheduler": rule, "grace_epochs": 2, "reduction": 2})
        judge = scheduler(options, SPACE, recipe, known)
        judge.set_search_properties("best", "max")
        trial = Trial("trial", stub=True, config=Suggested(number, f"trial-{number}", changes or {}).config())
        judge.on_trial_add(Controller(), trial)
        made: list[str] = []
        for epoch, best in enumerate(accumulate(curve, max), start=1):
            made.append(judge.on_trial_result(Controller(), trial, {"training_iteration": epoch, "best": best}))
            if made[-1] == TrialScheduler.STOP:
                break
        return made

    return decide


@pytest.mark.parametrize("rule", ["asha", "median"])
def test_trials_are_compared_with_those_of_an_earlier_session(decisions: Decide, rule: str) -> None:
    worse, better = [0.05, 0.1], [0.1, 0.4]
    assert decisions(rule, 3, worse, KNOWN)[-1] == TrialScheduler.STOP
    assert decisions(rule, 3, better, KNOWN)[-1] == TrialScheduler.CONTINUE
    assert decisions(rule, 3, worse, [])[-1] == TrialScheduler.CONTINUE


@pytest.mark.parametrize("rule", ["none", "asha", "median", "hyperband", "pbt"])
def test_any_space_has_its_scheduler(rule: str, tmp_path: Path) -> None:
    recipe = parse_recipe(recipe_values(write_log(tmp_path)))
    space = parse_space({"training.learning_rate": {"log_uniform": [0.001, 0.1]}}, "space")
    assert isinstance(scheduler(Options.model_validate({"scheduler": rule}), space, recipe), TrialScheduler)


@pytest.mark.parametrize("rule", ["asha", "median"])
def test_the_recipe_as_it_is_comes_to_its_end(decisions: Decide, rule: str) -> None:
    others = [replace(record, number=record.number + 1) for record in KNOWN]
    assert set(decisions(rule, 0, [0.01] * 12, others)) == {TrialScheduler.CONTINUE}


@pytest.mark.parametrize("rule", ["asha", "median"])
def test_trials_that_failed_or_go_on_are_no_measure(decisions: Decide, rule: str) -> None:
    others = [
        TrialRecord(number, {}, f"trial-{number}", state, curve=(0.3, 0.3))
        for number, state in enumerate(("running", "failed", "running"))
    ]
    assert decisions(rule, 3, [0.05, 0.1], others)[-1] == TrialScheduler.CONTINUE


@pytest.mark.parametrize("rule", ["asha", "median"])
@pytest.mark.parametrize(("batch_size", "stopped"), [(16, 2), (64, 8), (8, 1)])
def test_trials_are_compared_after_equal_steps(decisions: Decide, rule: str, batch_size: int, stopped: int) -> None:
    made = decisions(rule, 3, [0.05] * 10, KNOWN, {"training.batch_size": batch_size})
    assert (len(made), made[-1]) == (stopped, TrialScheduler.STOP)


def test_a_small_batch_has_all_its_epochs(decisions: Decide) -> None:
    assert set(decisions("asha", 3, [0.9] * 12, KNOWN, {"training.batch_size": 8})) == {TrialScheduler.CONTINUE}
