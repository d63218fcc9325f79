"""The search itself: Ray Tune around trials, with what is known of each kept as it goes."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow.fs
import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from rayrec.artifacts import Storage
from rayrec.data.dataset import open_dataset
from rayrec.data.views import open_view
from rayrec.errors import ClusterError, DataError, ModelError
from rayrec.models.registry import model_class
from rayrec.recipe import Recipe
from rayrec.tracking import TrackedRun, Tracker
from rayrec.training.checkpoint import Checkpoints
from rayrec.training.job import TrainJob
from rayrec.training.local import observe
from rayrec.tuning.options import Search
from rayrec.tuning.records import Records, TrialRecord, best_of
from rayrec.tuning.sampling import Sampler
from rayrec.tuning.schedulers import scheduler
from rayrec.tuning.searcher import Trials, outcome
from rayrec.tuning.space import Changes, as_it_is, changed
from rayrec.tuning.trial import TRIAL, LocalTrial, Suggested, Task, distributed_trial

_LOG = logging.getLogger(__name__)

MOST_LOST = 3
"""How often trials that were lost with their machine are begun again."""
POLL_SECONDS = 0.2
STOP_SECONDS = 20
QUIET = {
    # Files of every trial that nobody reads: what is worth keeping is in the records and in MLflow.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ray Tune's snapshots of itself are pickles, and a sweep goes on from its records.
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**6),
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


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


def search(sweep: Sweep, watcher: Watcher) -> list[TrialRecord]:
    """Run the trials that are left. Returns all of them, in order.

    Raises:
        ModelError: Too many trials failed.
        DataError: There are no validation events to judge trials by.
    """
    os.environ.update(QUIET)
    logging.getLogger("ray.tune.execution.tune_controller").addFilter(_in_one_line)
    follower, most = Follower(sweep, watcher), sweep.search.options.max_time
    ends = math.inf if most is None else time.monotonic() + most
    for attempt in range(1 + MOST_LOST):
        searcher, seconds = _searcher(sweep, sweep.records.read()), ends - time.monotonic()
        if not searcher.left or seconds <= 0:
            break
        try:
            _run(sweep, searcher, follower, None if most is None else seconds)
        finally:
            follower.leave_off(ends <= time.monotonic())
        follower.check()
        if not follower.lost:
            break
        if attempt == MOST_LOST:
            follower.give_up()
            follower.check()
            break
        _LOG.warning("tune: %d trials were lost with their machines, and are begun again", len(follower.lost))
        follower.lost.clear()
    return sweep.records.read()


def _searcher(sweep: Sweep, known: list[TrialRecord]) -> Trials:
    chosen, recipe = sweep.search, sweep.job.recipe
    options, space, objectives = chosen.options, chosen.space, chosen.objectives
    sampler = Sampler(space, options.algorithm, options.seed, objectives)
    default = as_it_is(space, recipe)

    def recipe_of(changes: Changes) -> Recipe:
        return changed(recipe, changes)

    return Trials(sampler, objectives, recipe_of, sweep.name_of, default, options.trials, known)


def _run(sweep: Sweep, searcher: Trials, follower: Follower, seconds: float | None) -> None:
    """Run Ray Tune in a thread, so that Ctrl-C stops the trials and not what watches them."""
    settings, done = _settings(sweep, searcher, follower, seconds), futures.Future[Any]()

    def fit() -> None:
        try:
            # Not `Tuner`: that pickles itself, the callbacks and all they hold into the storage.
            done.set_result(tune.run(**settings))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=fit, daemon=True).start()
    try:
        # A wait without an end is not always interrupted.
        while not futures.wait([done], POLL_SECONDS).done:
            pass
        done.result()
    except KeyboardInterrupt:
        follower.stopper.now = True
        futures.wait([done], STOP_SECONDS)
        raise


def _settings(sweep: Sweep, searcher: Trials, follower: Follower, seconds: float | None) -> dict[str, Any]:
    """What Ray Tune is told."""
    options, epochs = sweep.search.options, sweep.job.recipe.training.epochs
    population = options.scheduler == "pbt"
    task = Task(sweep.job, _observed(sweep), sweep.search.objectives, sweep.threads, keeps=not population)
    trainable: Any = distributed_trial if sweep.job.recipe.training.workers else LocalTrial
    storage = sweep.records.storage
    return {
        "run_or_experiment": tune.with_resources(tune.with_parameters(trainable, task=task), dict(sweep.resources)),
        "metric": "best",
        "mode": "max",
        **(_population(searcher) if population else {"search_alg": searcher, "num_samples": searcher.left}),
        "scheduler": scheduler(options, sweep.search.space, epochs),
        "max_concurrent_trials": sweep.parallel,
        "reuse_actors": trainable is LocalTrial,
        "time_budget_s": seconds,
        "trial_dirname_creator": lambda trial: trial.trial_id,
        "name": "tune",
        "storage_path": storage.full(sweep.records.folder),
        "storage_filesystem": _filesystem(storage),
        "callbacks": [follower],
        "stop": follower.stopper,
        "raise_on_failed_trial": False,
        "verbose": 0,
    }


def _population(searcher: Trials) -> dict[str, Any]:
    """All trials at once: Ray Tune's population-based training takes no searcher."""
    found = iter(lambda: searcher.suggest(""), Searcher.FINISHED)
    configs = [config[TRIAL] for config in found if isinstance(config, dict)]
    return {"config": {TRIAL: tune.grid_search(configs)}, "num_samples": 1}


def _in_one_line(record: logging.LogRecord) -> bool:
    """Of errors that Ray Tune logs, what went wrong, without where in Ray."""
    if record.exc_info and record.exc_info[1]:
        reason = str(record.exc_info[1]).strip().splitlines() or [""]
        record.msg, record.args, record.exc_info = f"{record.getMessage()}: {reason[-1]}", (), None
    return True


def _filesystem(storage: Storage) -> pyarrow.fs.FileSystem | None:
    """What reaches the storage; None for folders."""
    if storage.is_local:
        return None
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(storage.filesystem))


def _observed(sweep: Sweep) -> dict[str, Any]:
    """By model, what its trainings read: in the object store, where all processes of a node see the same memory."""
    job, space = sweep.job, sweep.search.space
    if not open_view(open_dataset(job.storage, *job.dataset_version), job.view)["counts"]["validation"]:
        raise DataError(
            "tune: the view has no validation events to judge trials by. Set data.split so that there are some; for "
            "kind = given, set data.split.validation to a share of the training events such as 0.1."
        )
    names = {job.recipe.model.name}
    for parameter in space.parameters:
        if parameter.key == "model.name":
            names |= set(parameter.values)
    # Models that read the same share it.
    by_features: dict[tuple[str, ...], Any] = {}
    for name in sorted(names):
        reads = tuple(sorted(model_class(name).features))
        if reads not in by_features:
            own = (
                job if name == job.recipe.model.name else replace(job, recipe=changed(job.recipe, {"model.name": name}))
            )
            by_features[reads] = ray.remote(num_cpus=1)(observe).remote(own)
    return {name: by_features[tuple(sorted(model_class(name).features))] for name in names}


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
                Checkpoints(self._sweep.records.storage, record.name).clear()
        self._best = best


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
