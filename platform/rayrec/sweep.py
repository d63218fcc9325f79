"""A sweep of a recipe: prepare once, search, and register the best as the candidate."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from rayrec.artifacts import Json, Storage, code_version, short_digest
from rayrec.data.dataset import Dataset
from rayrec.errors import ModelError
from rayrec.pipeline import Pipeline, training_name
from rayrec.recipe import Recipe
from rayrec.recipe_files import to_yaml
from rayrec.stages import CODE, Watcher
from rayrec.tracking import RegisteredRelease, TrackedRun, Tracker, tracking_uri, without_passwords
from rayrec.training.checkpoint import Checkpoints
from rayrec.training.job import TrainJob
from rayrec.tuning.confirmation import ConfirmationWatcher, Confirmed, confirm, confirmations
from rayrec.tuning.follower import Sweep
from rayrec.tuning.options import Search
from rayrec.tuning.records import Records, TrialRecord, front_of, most_epochs, ranked
from rayrec.tuning.report import sweep_page
from rayrec.tuning.search import search
from rayrec.tuning.shares import shares
from rayrec.tuning.space import changed

_LOG = logging.getLogger(__name__)

HEADER = "# Written by rayrec tune"


class TuneWatcher(Watcher, ConfirmationWatcher, Protocol):
    """Who is told of the stages and of the trials."""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep leaves behind.

    Attributes:
        recipe: The recipe that was tuned.
        search: What was searched.
        trials: All trials, in order.
        best: The best of them: by its mean over new seeds, where some were confirmed.
        confirmed: What those reached with new seeds, the best mean first.
        best_recipe: The complete recipe that trains it.
        release: The best, registered as the candidate.
        metrics: Of that Release's model, by fold.
        page: The report, HTML.
        folder: Of the sweep, a URI.
        run_id: Its MLflow run.
    """

    recipe: Recipe
    search: Search
    trials: list[TrialRecord]
    best: TrialRecord
    confirmed: list[Confirmed]
    best_recipe: Recipe
    release: RegisteredRelease
    metrics: Json
    page: str
    folder: str
    run_id: str

    @property
    def front(self) -> list[TrialRecord]:
        """The Pareto front, where there are several objectives."""
        objectives = self.search.objectives
        return front_of(self.trials, objectives) if len(objectives.names) > 1 else []

    @property
    def yaml(self) -> str:
        """What `best_recipe` is written as."""
        return best_yaml(self.best_recipe, self.best, self.search, self.confirmed)

    def to_json(self) -> Json:
        """The object that ``--json`` prints."""
        return {
            "recipe": self.recipe.name,
            "simulated": self.recipe.simulated,
            "metric": list(self.search.objectives.names),
            "constraints": [str(constraint) for constraint in self.search.objectives.constraints],
            "trials": [record.to_json() | {"best": record.best if record.curve else None} for record in self.trials],
            "best": self.best.number,
            "default": 0,
            "confirmed": [confirmed.to_json() for confirmed in self.confirmed],
            "pareto_front": [record.number for record in self.front],
            "epochs": {"trained": sum(len(r.curve) for r in self.trials), "at_most": self.at_most},
            "release": {"name": self.release.name, "version": self.release.version, "digest": self.release.digest},
            "metrics": self.metrics,
            "folder": self.folder,
            "tracking": {"uri": without_passwords(tracking_uri()), "run_id": self.run_id},
        }

    @property
    def at_most(self) -> int:
        """Epochs of all trials, had none been stopped and no patience ended."""
        return most_epochs(self.recipe, self.trials)


