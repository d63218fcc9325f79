"""A trial: a training that Ray Tune watches, stops, or sends on another way, an epoch at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import ray
import torch
from ray import tune

from rayrec.artifacts import Storage
from rayrec.errors import RayrecError
from rayrec.inference.bundle import open_bundle
from rayrec.models.base import Fitted, Recommender
from rayrec.models.interactions import here
from rayrec.models.registry import model_class
from rayrec.recipe import Recipe
from rayrec.training.checkpoint import Checkpoints
from rayrec.training.job import TrainJob
from rayrec.training.local import LocalTraining, Observed
from rayrec.training.progress import Metrics
from rayrec.training.train import train_model
from rayrec.tuning.measure import measure
from rayrec.tuning.objectives import Objectives
from rayrec.tuning.space import Changes, changed

_LOG = logging.getLogger(__name__)

DONOR = "trial.txt"
TRIAL = "trial"
"""Key of Ray Tune's config: a population is given its trials as a grid over it."""


@dataclass(frozen=True)
class Task:
    """What all trials share.

    Attributes:
        job: The training of the recipe as it is.
        observed: By model, what its trainings read, in Ray's object store: in memory once a node.
        objectives: What is measured in the end.
        threads: Threads of a trial.
        keeps: Whether trials write checkpoints, to go on with when they are interrupted.
    """

    job: TrainJob
    observed: Mapping[str, Any]
    objectives: Objectives
    threads: int
    keeps: bool

    def recipe(self, changes: Changes) -> Recipe:
        """The recipe of a trial."""
        return changed(self.job.recipe, changes)

    @property
    def storage(self) -> Storage:
        """Where everything is."""
        return self.job.storage


@dataclass(frozen=True)
class Suggested:
    """What the searcher gives a trial, as Ray Tune's ``config``."""

    number: int
    name: str
    changes: Changes

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Suggested:
        """Out of a trial's config."""
        trial = config[TRIAL]
        return cls(trial["number"], trial["name"], dict(trial["changes"]))

    def config(self) -> dict[str, Any]:
        """As Ray Tune has it."""
        return {TRIAL: asdict(self)}


def result(
    entry: Metrics, metric: str, best: float, values: Mapping[str, float] | None = None, **others: object
) -> dict[str, Any]:
    """What Ray Tune is told after an epoch: what schedulers compare is the best so far.

    An epoch that is worse than the one before says nothing against a training that keeps its best one.

    Args:
        entry: The epoch's entry of the history.
        metric: What is watched.
        best: Its best value before this epoch.
        values: What was measured, if this is the end.
        others: More to tell.
    """
    value = entry[metric]
    # As pairs: of what a searcher is told Ray Tune takes dictionaries apart.
    pairs = {"entry": list(entry.items()), "values": list((values or {}).items())}
    return {"epoch": int(entry["epoch"]), "value": value, "best": max(best, value), **pairs, **others}


def failure(error: Exception, best: float) -> dict[str, Any]:
    """What Ray Tune is told when a trial fails; the reason goes into its record, the traceback into the log."""
    reason = " ".join(str(error).split()) or "no message"
    if not isinstance(error, RayrecError):
        _LOG.error("tune: a trial failed", exc_info=error)
        reason = f"{type(error).__name__}: {reason}"
    # Schedulers compare it: no metric is lower than 0.
    return {"failed": reason, "best": max(best, 0.0), "over": True, "done": True}


