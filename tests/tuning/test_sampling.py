"""Optuna's samplers against each other, on results that were recorded once (`benchmarks/tuning.py record`)."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from rayrec.tuning.objectives import parse_objectives
from rayrec.tuning.sampling import Sampler, importances
from rayrec.tuning.space import Space, parse_space

RECORDED = json.loads(Path(__file__).with_name("grid.json").read_text())
SEEDS, TRIALS = 20, 24


@pytest.fixture(scope="module")
def space() -> Space:
    return parse_space({key: {"choice": values} for key, values in RECORDED["grid"].items()}, "space")


def value_of(changes: dict[str, Any]) -> float:
    return float(RECORDED["values"][json.dumps(list(changes.values()))])


def best_after(space: Space, algorithm: str, seed: int) -> float:
    sampler = Sampler(space, algorithm, seed, parse_objectives(["ndcg@10"], []))
    tried: dict[str, float] = {}
    for number in range(1000):
        suggestion = sampler.ask(number)
        assert suggestion is not None
        value = value_of(suggestion.changes)
        sampler.tell(suggestion, {"ndcg@10": value})
        tried[json.dumps(suggestion.changes)] = value
        if len(tried) == TRIALS:
            break
    return max(tried.values())


def test_tpe_finds_more_than_chance_in_as_many_trials(space: Space) -> None:
    assert len(RECORDED["values"]) == 200
    medians = {
        algorithm: statistics.median(best_after(space, algorithm, seed) for seed in range(SEEDS))
        for algorithm in ("tpe", "random")
    }
    assert medians["tpe"] > medians["random"]


def test_importance_is_that_of_what_matters(space: Space) -> None:
    sampler = Sampler(space, "random", 0, parse_objectives(["ndcg@10"], []))
    tried = []
    for number in range(60):
        suggestion = sampler.ask(number)
        assert suggestion is not None
        tried.append((suggestion.changes, 1.0 * (suggestion.changes["training.batch_size"] == 16)))
    found = importances(space, tried)
    assert next(iter(found)) == "training.batch_size"
    assert found["training.batch_size"] > 0.8
    assert importances(space, tried[:3]) == {}


def test_values_outside_the_constraints_are_learnt_to_be_avoided(space: Space) -> None:
    """The best points break the constraint: what TPE suggests later breaks it less often than what it drew at first."""
    sampler = Sampler(space, "tpe", 0, parse_objectives(["ndcg@10"], ["p95_ms <= 5"]))
    broken = []
    for number in range(60):
        suggestion = sampler.ask(number)
        assert suggestion is not None
        slow = suggestion.changes["training.batch_size"] <= 32
        sampler.tell(suggestion, {"ndcg@10": value_of(suggestion.changes), "p95_ms": 9.0 if slow else 1.0})
        broken.append(slow)
    assert sum(broken[30:]) < sum(broken[:30])
