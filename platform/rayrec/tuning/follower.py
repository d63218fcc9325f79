"""Following Ray Tune: the record of each trial, its MLflow run, and whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial

from rayrec.errors import ClusterError, ModelError
from rayrec.recipe import Recipe
from rayrec.tracking import TrackedRun, Tracker
from rayrec.training.checkpoint import Checkpoints
from rayrec.training.job import TrainJob
from rayrec.tuning.options import Search
from rayrec.tuning.records import Records, TrialRecord, best_of
from rayrec.tuning.searcher import outcome
from rayrec.tuning.trial import Suggested

MOST_LOST = 3
"""How often trials that were lost with their machine are begun again."""

SETTLED_SECONDS = 60
"""After which a trial that was stopped has written the checkpoint that it was writing then."""


class Watcher(Protocol):
    """Who is told how a sweep goes."""

    def trial(self, record: TrialRecord) -> None:
        """A trial has begun, gone on by an epoch, or ended."""


@dataclass(frozen=True)
class Sweep:
    """A sweep.

    Attributes:
        job: The training of the recipe as it is.
        search: What is searched, and how.
        records: Where trials are kept.
        run: The MLflow run that those of the trials are nested in.
        tracker: Of these.
        name_of: The name of a recipe's training: equal trainings have equal names.
        resources: What a trial takes: ``CPU`` and ``GPU``.
        parallel: Trials at a time.
    """

    job: TrainJob
    search: Search
    records: Records
    run: TrackedRun
    tracker: Tracker
    name_of: Callable[[Recipe], str]
    resources: Mapping[str, float]
    parallel: int

    @property
    def threads(self) -> int:
        """Threads of a trial."""
        return self.job.recipe.training.threads or 1


class Follower(tune.Callback):
    """Follows Ray Tune: keeps the record of each trial, its MLflow run, and tells who watches.

    Args:
        sweep: The sweep.
        watcher: Who is told.
    """

    def __init__(self, sweep: Sweep, watcher: Watcher) -> None:
        self._sweep, self._watcher = sweep, watcher
        self._records = {record.number: record for record in sweep.records.read()}
        self._best = best_of(list(self._records.values()), sweep.search.objectives)
        self._runs: dict[int, TrackedRun] = {}
        self._numbers: dict[str, int] = {}
        self._stale: dict[str, float] = {}
        self.lost: list[int] = []
        self.stopper = StopAll()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called by Ray Tune, also when a trial goes on."""
        suggested = Suggested.of(trial.config)
        if trial.trial_id in self._numbers:
            return
        self._numbers[trial.trial_id] = suggested.number
        run = self._sweep.tracker.begin(f"trial {suggested.number}", self._sweep.run)
        run.params(suggested.changes)
        run.tags({"rayrec.trial": suggested.number, "rayrec.name": suggested.name})
        self._runs[suggested.number] = run
        record = TrialRecord(suggested.number, suggested.changes, suggested.name, run_id=run.id)
        self._keep(record)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Called by Ray Tune after each epoch."""
        record = self._record_of(trial)
        if "failed" in result:
            return
        if result["donor"]:
            origin = (self._numbers[result["donor"]], len(record.curve))
            changes = Suggested.of(trial.config).changes
            record = replace(record, changes=changes, copied_from=(*record.copied_from, origin))
        seconds = record.seconds + result["spent"]
        if result["over"] and result["epoch"] <= len(record.curve):
            record = replace(record, seconds=seconds)
        else:
            record = record.after(result["value"], seconds)
            curve = {key: value for key, value in result["entry"] if key != "epoch"}
            self._runs[record.number].metrics(curve, step=len(record.curve))
        self._records[record.number] = record
        self._watcher.trial(record)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called by Ray Tune when a trial has ended, or was ended."""
        record, last = self._record_of(trial), trial.last_result or {}
        if "failed" in last:
            self._fail(record, last["failed"])
            return
        over = bool(last.get("over"))
        values = outcome(last, self._sweep.search.objectives) if record.curve else {}
        self._finish(replace(record, state="done" if over else "stopped", values=values))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called by Ray Tune when a trial's process has died, or its machine: trials tell of their own errors."""
        # It may have been lost before it began.
        self.on_trial_start(iteration, trials, trial)
        record = self._record_of(trial)
        self.lost.append(record.number)
        self._end(record, ClusterError("lost"))

    def leave_off(self, time_is_up: bool) -> None:
        """End what still ran when Ray Tune was stopped: it goes on with the sweep, unless that has no time left."""
        for number in list(self._runs):
            record = self._records[number]
            if time_is_up:
                values = {self._sweep.search.objectives.metric: record.best} if record.curve else {}
                self._finish(replace(record, state="stopped", values=values))
            else:
                self._end(record, KeyboardInterrupt())
        self._clear(0)

    def give_up(self) -> None:
        """Fail the trials that were lost, again and again."""
        for number in self.lost:
            reason = f"its process died {1 + MOST_LOST} times, perhaps for want of memory"
            self._records[number] = replace(self._records[number], state="failed", reason=reason)
            self._sweep.records.write(self._records[number])

    @property
    def failed(self) -> int:
        """Trials that failed."""
        return sum(record.state == "failed" for record in self._records.values())

    def check(self) -> None:
        """Whether the sweep may go on.

        Raises:
            ModelError: Too many trials failed.
        """
        options = self._sweep.search.options
        if self.failed > options.max_failed * options.trials:
            reasons = [record.reason for record in self._records.values() if record.state == "failed"]
            raise ModelError(
                f"tune: {self.failed} of {options.trials} trials failed, more than max_failed = {options.max_failed:g} "
                f"allows; the last one with: {reasons[-1]} All are kept; the same command again goes on with others."
            )

    def _record_of(self, trial: Trial) -> TrialRecord:
        # Not by its config: one that goes on from another's weights has the other's.
        return self._records[self._numbers[trial.trial_id]]

    def _fail(self, record: TrialRecord, reason: str) -> None:
        self._finish(replace(record, state="failed", reason=reason), ModelError(reason))
        if self.failed > self._sweep.search.options.max_failed * self._sweep.search.options.trials:
            self.stopper.now = True

    def _finish(self, record: TrialRecord, error: BaseException | None = None) -> None:
        self._keep(record)
        run = self._runs[record.number]
        run.tags({"rayrec.state": record.state, **({"rayrec.reason": record.reason} if record.reason else {})})
        run.metrics({**{f"best/{name}": value for name, value in record.values.items()}, "seconds": record.seconds})
        self._end(record, error)
        self._drop_checkpoints(record)

    def _end(self, record: TrialRecord, error: BaseException | None) -> None:
        self._sweep.tracker.end(self._runs.pop(record.number), error)

    def _keep(self, record: TrialRecord) -> None:
        self._records[record.number] = record
        self._sweep.records.write(record)
        self._watcher.trial(record)

    def _drop_checkpoints(self, ended: TrialRecord) -> None:
        """Keep those of the best trial, from which its model is made without training again."""
        best = best_of(list(self._records.values()), self._sweep.search.objectives)
        for record in (self._best or ended, ended):
            if record is not best:
                self._stale[record.name] = time.monotonic()
        self._best = best
        self._clear(SETTLED_SECONDS)

    def _clear(self, settled: float) -> None:
        """Remove checkpoints that nobody needs any more, and nobody still writes."""
        for name, since in list(self._stale.items()):
            if time.monotonic() - since >= settled:
                Checkpoints(self._sweep.records.storage, name).clear()
                del self._stale[name]


class StopAll(tune.Stopper):
    """Ends all trials once ``now`` is set. No event: Ray Tune copies what it holds into its snapshots."""

    def __init__(self) -> None:
        self.now = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Of one trial: when it is its turn."""
        return self.now

    def stop_all(self) -> bool:
        """Of all."""
        return self.now
