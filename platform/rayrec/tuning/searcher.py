"""What Ray Tune asks for the next trial: unfinished ones first, then what the sampler suggests."""

from __future__ import annotations

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

    A suggestion that was tried before is not run again: the sampler is told what came of it then.

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
        self._records: dict[str, TrialRecord] = {}
        self._unfinished: list[TrialRecord] = []
        self._pending: dict[str, tuple[str, Suggestion | None]] = {}
        self._next = 0
        for record in known:
            self._learn(record)

    @property
    def left(self) -> int:
        """Trials that are still to be run."""
        return self._trials - self._next + len(self._unfinished)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config of the next trial."""
        if self._unfinished:
            record = self._unfinished.pop(0)
            return self._begin(trial_id, record, self._given(record.changes))
        if self._next >= self._trials:
            return Searcher.FINISHED
        if self._next == 0:
            changes = self._default or {}
            name = self._name_of(self._recipe_of(changes))
            return self._begin(trial_id, TrialRecord(0, changes, name), self._given(self._default))
        for attempt in range(MOST_ATTEMPTS):
            suggestion = self._sampler.ask(self._next, attempt)
            if suggestion is None:
                break
            try:
                name = self._name_of(self._recipe_of(suggestion.changes))
            except RecipeError as error:
                _LOG.info("tune: passed over: %s", error)
                self._sampler.tell(suggestion, None)
                continue
            if name in self._records:
                self._sampler.tell(suggestion, self._records[name].values)
                continue
            return self._begin(trial_id, TrialRecord(self._next, suggestion.changes, name), suggestion)
        self._trials = self._next
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: only what came of a trial counts."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the sampler."""
        name, suggestion = self._pending.pop(trial_id)
        values = None if error or not result or "failed" in result else outcome(result, self._objectives)
        if values is not None:
            self._records[name].values.update(values)
        if suggestion:
            self._sampler.tell(suggestion, values)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: trials have records of their own, which are no pickles and are on any storage."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""

    def _begin(self, trial_id: str, record: TrialRecord, suggestion: Suggestion | None) -> dict[str, Any]:
        self._records[record.name] = record
        self._pending[trial_id] = record.name, suggestion
        self._next = max(self._next, record.number + 1)
        return Suggested(record.number, record.name, record.changes).config()

    def _given(self, changes: Changes | None) -> Suggestion | None:
        """The recipe as it is may lie outside the space: of that the sampler can learn nothing."""
        return self._sampler.given(changes) if changes else None

    def _learn(self, record: TrialRecord) -> None:
        self._records[record.name] = record
        self._next = max(self._next, record.number + 1)
        if record.state == "running":
            self._unfinished.append(record)
        elif suggestion := self._given(record.changes):
            self._sampler.tell(suggestion, record.values or None)


def outcome(result: dict[str, Any], objectives: Objectives) -> dict[str, float]:
    """The values of a trial: all of one that was trained to its end, the metric of one that was stopped."""
    return dict(result["values"]) or {objectives.metric: float(result["best"])}
