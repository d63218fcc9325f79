"""What trials are judged by."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rayrec.errors import RecipeError
from rayrec.tuning.objectives import parse_objectives
from rayrec.tuning.records import TrialRecord, best_of, contenders, front_of, state_of


def record(number: int, value: float, state: str = "done", **costs: float) -> TrialRecord:
    values = {"ndcg@10": value, **costs}
    return TrialRecord(number, {}, f"n{number}", state, curve=(value,), values=values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "constraints", "expected"),
    [
        (["ndgc@10"], [], "Did you mean 'ndcg@10'?"),
        (["ndcg@x"], [], "Did you mean 'ndcg@10'?"),
        (["ndcg@0"], [], "Did you mean 'ndcg@10'? They measure"),
        (["ndcg@100000"], [], "at a cut-off from @1 to @"),
        (["ndcg"], [], "Did you mean"),
        (["ndcg@10", "p95ms"], [], "Did you mean 'p95_ms'?"),
        (["coverage@10"], [], "trials do not measure 'coverage@10'"),
        (["p95_ms"], [], "the first must be one that training watches"),
        (["ndcg@10", "ndcg@10"], [], "one is named twice"),
        (["ndcg@10"], ["p95_ms < 5"], "write it like"),
        (["ndcg@10"], ["p95_ms <= fast"], "write it like"),
        (["ndcg@10"], ["p95_ms <= nan"], "write it like"),
        (["ndcg@10"], ["p95_ms <= -inf"], "write it like"),
        (["ndcg@10"], ["p59_ms <= 5"], "Did you mean 'p95_ms'?"),
    ],
)
def test_what_no_trial_measures_is_refused(names: list[str], constraints: list[str], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_objectives(names, constraints)
    assert expected in str(caught.value)


def test_constraints_hold_up_to_their_bound() -> None:
    objectives = parse_objectives(["ndcg@10"], ["p95_ms <= 5", "hr@20 >= 0.1"])
    assert objectives.wanted == ("ndcg@10", "p95_ms", "hr@20")
    assert objectives.allows({"p95_ms": 5.0, "hr@20": 0.1})
    assert not objectives.allows({"p95_ms": 5.1, "hr@20": 0.1})
    assert not objectives.allows({"p95_ms": 5.0})


def test_the_best_meets_the_constraints_and_was_trained_to_its_end() -> None:
    objectives = parse_objectives(["ndcg@10"], ["p95_ms <= 5"])
    trials = [record(0, 0.1, p95_ms=1), record(1, 0.3, p95_ms=9), record(2, 0.2, p95_ms=5), record(3, 0.9, "stopped")]
    best = best_of(trials, objectives)
    assert best is not None
    assert best.number == 2
    assert best_of(trials[1:2], objectives) is None


def test_a_trial_that_breaks_a_constraint_says_so() -> None:
    objectives = parse_objectives(["ndcg@10"], ["p95_ms <= 5", "hr@20 >= 0.1"])
    values = {"p95_ms": 6.0, "hr@20": 0.2}
    assert state_of(TrialRecord(0, {}, "n", "done", values=values), objectives) == "done, not p95_ms <= 5"
    assert state_of(TrialRecord(0, {}, "n", "done", values={**values, "p95_ms": 5.0}), objectives) == "done"
    assert state_of(TrialRecord(0, {}, "n", "stopped", values={}), objectives) == "stopped"


def test_of_equals_the_first_is_the_best() -> None:
    best = best_of([record(0, 0.2), record(1, 0.2)], parse_objectives(["ndcg@10"], []))
    assert best is not None
    assert best.number == 0


def test_the_front_is_what_nothing_beats_in_everything() -> None:
    objectives = parse_objectives(["ndcg@10", "p95_ms"], [])
    trials = [record(0, 0.3, p95_ms=9), record(1, 0.2, p95_ms=5), record(2, 0.2, p95_ms=6), record(3, 0.1, p95_ms=1)]
    assert [trial.number for trial in front_of(trials, objectives)] == [0, 1, 3]


def test_a_record_comes_back_as_it_was_stored() -> None:
    one = TrialRecord(3, {"model.dim": 8}, "n", "stopped", curve=(0.1, 0.3, 0.2), copied_from=((1, 4),))
    assert TrialRecord.from_json(one.to_json() | {"copied_from": [[1, 4]], "curve": [0.1, 0.3, 0.2]}) == one
    assert (one.best, one.best_epoch) == (0.3, 2)


def test_the_default_is_a_contender_beside_the_best_whatever_it_is_worth() -> None:
    objectives = parse_objectives(["ndcg@10"], [])
    trials = [record(0, 0.1), record(1, 0.3), record(2, 0.2), record(3, 0.25)]
    assert [trial.number for trial in contenders(trials, objectives, 2)] == [0, 1, 3]
    assert [trial.number for trial in contenders([record(0, 0.9), *trials[1:]], objectives, 1)] == [0, 1]
    failed = replace(trials[0], state="failed")
    assert [trial.number for trial in contenders([failed, *trials[1:]], objectives, 1)] == [1]
