"""Which trials go on: Ray Tune's rules, told of an earlier session, and sparing the recipe as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from rayrec.tuning.options import Options
from rayrec.tuning.records import TrialRecord
from rayrec.tuning.schedulers import scheduler
from rayrec.tuning.space import parse_space
from rayrec.tuning.trial import Suggested

SPACE = parse_space({"training.learning_rate": {"log_uniform": [0.001, 0.1]}}, "space")
KNOWN = [
    TrialRecord(number, {}, f"trial-{number}", state, curve=(0.1, 0.3, 0.2, 0.25))
    for number, state in enumerate(("done", "stopped", "done"))
]


class Controller:
    """As much of Ray Tune's as its rules ask for."""

    def get_live_trials(self) -> set[Trial]:
        return set()


def decisions(rule: str, number: int, curve: list[float], known: list[TrialRecord]) -> list[str]:
    """What becomes of a trial, epoch by epoch."""
    options = Options(scheduler=rule, grace_epochs=2, reduction=2)  # type: ignore[arg-type]
    judge = scheduler(options, SPACE, 12, known)
    judge.set_search_properties("best", "max")
    trial = Trial("trial", stub=True, config=Suggested(number, f"trial-{number}", {}).config())
    judge.on_trial_add(Controller(), trial)
    told = [{"training_iteration": epoch, "best": max(curve[:epoch])} for epoch in range(1, len(curve) + 1)]
    return [judge.on_trial_result(Controller(), trial, result) for result in told]


@pytest.mark.parametrize("rule", ["asha", "median"])
def test_trials_are_compared_with_those_of_an_earlier_session(rule: str) -> None:
    worse, better = [0.05, 0.1], [0.1, 0.4]
    assert decisions(rule, 3, worse, KNOWN)[-1] == TrialScheduler.STOP
    assert decisions(rule, 3, better, KNOWN)[-1] == TrialScheduler.CONTINUE
    assert decisions(rule, 3, worse, [])[-1] == TrialScheduler.CONTINUE


@pytest.mark.parametrize("rule", ["asha", "median"])
def test_the_recipe_as_it_is_comes_to_its_end(rule: str) -> None:
    others = [replace(record, number=record.number + 1) for record in KNOWN]
    assert set(decisions(rule, 0, [0.01] * 12, others)) == {TrialScheduler.CONTINUE}


@pytest.mark.parametrize("rule", ["asha", "median"])
def test_trials_that_failed_or_go_on_are_no_measure(rule: str) -> None:
    others = [
        TrialRecord(number, {}, f"trial-{number}", state, curve=(0.3, 0.3))
        for number, state in enumerate(("running", "failed", "running"))
    ]
    assert decisions(rule, 3, [0.05, 0.1], others)[-1] == TrialScheduler.CONTINUE
