"""The search itself: Ray Tune around trials, with what is known of each kept as it goes."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from concurrent import futures
from dataclasses import replace
from typing import Any

import pyarrow.fs
import ray
from ray import tune
from ray.tune.search import Searcher

from rayrec.artifacts import Storage
from rayrec.data.dataset import open_dataset
from rayrec.data.views import open_view
from rayrec.errors import ClusterError, DataError
from rayrec.models.registry import model_class
from rayrec.recipe import Recipe
from rayrec.training.local import observe
from rayrec.tuning.follower import MOST_LOST, Follower, Sweep, Watcher
from rayrec.tuning.records import TrialRecord
from rayrec.tuning.sampling import Sampler
from rayrec.tuning.schedulers import scheduler
from rayrec.tuning.searcher import Trials
from rayrec.tuning.space import Changes, as_it_is, changed
from rayrec.tuning.trial import TRIAL, LocalTrial, Task, distributed_trial

_LOG = logging.getLogger(__name__)

SCRATCH = "tune"
"""Ray Tune's own folder below a sweep's."""
TALKATIVE = "ray.tune.execution.tune_controller", "ray.tune.execution.experiment_state", "ray.train._internal.storage"
"""Loggers that print tracebacks."""
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


def search(sweep: Sweep, watcher: Watcher) -> list[TrialRecord]:
    """Run the trials that are left. Returns all of them, in order.

    Raises:
        ModelError: Too many trials failed.
        DataError: There are no validation events to judge trials by.
        ClusterError: Ray killed processes of trials again and again.
    """
    os.environ.update(QUIET)
    for name in TALKATIVE:
        logging.getLogger(name).addFilter(_in_one_line)
    follower, most, killed = Follower(sweep, watcher), sweep.search.options.max_time, 0
    ends = math.inf if most is None else time.monotonic() + most
    while True:
        searcher, seconds = _searcher(sweep, sweep.records.read()), ends - time.monotonic()
        if not searcher.left or seconds <= 0:
            break
        try:
            _run(sweep, searcher, follower, None if most is None else seconds)
        except ClusterError as error:
            killed += 1
            if killed > MOST_LOST:
                raise
            _LOG.warning("%s Trials that had not ended go on.", error)
            continue
        finally:
            follower.leave_off(ends <= time.monotonic())
            sweep.records.forget(SCRATCH)
        follower.check()
        if not follower.lost:
            break
        _LOG.warning("tune: %d trials were lost with their machines, and are begun again", len(follower.lost))
        follower.lost.clear()
    return sweep.records.read()


def _searcher(sweep: Sweep, known: list[TrialRecord]) -> Trials:
    chosen, recipe = sweep.search, sweep.job.recipe
    options, space, objectives = chosen.options, chosen.space, chosen.objectives
    sampler = Sampler(space, options.algorithm, options.seed, objectives, chosen.points)
    default = chosen.points[0] if chosen.points else as_it_is(space, recipe)

    def recipe_of(changes: Changes) -> Recipe:
        return changed(recipe, changes)

    return Trials(sampler, objectives, recipe_of, sweep.name_of, default, options.trials, known)


def _run(sweep: Sweep, searcher: Trials, follower: Follower, seconds: float | None) -> None:
    """Run Ray Tune in a thread, so that Ctrl-C stops the trials and not what watches them."""
    settings, done = _settings(sweep, searcher, follower, seconds), futures.Future[Any]()
    follower.stopper.now = False

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
    except Exception as error:
        # Ray Tune ends all trials then: not because any was over.
        follower.stopper.now = True
        # It knows of actors that died, but of a process that was killed for want of memory it knows nothing.
        if isinstance(error.__cause__, ray.exceptions.OutOfMemoryError):
            raise ClusterError(
                "tune: Ray killed a trial's process, because the machine ran out of memory. What has ended is kept: "
                "the same command goes on. Run fewer trials at a time (--parallel), or smaller models."
            ) from error
        raise


def _settings(sweep: Sweep, searcher: Trials, follower: Follower, seconds: float | None) -> dict[str, Any]:
    """What Ray Tune is told."""
    options, space = sweep.search.options, sweep.search.space
    # These pause trials until others are as far.
    population, together = options.scheduler == "pbt", options.scheduler in {"pbt", "hyperband"}
    task = Task(sweep.job, _observed(sweep), sweep.search.objectives, sweep.threads, keeps=not population)
    trainable: Any = distributed_trial if sweep.job.recipe.training.workers else LocalTrial
    storage = sweep.records.storage
    return {
        "run_or_experiment": tune.with_resources(tune.with_parameters(trainable, task=task), dict(sweep.resources)),
        "metric": "best",
        "mode": "max",
        **(_all_at_once(searcher) if together else {"search_alg": searcher, "num_samples": searcher.left}),
        "scheduler": scheduler(options, space, sweep.job.recipe, sweep.records.read()),
        # Paused ones would count: what runs at a time is up to the cluster.
        "max_concurrent_trials": None if together else sweep.parallel,
        "reuse_actors": trainable is LocalTrial,
        "time_budget_s": seconds,
        "trial_dirname_creator": lambda trial: trial.trial_id,
        "name": SCRATCH,
        "storage_path": storage.full(sweep.records.folder),
        "storage_filesystem": _filesystem(storage),
        "callbacks": [follower],
        "stop": follower.stopper,
        "raise_on_failed_trial": False,
        "verbose": 0,
    }


def _all_at_once(searcher: Trials) -> dict[str, Any]:
    """All trials from the beginning on, as schedulers need them that compare those which there are.

    Ray Tune's population-based training takes no searcher; its Hyperband takes one, and then halves brackets of one.
    """
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