class LocalTrial(tune.Trainable):
    """A trial in one process, which goes through one trial after the other (``reuse_actors``).

    Ray Tune's class rather than a function: it can be stopped between two epochs without a thread being left behind,
    and handed the weights of another trial.
    """

    def setup(self, config: dict[str, Any], task: Task) -> None:
        """Called by Ray Tune once in each process."""
        self._task = task
        self._training: LocalTraining | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Called for each further trial. What is wrong with one shows in its first step, not here."""
        self.cleanup()
        self._suggested = Suggested.of(new_config)
        self._training, self._reported, self._best, self._donor = None, 0, float("-inf"), ""
        self.__dict__.pop("recipe", None)
        return True

    @cached_property
    def recipe(self) -> Recipe:
        """The trial's."""
        return self._task.recipe(self._suggested.changes)

    def step(self) -> dict[str, Any]:
        """An epoch; of a trial that is taken up, first those that were done; or why there is none."""
        try:
            return self._step()
        except Exception as error:
            # Raised, it would be taken for the end of this process, and cost the next trial a new one.
            return failure(error, self._best)

    def _step(self) -> dict[str, Any]:
        began, metric = time.perf_counter(), self._task.objectives.metric
        if issubclass(model_class(self.recipe.model.name), Fitted):
            return self._fit(began)
        training = self._begun()
        known = self._reported < len(training.history)
        entry = training.history[self._reported] if known else training.epoch()
        self._reported += 1
        over = training.over and self._reported == len(training.history)
        if over:
            # Whoever is told that it is over may remove its checkpoints.
            training.close()
        values = self._measured(training.best()) if over else {}
        spent = entry["seconds"] + entry["validation"] if known else time.perf_counter() - began
        told = result(entry, metric, self._best, over=over, done=over, values=values, spent=spent)
        self._best = told["best"]
        donor, self._donor = self._donor, ""
        return told | {"donor": donor}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Asked for by schedulers that pause trials or copy them."""
        self._begun().write(Path(checkpoint_dir))
        Path(checkpoint_dir, DONOR).write_text(self.trial_id, encoding="utf-8")

    def load_checkpoint(self, checkpoint: str) -> None:
        """Go on from there: where this trial was paused, or where a better one stood."""
        training = self._begun()
        training.read(Path(checkpoint))
        donor = Path(checkpoint, DONOR).read_text(encoding="utf-8")
        self._donor = "" if donor == self.trial_id else donor
        self._reported = len(training.history)
        self._best = max(entry[self._task.objectives.metric] for entry in training.history)

    def cleanup(self) -> None:
        """Called when the process ends."""
        if self._training:
            self._training.close()
            self._training = None

    def _begun(self) -> LocalTraining:
        if self._training is None:
            kept = Checkpoints(self._task.storage, self._suggested.name) if self._task.keeps else None
            self._training = LocalTraining(self.recipe, self._observed(), self._task.threads, kept)
        return self._training

    def _observed(self) -> Observed:
        # Arrays of the object store are not copied: all processes of a node see the same memory.
        return cast("Observed", ray.get(self._task.observed[self.recipe.model.name]))

    def _fit(self, began: float) -> dict[str, Any]:
        """A model that is fitted at once: one step is all."""
        torch.set_num_threads(self._task.threads)
        observed, choice, metric = self._observed(), self.recipe.model, self._task.objectives.metric
        model = model_class(choice.name)(choice.config, observed.num_items)
        cast("Fitted", model).fit(observed.interactions, here, self.recipe.training.seed)
        values = self._measured(model)
        entry, spent = {"epoch": 1.0, metric: values[metric]}, time.perf_counter() - began
        return result(entry, metric, -1.0, values, over=True, done=True, spent=spent, donor="")

    def _measured(self, model: Recommender) -> dict[str, float]:
        seen = self.recipe.evaluation.exclude_seen
        return measure(model, self._observed().users, self._task.objectives.wanted, seen)


def distributed_trial(config: dict[str, Any], task: Task) -> None:
    """A trial whose training has workers of its own: Ray Train inside of Ray Tune."""
    try:
        _train_with_workers(config, task)
    except Exception as error:
        tune.report(failure(error, 0.0))


def _train_with_workers(config: dict[str, Any], task: Task) -> None:
    suggested = Suggested.of(config)
    recipe, best = task.recipe(suggested.changes), float("-inf")
    metric = recipe.training.metric
    entries: list[Metrics] = []

    def on_epoch(entry: Metrics) -> None:
        nonlocal best
        entries.append(entry)
        spent = entry["seconds"] + entry["validation"]
        outcome = result(entry, metric, best, over=False, spent=spent, donor="")
        best = outcome["best"]
        tune.report(outcome)

    for entry in Checkpoints(task.storage, suggested.name).history():
        on_epoch(entry)
    bundle = train_model(replace(task.job, recipe=recipe), suggested.name, on_epoch)
    observed = cast("Observed", ray.get(task.observed[recipe.model.name]))
    model = open_bundle(task.storage, bundle).model()
    values = measure(model, observed.users, task.objectives.wanted, recipe.evaluation.exclude_seen)
    # Models that are fitted at once tell of no epochs.
    last = entries[-1] if entries else {"epoch": 1.0, metric: values[metric]}
    tune.report(result(last, metric, best, values, over=True, done=True, spent=0.0, donor=""))