def tune(recipe: Recipe, chosen: Search, storage: Storage, watcher: TuneWatcher, resume: bool = True) -> SweepResult:
    """Run a sweep, or what is left of it.

    Args:
        recipe: The recipe; trials change it.
        chosen: What is searched, and how.
        storage: Where everything goes.
        watcher: Who is told.
        resume: Go on from the trials of an interrupted sweep; else begin anew.

    Raises:
        ModelError: No trial came to anything, or too many failed.
        DataError: There are no validation events to judge trials by.
        StorageError: Another command is at the same sweep.
    """
    tracker = Tracker(recipe.name)
    with ExitStack() as alone, tracker.run("tune") as run, Pipeline(recipe, storage, watcher, within=run) as pipeline:
        dataset, view = pipeline.prepare()
        sweep = plan(recipe, chosen, dataset, view, run, tracker, resume)
        alone.enter_context(sweep.records.driven())
        begin(sweep, resume)
        run.params({"space": {p.key: f"{p.kind} {list(p.values)}" for p in chosen.space.parameters}})
        run.params({"options": chosen.options.model_dump(mode="json"), "recipe": sweep.job.recipe.name})
        run.tags({"rayrec.simulated": recipe.simulated})
        tracker.take_up(run, sweep.records.folder)
        trials = search(sweep, watcher)
        if not ranked(trials, chosen.objectives):
            raise ModelError(_nothing(trials, chosen))
        confirmed = confirm(sweep, trials, watcher) if chosen.options.confirm else []
        best = _best(trials, chosen, confirmed)
        if best.state == "stopped":
            _LOG.warning("tune: no trial came to its end in time: the best so far, %d, is trained on", best.number)
        final = _to_be_trained(changed(sweep.job.recipe, best.changes), recipe)
        release, metrics = _registered(final, dataset, view, storage, watcher, run, resume)
        result = SweepResult(
            recipe=sweep.job.recipe,
            search=chosen,
            trials=trials,
            best=best,
            confirmed=confirmed,
            best_recipe=final,
            release=release,
            metrics=metrics,
            page=sweep_page(sweep.job.recipe, chosen, trials, best, confirmed, metrics),
            folder=storage.url(sweep.records.folder),
            run_id=run.id,
        )
        _log_result(run, storage, sweep.records.folder, result)
    return result


def _to_be_trained(trial: Recipe, recipe: Recipe) -> Recipe:
    """The recipe of a trial as one runs it: where, and what is served, is as it was.

    What is served may learn from validation events, too, once nothing is chosen by them any more.
    """
    own = recipe.training
    training = replace(trial.training, refit=own.refit, workers=own.workers, gpus=own.gpus)
    return trial.model_copy(update={"training": training})


def _best(trials: list[TrialRecord], chosen: Search, confirmed: list[Confirmed]) -> TrialRecord:
    """The best trial: by its mean over new seeds, where there is one.

    Raises:
        ModelError: None of those could be trained with them.
    """
    allowed = ranked(trials, chosen.objectives)
    if not chosen.options.confirm:
        return allowed[0]
    by_number = {trial.number: trial for trial in allowed}
    winner = next((found.trial for found in confirmed if found.trial in by_number), None)
    if winner is None:
        raise ModelError(
            f"tune: none of the {chosen.options.confirm} best trials could be trained with all new seeds. The "
            "reasons are in the runs `confirmation N` in MLflow; set confirm to 0 to take the best as it is."
        )
    return by_number[winner]


def best_yaml(recipe: Recipe, best: TrialRecord, chosen: Search, confirmed: Sequence[Confirmed]) -> str:
    """A complete recipe, with what it is said to reach."""
    metric = chosen.objectives.metric
    own = next((found for found in confirmed if found.trial == best.number), None)
    further = f"; {metric} {own.mean:.6f} in the mean of other seeds ({', '.join(map(str, own.seeds))})" if own else ""
    note = "training it again gives the same"
    if best.copied_from or best.state != "done":
        note = "its trial went on from the weights of others" if best.copied_from else "its trial was stopped there"
    return (
        f"{HEADER}: trial {best.number}, {metric} {best.best:.6f} on validation events after epoch {best.best_epoch}; "
        f"{note}{further}.\n{to_yaml(recipe)}"
    )


