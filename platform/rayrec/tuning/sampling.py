"""Which values are tried next: Optuna's samplers, asked and told."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState

from rayrec.tuning.objectives import Objectives
from rayrec.tuning.space import Changes, Space

RANDOM_FIRST = 8
"""Trials that TPE draws at random before it trusts what it knows; Optuna's default, 10, is most of a small sweep."""

optuna.logging.set_verbosity(logging.WARNING)
# Every feature of Optuna that is not ten years old calls itself experimental.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclass(frozen=True)
class Suggestion:
    """Values to try, and how to say what came of it."""

    changes: Changes
    trial: Trial | None


class Sampler:
    """Suggests values.

    What is drawn for a trial depends on the seed, its number, and what was told before: not on how often the sweep was
    interrupted.

    Args:
        space: What is searched.
        algorithm: ``grid``, ``random``, ``tpe`` (Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NIPS
            2011; with several objectives Ozaki et al., https://doi.org/10.1145/3377930.3389817) or ``nsga2`` (Deb et
            al., https://doi.org/10.1109/4235.996017).
        seed: Of what is drawn.
        objectives: What for.
        points: What is tried if it is known beforehand, instead of what the algorithm chooses.
    """

    def __init__(
        self, space: Space, algorithm: str, seed: int, objectives: Objectives, points: Sequence[Changes] = ()
    ) -> None:
        self._space, self._objectives = space, objectives
        self._make = _samplers(algorithm)
        self._seed = seed
        grid = space.grid() if algorithm == "grid" and not points else None
        self._combinations: Iterator[Changes] | None = iter(points) if points else grid
        self._study = optuna.create_study(directions=objectives.directions, sampler=self._make(seed))

    @property
    def exhaustive(self) -> bool:
        """Whether it goes through all values, and no further."""
        return self._combinations is not None

    def ask(self, number: int, attempt: int = 0) -> Suggestion | None:
        """Values for a trial, others at each attempt; None when a grid has no more."""
        if self._combinations is not None:
            changes = next(self._combinations, None)
            return None if changes is None else Suggestion(changes, None)
        self._study.sampler = self._make(
            int(np.random.SeedSequence((self._seed, number, attempt)).generate_state(1)[0])
        )
        return self._suggest()

    def given(self, changes: Changes) -> Suggestion | None:
        """Values that somebody else chose, to be told of like those asked for; None where the space does not have them.

        Such as the recipe as it is, or what a population came to.
        """
        if self._combinations is not None:
            return Suggestion(changes, None)
        chosen = [parameter for parameter in self._space.parameters if parameter.key in changes]
        drawn = {parameter.key: parameter.drawn(changes[parameter.key]) for parameter in chosen}
        if not drawn or None in drawn.values():
            return None
        self._study.enqueue_trial(drawn)
        return self._suggest()

    def tell(self, suggestion: Suggestion, values: Mapping[str, float] | None) -> None:
        """What came of it: the objectives and what is constrained; None where it failed, or there was nothing."""
        if suggestion.trial is None:
            return
        if values is None or any(name not in values for name in self._objectives.wanted):
            self._study.tell(suggestion.trial, state=TrialState.FAIL)
            return
        for constraint in self._objectives.constraints:
            suggestion.trial.set_constraint(str(constraint), constraint.excess(values[constraint.name]))
        self._study.tell(suggestion.trial, [values[name] for name in self._objectives.names])

    def importances(self) -> dict[str, float]:
        """See `importances`."""
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(self._study, evaluator=evaluator)

    def _suggest(self) -> Suggestion:
        trial = self._study.ask()
        return Suggestion(self._space.active(lambda parameter: parameter.suggested(trial)), trial)


def _samplers(algorithm: str) -> Callable[[int], BaseSampler]:
    makers: dict[str, Callable[[int], BaseSampler]] = {
        "grid": RandomSampler,
        "random": RandomSampler,
        "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=RANDOM_FIRST),
        "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=RANDOM_FIRST),
    }
    return makers[algorithm]


FEWEST = 4
"""Trials that an importance is worked out from."""


def importances(space: Space, tried: Sequence[tuple[Changes, float]]) -> dict[str, float]:
    """The share of the differences between trials that each parameter explains, the largest first.

    Functional analysis of variance: Hutter et al., "An Efficient Approach for Assessing Hyperparameter Importance",
    ICML 2014. Of parameters that all trials have; empty where there is too little to go by.

    Args:
        space: What was searched.
        tried: The values of each trial, and what came of it.
    """
    known = Sampler(space, "random", 0, Objectives(("value",)))
    told = []
    for changes, value in tried:
        if suggestion := known.given(changes):
            known.tell(suggestion, {"value": value})
            told.append(value)
    return known.importances() if len(told) >= FEWEST and len(set(told)) > 1 else {}
