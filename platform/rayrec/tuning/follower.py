"""Following Ray Tune: the record of each trial, its MLflow run, and whoever watches."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial

from rayrec.errors import ClusterError, ModelError, StorageError
from rayrec.recipe import Recipe
from rayrec.tracking import TrackedRun, Tracker
from rayrec.training.checkpoint import Checkpoints
from rayrec.training.job import TrainJob
from rayrec.tuning.options import Search
from rayrec.tuning.records import Records, TrialRecord, contenders, ranked
from rayrec.tuning.searcher import outcome
from rayrec.tuning.trial import Suggested

_LOG = logging.getLogger(__name__)

MOST_LOST = 3
"""How often trials that were lost with their machine are begun again."""

SETTLED_SECONDS = 60
"""After which a trial that was stopped has written the checkpoint that it was writing then."""


class Watcher(Protocol):
    """Who is told how a sweep goes."""

    def known(self, records: list[TrialRecord]) -> None:
        """What trials there are from an earlier session."""

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
        kind: What the MLflow runs of trials are called.
    """

    job: TrainJob
    search: Search
    records: Records
    run: TrackedRun
    tracker: Tracker
    name_of: Callable[[Recipe], str]
    resources: Mapping[str, float]
    parallel: int
    kind: str = "trial"

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
        self._kept = self._needed
        self._runs: dict[int, TrackedRun] = {}
        self._numbers: dict[str, int] = {}
        self._trials: dict[int, Trial] = {}
        # What an earlier session had no time to remove.
        ended = {record.name for record in self._records.values() if record.state != "running"}
        self._stale: dict[str, float] = dict.fromkeys(ended - self._kept, -math.inf)
        self._losses: Counter[int] = Counter()
        self._failed: list[str] = []
        self.lost: list[int] = []
        self.stopper = StopAll()
        watcher.known(list(self._records.values()))

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called by Ray Tune, also when a trial goes on."""
        suggested = Suggested.of(trial.config)
        if trial.trial_id in self._numbers:
            return
        self._numbers[trial.trial_id], self._trials[suggested.number] = suggested.number, trial
        run = self._sweep.tracker.begin(f"{self._sweep.kind} {suggested.number}", self._sweep.run)
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
        self._losses[record.number] += 1
        if self._losses[record.number] > MOST_LOST:
            self._fail(record, f"its process died {1 + MOST_LOST} times, perhaps for want of memory")
        else:
            self.lost.append(record.number)
            self._end(record, ClusterError("its process or its machine was lost"))

    def leave_off(self, time_is_up: bool) -> None:
        """End what Ray Tune did not tell the end of: what runs goes on with the sweep, unless that has no time left.

        Of trials that a scheduler stops while they are paused it tells nobody but the searcher.
        """
        for number in list(self._runs):
            record, ended = self._records[number], self._trials[number].status == Trial.TERMINATED
            if time_is_up or (ended and not self.stopper.now):
                values = {self._sweep.search.objectives.metric: record.best} if record.curve else {}
                self._finish(replace(record, state="stopped", values=values))
            else:
                self._end(record, KeyboardInterrupt())
        self._clear(0)

    def check(self) -> None:
        """Whether the sweep may go on. Trials that failed in an earlier session do not count again.

        Raises:
            ModelError: Too many trials failed.
        """
        if self._too_many:
            options = self._sweep.search.options
            raise ModelError(
                f"tune: {len(self._failed)} of {options.trials} trials failed, more than max_failed = "
                f"{options.max_failed:g} allows; the last one with: {self._failed[-1].rstrip('.')}. All are kept; the "
                "same command again goes on with others."
            )

    @property
    def _too_many(self) -> bool:
        options = self._sweep.search.options
        return len(self._failed) > options.max_failed * options.trials

    def _record_of(self, trial: Trial) -> TrialRecord:
        # Not by its config: one that goes on from another's weights has the other's.
        return self._records[self._numbers[trial.trial_id]]

    def _fail(self, record: TrialRecord, reason: str) -> None:
        self._failed.append(reason)
        self._finish(replace(record, state="failed", reason=reason), ModelError(reason))
        self.stopper.now = self.stopper.now or self._too_many

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

    @property
    def _needed(self) -> set[str]:
        """Names of the trials that may be the best in the end, whose model is then made without training again."""
        chosen, known = self._sweep.search, self._records.values()
        if not chosen.options.confirm:
            return {record.name for record in ranked(known, chosen.objectives)[:1]}
        return {record.name for record in contenders(known, chosen.objectives, chosen.options.confirm)}

    def _drop_checkpoints(self, ended: TrialRecord) -> None:
        """Keep those that may be needed yet."""
        needed = self._needed
        self._stale |= dict.fromkeys((self._kept | {ended.name}) - needed, time.monotonic())
        self._kept = needed
        self._clear(SETTLED_SECONDS)

    def _clear(self, settled: float) -> None:
        """Remove checkpoints that nobody needs any more, and nobody still writes."""
        for name, since in list(self._stale.items()):
            if time.monotonic() - since >= settled:
                try:
                    Checkpoints(self._sweep.records.storage, name).clear()
                except StorageError as error:
                    _LOG.warning("tune: checkpoints that nobody needs are still there: %s", error)
                    continue
                del self._stale[name]


class StopAll(tune.Stopper):
    """Ends all trials once ``now`` is set. No event: Ray Tune copies what it holds into its snapshots."""

    def __init__(self) -> None:
        self.now = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Of one trial: never, it would count as one that a scheduler stopped."""
        return False

    def stop_all(self) -> bool:
        """Of all."""
        return self.now
