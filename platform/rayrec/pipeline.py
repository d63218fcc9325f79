"""The pipeline: each stage a function of the recipe and its inputs, skipped when nothing it reads has changed."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol

from rayrec.artifacts import Json, Storage, canonical, code_version, short_digest
from rayrec.data.dataset import Dataset, manifest_path, open_dataset
from rayrec.data.files import list_files, provide
from rayrec.data.prepare import prepare
from rayrec.data.report import publish_report
from rayrec.data.views import open_view
from rayrec.evaluation.evaluate import Measure, evaluate
from rayrec.evaluation.leakage import leakage_warnings
from rayrec.inference.bundle import open_bundle
from rayrec.inference.pyfunc import write_reference
from rayrec.inference.release import publish_release
from rayrec.models.popularity import PopularityConfig
from rayrec.plots import plot_by_cutoff, plot_curve
from rayrec.promotion import promote_if_not_worse
from rayrec.recipe import ModelChoice, Recipe, Training
from rayrec.tracking import RegisteredRelease, TrackedRun, Tracker, find_release, tracking_uri, without_passwords
from rayrec.training.checkpoint import Checkpoints
from rayrec.training.job import TrainJob
from rayrec.training.train import train_model

_LOG = logging.getLogger(__name__)

Metrics = dict[str, float]

BASE = ("errors", "artifacts", "features", "recipe", "recipe_data")
LEARNT_FROM = ("data/views", "data/interactions", "data/item_features", "data/user_features")
CODE = {
    "prepare": (*BASE, "data"),
    "baseline": (*BASE, "metrics", "models", *LEARNT_FROM, "inference", "evaluation/full_ranking", "training"),
    "train": (*BASE, "metrics", "models", *LEARNT_FROM, "inference", "evaluation/full_ranking", "training"),
    "evaluate": (*BASE, "metrics", *LEARNT_FROM, "data/user_groups", "inference", "evaluation"),
    "register": (*BASE, "inference", "promotion"),
}
"""The rooms each stage runs through: a change of their code runs the stage again."""


class Watcher(Protocol):
    """Who is told how it goes."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def prepared(self, counts: Json, view: Json) -> None:
        """There is a Dataset: the counts of its manifest, and of the view's."""

    def epoch(self, entry: Metrics, epochs: int) -> None:
        """An epoch of training has ended; there will be ``epochs`` at most."""

    def done(self, name: str, outcome: StageOutcome) -> None:
        """A stage has ended or was skipped."""


@dataclass(frozen=True)
class StageOutcome:
    """How a stage went.

    Attributes:
        output: What it made, by reference.
        seconds: How long it took; when skipped, this time.
        skipped: Whether an earlier run's output was taken.
        rows: Rows it went through: log rows, training events times epochs, users ranked.
    """

    output: Json
    seconds: float
    skipped: bool
    rows: int

    def summary(self) -> Json:
        """For the closing table and ``--json``."""
        rate = round(self.rows / self.seconds, 1) if self.seconds and not self.skipped else None
        return {"seconds": round(self.seconds, 3), "skipped": self.skipped, "rows": self.rows, "rows_per_second": rate}