def plan(
    recipe: Recipe, chosen: Search, dataset: Dataset, view: str, run: TrackedRun, tracker: Tracker, resume: bool
) -> Sweep:
    """The sweep as it was begun: with everything in the recipe that its trials have in common.

    Raises:
        ClusterError: The cluster has not what one trial takes.
    """
    version = dataset.name, dataset.number

    def with_threads(threads: int | None) -> TrainJob:
        training = replace(
            recipe.training,
            metric=chosen.objectives.metric,
            refit="none",
            warm_start=None,
            workers=recipe.training.workers or 0,
            gpus=recipe.training.gpus if recipe.training.workers else "auto",
            threads=threads,
        )
        base = recipe.model_copy(update={"training": training})
        return TrainJob(base, version, view, dataset.storage, recipe.name)

    key = short_digest([training_name(with_threads(recipe.training.threads), dataset), _identity(chosen)])
    records = Records(dataset.storage, f"sweeps/{recipe.name}/{key}")
    # Sums depend on the number of threads: a sweep that goes on elsewhere keeps to the first choice.
    begun_with = records.threads if resume else None
    threads, resources, parallel = shares(recipe, chosen.options, recipe.training.threads or begun_with)
    job = with_threads(threads)

    def name_of(trial: Recipe) -> str:
        return training_name(replace(job, recipe=trial), dataset)

    return Sweep(job, chosen, records, run, tracker, name_of, resources, parallel)


def begin(sweep: Sweep, resume: bool) -> None:
    """Store how a sweep is begun, and forget its trials if it is to begin anew."""
    records = sweep.records
    if not resume:
        for record in (*records.readable, *confirmations(sweep).readable):
            Checkpoints(records.storage, record.name).clear()
        records.clear()
    recipe = sweep.job.recipe.model_dump(mode="json", by_alias=True)
    records.begin(sweep.threads, {**_identity(sweep.search), "recipe": recipe})


def _identity(chosen: Search) -> Json:
    """What makes a sweep this one and no other: but not how many trials it has, or how many at a time."""
    options = {"algorithm", "scheduler", "grace_epochs", "reduction", "seed"}
    return {
        "space": [asdict(parameter) for parameter in chosen.space.parameters],
        "options": chosen.options.model_dump(mode="json", include=options),
        "metric": list(chosen.objectives.names),
        "constraints": [str(constraint) for constraint in chosen.objectives.constraints],
        "code": code_version(*CODE["train"], "tuning"),
    }


def _registered(
    recipe: Recipe, dataset: Dataset, view: str, storage: Storage, watcher: Watcher, run: TrackedRun, resume: bool
) -> tuple[RegisteredRelease, Json]:
    """The best recipe's Release, the candidate. Its training goes on from the trial's last checkpoint: it is over."""
    with Pipeline(recipe, storage, watcher, resume, within=run, run_name="best") as pipeline:
        trained = pipeline.train(dataset, view)
        metrics = pipeline.evaluate(dataset, view, trained)
        release, _ = pipeline.register(dataset, view, trained, metrics, promote=False)
    # It may have been registered long ago, and others since.
    return Tracker(recipe.name).nominate(release.version), metrics["main"]


def _nothing(trials: list[TrialRecord], chosen: Search) -> str:
    """Why there is no best."""
    states = ", ".join(f"{sum(t.state == state for t in trials)} {state}" for state in ("done", "stopped", "failed"))
    if chosen.objectives.constraints and any(trial.state == "done" for trial in trials):
        limits = " and ".join(str(constraint) for constraint in chosen.objectives.constraints)
        return f"tune: no trial meets {limits} ({states}). Loosen it, or search smaller models."
    return f"tune: no trial came to its end ({states}). Give it more time, or more trials."


def _log_result(run: TrackedRun, storage: Storage, folder: str, result: SweepResult) -> None:
    """The parent run shows the outcome at one glance."""
    objectives, default = result.search.objectives, result.trials[0]
    run.metrics({f"best/{name}": value for name, value in result.best.values.items()})
    run.metrics({f"default/{name}": value for name, value in default.values.items()})
    run.metrics({"trials": len(result.trials), "epochs": sum(len(trial.curve) for trial in result.trials)})
    run.tags({"rayrec.best": result.best.number, "rayrec.metric": objectives.metric})
    means = {found.trial: found.mean for found in result.confirmed}
    for name, number in (("best", result.best.number), ("default", 0)):
        if number in means:
            run.metrics({f"{name}/{objectives.metric}/confirmed": means[number]})
    if result.confirmed:
        run.json([found.to_json() for found in result.confirmed], "confirmed.json")
    run.text(result.yaml, "best.yaml")
    run.text(result.page, "sweep.html")
    run.json([record.to_json() for record in result.trials], "trials.json")
    storage.replace(f"{folder}/best.yaml", result.yaml.encode())
    storage.replace(f"{folder}/sweep.html", result.page.encode())
