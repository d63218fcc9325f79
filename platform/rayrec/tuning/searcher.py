"""What Ray Tune asks for the next trial: unfinished ones first, then what the sampler suggests."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable
from typing import Any

from ray.tune.search import Searcher

from rayrec.errors import RecipeError
from rayrec.recipe import Recipe
from rayrec.tuning.objectives import Objectives
from rayrec.tuning.records import TrialRecord
from rayrec.tuning.sampling import Sampler, Suggestion
from rayrec.tuning.space import Changes
from rayrec.tuning.trial import Suggested

_LOG = logging.getLogger(__name__)

MOST_ATTEMPTS = 100
"""Suggestions in a row that were tried before or make no recipe, after which a space counts as exhausted."""


class Trials(Searcher):
    """Gives each trial its values, and tells the sampler what came of them.

    A suggestion that was tried before is not run again.

    Args:
        sampler: Suggests values.
        objectives: What for.
        recipe_of: The recipe with some changes.
        name_of: The name of a recipe's training: equal trainings have equal names.
        default: The recipe as it is, which is tried first: as a point of the space, where that reaches it.
        trials: How many there are to be.
        known: Trials of an earlier session.
    """

    def __init__(
        self,
        sampler: Sampler,
        objectives: Objectives,
        recipe_of: Callable[[Changes], Recipe],
        name_of: Callable[[Recipe], str],
        default: Changes | None,
        trials: int,
        known: Iterable[TrialRecord] = (),
    ) -> None:
        super().__init__(metric="best", mode="max")
        self._sampler, self._objectives = sampler, objectives
        self._recipe_of, self._name_of = recipe_of, name_of
        self._default, self._trials = default, trials
        self._tried: set[str] = set()
        self._unfinished: list[TrialRecord] = []
        self._pending: dict[str, Suggestion | None] = {}
        self._reached: dict[str, float] = {}
        self._numbers: set[int] = set()
        for record in known:
            self._learn(record)

    @property
    def left(self) -> int:
        """Trials that are still to be run."""
        return sum(number not in self._numbers for number in range(self._trials)) + len(self._unfinished)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config of the next trial."""
        if self._unfinished:
            record = self._unfinished.pop(0)
            return self._begin(trial_id, record, self._sampler.given(record.changes))
        # Not the one after the last: records that were damaged are removed.
        number = next(number for number in itertools.count() if number not in self._numbers)
        if number >= self._trials:
            return Searcher.FINISHED
        changes = self._default or {}
        if number == 0 and (name := self._name_of(self._recipe_of(changes))) not in self._tried:
            return self._begin(trial_id, TrialRecord(0, changes, name), self._sampler.given(changes))
        for attempt in itertools.count():
            suggestion = self._sampler.ask(number, attempt)
            if suggestion is None or (attempt >= MOST_ATTEMPTS and not self._sampler.exhaustive):
                break
            try:
                name = self._name_of(self._recipe_of(suggestion.changes))
            except RecipeError as error:
                _LOG.info("tune: passed over: %s", error)
                self._sampler.tell(suggestion, None)
                continue
            if name in self._tried:
                # What came of it is known already.
                self._sampler.tell(suggestion, None)
                continue
            return self._begin(trial_id, TrialRecord(number, suggestion.changes, name), suggestion)
        self._trials = number
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Remember the best so far: Ray Tune says nothing more of a trial that it stops while it is paused."""
        if "failed" not in result:
            self._reached[trial_id] = float(result["best"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the sampler."""
        suggestion = self._pending.pop(trial_id)
        values = None
        if result and "failed" not in result:
            values = outcome(result, self._objectives)
        elif not result and not error and trial_id in self._reached:
            values = {self._objectives.metric: self._reached[trial_id]}
        if suggestion:
            self._sampler.tell(suggestion, values)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: trials have records of their own, which are no pickles and are on any storage."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""

    def _begin(self, trial_id: str, record: TrialRecord, suggestion: Suggestion | None) -> dict[str, Any]:
        self._tried.add(record.name)
        self._pending[trial_id] = suggestion
        self._numbers.add(record.number)
        return Suggested(record.number, record.name, record.changes).config()

    def _learn(self, record: TrialRecord) -> None:
        self._tried.add(record.name)
        self._numbers.add(record.number)
        if record.state == "running":
            if record.number < self._trials:
                self._unfinished.append(record)
        elif suggestion := self._sampler.given(record.changes):
            self._sampler.tell(suggestion, record.values or None)


def outcome(result: dict[str, Any], objectives: Objectives) -> dict[str, float]:
    """The values of a trial: all of one that was trained to its end, the metric of one that was stopped."""
    return dict(result["values"]) or {objectives.metric: float(result["best"])}