@dataclass
class Pipeline:
    """One run of a recipe.

    Attributes:
        recipe: The recipe.
        storage: Where everything goes.
        watcher: Who is told.
        resume: Go on from the checkpoints of an interrupted training.
        append: Add new files to the Dataset, instead of preparing all of them.
        within: The MLflow run that this pipeline's is nested in.
        run_name: Of the pipeline's MLflow run.
        outcomes: Stages done so far.
    """

    recipe: Recipe
    storage: Storage
    watcher: Watcher
    resume: bool = True
    append: bool = False
    within: TrackedRun | None = None
    run_name: str = "pipeline"
    outcomes: dict[str, StageOutcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tracker = Tracker(self.recipe.name)
        self._parent: TrackedRun | None = None

    # ---- the stages

    def prepare(self) -> tuple[Dataset, str]:
        """Logs -> Dataset and view."""
        provide(self.recipe, self.storage)
        data = self.recipe.data
        tables = [*data.sources, *([data.items] if data.items else []), *([data.users] if data.users else [])]
        inputs = {"files": [file.fingerprint() for file in list_files(list(tables), self.storage)]}

        def work(run: TrackedRun) -> tuple[Json, int]:
            prepared = prepare(self.recipe, self.storage, self.append)
            run.metrics(self._log_dataset(run, prepared.dataset, prepared.view))
            run.json(prepared.dataset.manifest, "manifest.json")
            run.text(publish_report(prepared.dataset, prepared.view), "report.html")
            output = {"dataset": prepared.dataset.name, "manifest": prepared.dataset.number, "view": prepared.view}
            return output, prepared.dataset.manifest["counts"]["read"]

        output = self._stage("prepare", inputs, ("name", "data", "simulated"), self._prepared_exists, work).output
        dataset, view = open_dataset(self.storage, output["dataset"], output["manifest"]), output["view"]
        self.watcher.prepared(dataset.manifest["counts"], open_view(dataset, view)["counts"])
        return dataset, view

    def train(self, dataset: Dataset, view: str) -> tuple[str, str]:
        """Dataset -> bundle of the recipe's model, and bundle of the popularity baseline."""
        choice, learnt = ModelChoice("popularity", PopularityConfig()), Training(folds=self.recipe.training.folds)
        popular = self.recipe.model_copy(update={"model": choice, "training": learnt})
        baseline = self._train("baseline", popular, dataset, view, ("name",))
        if self.recipe.model == popular.model:
            return baseline, baseline
        sections = ("name", "model", "training", "evaluation")
        return self._train("train", self.recipe, dataset, view, sections), baseline

    def evaluate(self, dataset: Dataset, view: str, bundle: str, baseline: str) -> Json:
        """Bundles -> metrics: by role (``main`` and ``popular``), then by fold."""
        bundles = {"main": bundle, "popular": baseline}

        def work(run: TrackedRun) -> tuple[Json, int]:
            distinct = dict.fromkeys(bundles.values())
            of = {path: evaluate(self._measure(dataset, view, path)) for path in distinct}
            results = {role: of[path] for role, path in bundles.items()}
            self._log_dataset(run, dataset, view)
            self._log_evaluation(run, results)
            path = self.storage.write_content("evaluations", canonical(results), ".json")
            outcomes = [fold["outcomes"] for result in results.values() for fold in result.values()]
            return {"evaluation": path, "outcomes": outcomes, "bundles": bundles}, sum(
                fold["users"] for result in results.values() for fold in result.values()
            )

        inputs = {"dataset": dataset.digest, "view": view, "bundles": bundles, "metric": self.recipe.training.metric}
        output = self._stage("evaluate", inputs, ("evaluation",), self._evaluation_exists, work).output
        return self.storage.read_json(output["evaluation"])

    def register(
        self, dataset: Dataset, view: str, bundle: str, baseline: str, metrics: Json
    ) -> tuple[RegisteredRelease, str]:
        """Everything -> a registered Release, promoted if it is not worse. Returns it, and what was decided."""
        content = self._release_content(dataset, view, {"main": bundle, "popular": baseline}, metrics)

        def work(run: TrackedRun) -> tuple[Json, int]:
            release = publish_release(self.storage, content)
            with tempfile.TemporaryDirectory() as folder:
                write_reference(Path(folder) / "data", release)
                description = f"{self.recipe.model.name} on {dataset.name}, Release {release.digest}"
                # Of the pipeline's run: there the registry's link to its source leads to everything that made it.
                whole, data = self._with_parent(run)[-1], Path(folder) / "data"
                registered = self._tracker.register(
                    whole, release.digest, self.storage.uri, data, description, self.recipe.simulated
                )
            run.json(release.content, "release.json")
            metric = self.recipe.training.metric
            measure = self._measure(dataset, view, bundle)
            decision = promote_if_not_worse(self._tracker, registered, metric, metrics["main"]["test"][metric], measure)
            for target in self._with_parent(run):
                target.tags({"rayrec.decision": decision, "rayrec.release": registered.digest})
            return {"name": registered.name, "version": registered.version, "decision": decision}, 0

        output = self._stage("register", {"content": content}, ("name",), self._release_exists, work).output
        return find_release(f"{output['name']}/{output['version']}"), output["decision"]

    # ---- how a stage runs

    def _stage(
        self,
        name: str,
        inputs: Json,
        sections: tuple[str, ...],
        exists: Callable[[Json], bool],
        work: Callable[[TrackedRun], tuple[Json, int]],
    ) -> StageOutcome:
        """Run a stage, or take what an earlier run with the same key left."""
        key = short_digest(
            {"inputs": inputs, "recipe": self.recipe.sections(*sections), "code": code_version(*CODE[name])}
        )
        record, began = f"stages/{name}/{key}.json", time.perf_counter()
        self.watcher.stage(name)
        done = self._recorded(record, exists)
        if done:
            outcome = StageOutcome(done["output"], time.perf_counter() - began, True, done["rows"])
        else:
            with self._run(name) as run:
                run.tags({"rayrec.key": key})
                output, rows = work(run)
                outcome = StageOutcome(output, time.perf_counter() - began, False, rows)
                run.metrics({"stage_seconds": outcome.seconds, "stage_rows": rows})
                run.json(output, "output.json")
            self.storage.replace(record, canonical({"stage": name, "output": outcome.output, "rows": outcome.rows}))
        self.outcomes[name] = outcome
        self.watcher.done(name, outcome)
        return outcome

    def _recorded(self, record: str, exists: Callable[[Json], bool]) -> Json | None:
        """What an earlier run left, if its output is still there."""
        try:
            found = self.storage.read_json(record)
        except FileNotFoundError:
            return None
        return found if found.get("output") and exists(found["output"]) else None

    def _run(self, stage: str) -> AbstractContextManager[TrackedRun]:
        """The stage's MLflow run. The pipeline's own begins with the first stage that is not skipped."""
        if self._parent is None:
            self._parent = self._tracker.begin(self.run_name, self.within)
            self._parent.params(self.recipe.model_dump(mode="json", by_alias=True))
            self._parent.tags({"rayrec.simulated": self.recipe.simulated})
        return self._tracker.run(stage, self._parent)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the pipeline's MLflow run, if one was begun."""
        if self._parent is not None:
            self._tracker.end(self._parent, error)

    # ---- what each stage needs

    def _train(self, stage: str, recipe: Recipe, dataset: Dataset, view: str, sections: tuple[str, ...]) -> str:
        def work(run: TrackedRun) -> tuple[Json, int]:
            job = TrainJob(recipe, (dataset.name, dataset.number), view, self.storage, recipe.name)
            entries: list[Metrics] = []

            def on_epoch(entry: Metrics) -> None:
                entries.append(entry)
                curve = {key: value for key, value in entry.items() if key != "epoch"}
                for target in self._with_parent(run):
                    target.metrics(curve, step=int(entry["epoch"]))
                self.watcher.epoch(entry, recipe.training.epochs)

            run.params(
                {"model": recipe.sections("model")["model"], "training": recipe.sections("training")["training"]}
            )
            bundle = train_model(job, run_name, on_epoch, self.resume)
            self._log_dataset(run, dataset, view)
            if entries:
                run.figure(plot_curve(entries, recipe.training.metric), "curve.png")
            return {"bundle": bundle}, events * max(1, len(entries))

        events = open_view(dataset, view)["counts"]["train"]
        chosen = {"model": recipe.sections("model"), "folds": list(recipe.training.folds)}
        inputs = {"dataset": dataset.digest, "view": view, **chosen}
        run_name = short_digest([recipe.sections(*sections), dataset.digest, view, code_version(*CODE[stage])])
        outcome = self._stage(stage, inputs, sections, self._bundle_exists, work)
        # It is recorded: nobody will take it up again.
        Checkpoints(self.storage, run_name).clear()
        return str(outcome.output["bundle"])

    def _prepared_exists(self, output: Json) -> bool:
        view = f"datasets/{output['dataset']}/views/{output['view']}/view.json"
        return all(self.storage.exists(p) for p in (manifest_path(output["dataset"], output["manifest"]), view))

    def _bundle_exists(self, output: Json) -> bool:
        """A damaged bundle is no reason to train again unasked: opening it says what is wrong."""
        if not self.storage.exists(output["bundle"]):
            return False
        return bool(open_bundle(self.storage, output["bundle"]).manifest)

    def _evaluation_exists(self, output: Json) -> bool:
        return all(self.storage.exists(path) for path in (output["evaluation"], *output["outcomes"]))

    def _release_exists(self, output: Json) -> bool:
        return any(release.version == output["version"] for release in self._tracker.releases())

    def _release_content(self, dataset: Dataset, view: str, bundles: dict[str, str], metrics: Json) -> Json:
        """What the Release pins."""
        manifest = dataset.manifest
        return {
            "name": self.recipe.name,
            "simulated": self.recipe.simulated,
            "models": bundles,
            "variants": {role: open_bundle(self.storage, path).runtime for role, path in bundles.items()},
            "index": "exact",
            "dataset": {"name": dataset.name, "manifest": dataset.number, "digest": dataset.digest, "view": view},
            "catalogue": (manifest["items"] or manifest["vocab"]["item"])["sha256"],
            "transforms": open_view(dataset, view)["transform"],
            "event_types": list(self.recipe.data.view.event_types),
            "serving": self.recipe.sections("serving")["serving"],
            "evaluation": self.recipe.sections("evaluation")["evaluation"],
            "metric": self.recipe.training.metric,
            "funnel": {"sources": ["main"], "fallback": "popular", "exclude_seen": self.recipe.serving.exclude_seen},
            "metrics": {role: result["test"] for role, result in metrics.items()},
        }

    def _measure(self, dataset: Dataset, view: str, bundle: str) -> Measure:
        """A bundle on the held-out events of a view."""
        settings, metrics = self.recipe.evaluation, self.recipe.metric_names
        return Measure(settings, metrics, (dataset.name, dataset.number), view, self.storage, bundle, self.storage)

    def _with_parent(self, run: TrackedRun) -> list[TrackedRun]:
        """A stage's run and the pipeline's, which shows everything at one glance."""
        return [run, self._parent] if self._parent else [run]

    def _log_dataset(self, run: TrackedRun, dataset: Dataset, view: str) -> dict[str, int]:
        """The Dataset as input of a stage and of the pipeline. Returns its counts and the view's."""
        counts = open_view(dataset, view)["counts"]
        profile = {**dataset.manifest["counts"], **{f"view_{key}": value for key, value in counts.items()}}
        for target in self._with_parent(run):
            target.dataset(dataset.name, dataset.digest, dataset.uri, "training", profile)
        return profile

    def _log_evaluation(self, run: TrackedRun, results: Json) -> None:
        for role, folds in results.items():
            prefix = "" if role == "main" else f"{role}/"
            for fold, values in folds.items():
                numbers = {f"{prefix}{fold}/{k}": v for k, v in values.items() if isinstance(v, float)}
                for target in self._with_parent(run) if fold == "test" else [run]:
                    target.metrics(numbers)
        warnings = leakage_warnings(results["main"]["test"], self.recipe.evaluation.exclude_seen)
        for warning in warnings:
            _LOG.warning("evaluation: %s", warning)
        run.tags({"rayrec.warnings": " ".join(warnings)})
        run.json(results, "metrics.json")
        run.figure(plot_by_cutoff(results, self.recipe.evaluation.ks), "metrics_by_cutoff.png")


@dataclass(frozen=True)
class RunResult:
    """What `run` leaves behind.

    Attributes:
        recipe: The recipe.
        dataset: The Dataset.
        release: The registered Release.
        decision: Whether it was promoted, and why.
        metrics: By role (``main``, ``popular``), then by fold.
        stages: Stage outcomes.
    """

    recipe: Recipe
    dataset: Dataset
    release: RegisteredRelease
    decision: str
    metrics: Json
    stages: dict[str, StageOutcome]

    def to_json(self) -> Json:
        """The nested object that ``--json`` prints."""
        release = dataclasses.asdict(self.release)
        storage = Storage(self.release.storage)
        return {
            "recipe": self.recipe.name,
            "simulated": self.recipe.simulated,
            "dataset": {
                "name": self.dataset.name,
                "uri": self.dataset.uri,
                "digest": self.dataset.digest,
                "counts": self.dataset.manifest["counts"],
            },
            "release": {
                **release,
                "uri": storage.url(f"releases/{self.release.digest}.json"),
                "decision": self.decision,
                "promoted": "champion" in self.release.aliases,
            },
            "metrics": self.metrics["main"],
            "baseline": self.metrics["popular"],
            "stages": {name: outcome.summary() for name, outcome in self.stages.items()},
            "tracking": {"uri": without_passwords(tracking_uri()), "run_id": self.release.run_id},
        }


def run(recipe: Recipe, storage: Storage, watcher: Watcher, resume: bool = True, append: bool = False) -> RunResult:
    """Prepare, train, evaluate, register."""
    with Pipeline(recipe, storage, watcher, resume, append) as pipeline:
        dataset, view = pipeline.prepare()
        bundle, baseline = pipeline.train(dataset, view)
        metrics = pipeline.evaluate(dataset, view, bundle, baseline)
        release, decision = pipeline.register(dataset, view, bundle, baseline, metrics)
    return RunResult(recipe, dataset, release, decision, metrics, pipeline.outcomes)
