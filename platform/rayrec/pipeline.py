"""The pipeline: each stage a function of the recipe and its inputs, skipped when nothing it reads has changed."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from rayrec.artifacts import Json, Storage, canonical, code_version, short_digest
from rayrec.data.dataset import Dataset, manifest_path, open_dataset
from rayrec.data.files import list_files, provide
from rayrec.data.prepare import prepare
from rayrec.data.report import publish_report
from rayrec.data.views import load_view, open_view
from rayrec.errors import ModelError, RecipeError
from rayrec.evaluation.compare import fair_bundle
from rayrec.evaluation.evaluate import Measure, evaluate
from rayrec.evaluation.leakage import leakage_warnings
from rayrec.evaluation.retrieval import IndexJob, index_items
from rayrec.inference.bundle import open_bundle
from rayrec.inference.index import MANIFEST as INDEX_MANIFEST
from rayrec.inference.pyfunc import write_reference
from rayrec.inference.release import EXACT, open_release, publish_release
from rayrec.models.base import Fitted
from rayrec.models.popularity import PopularityConfig
from rayrec.models.registry import model_class
from rayrec.plots import plot_by_cutoff, plot_curve
from rayrec.promotion import promote_if_not_worse, recall_refusal
from rayrec.recipe import Evaluation, ModelChoice, Recipe, Training
from rayrec.stages import CODE, Metrics, StageOutcome, Stages, Watcher
from rayrec.system_metrics import system_metrics
from rayrec.tracking import RegisteredRelease, TrackedRun, find_release, tracking_uri, without_passwords
from rayrec.training.checkpoint import Checkpoints
from rayrec.training.job import TrainJob, best_epoch
from rayrec.training.train import train_model
from rayrec.training.warm_start import Parent

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """Paths of bundles by role: ``main``, the recipe's model, and ``popular``, the baseline that is the fallback.

    Attributes:
        evaluated: Trained on the training fold: what ``test`` metrics are of.
        served: The same, or where `Training.refit` says so, trained again on more.
    """

    evaluated: dict[str, str]
    served: dict[str, str]


@dataclass
class Pipeline(Stages):
    """One run of a recipe: its stages, in order.

    Attributes:
        resume: Go on from the checkpoints of an interrupted training.
        append: Add new files to the Dataset, instead of preparing all of them.
        profile: A file for the profile of some steps of the training (see `rayrec.training.profiling`).
    """

    resume: bool = True
    append: bool = False
    profile: Path | None = None

    def prepare(self) -> tuple[Dataset, str]:
        """Logs -> Dataset and view.

        Raises:
            RecipeError: The model is to begin with weights, and there are none, or it begins with none.
        """
        self._registered_parent()
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

    def train(self, dataset: Dataset, view: str) -> Trained:
        """Dataset -> bundles, trained on the training fold and, where `Training.refit` says so, again on more.

        Raises:
            RecipeError: It is to be trained again with validation events, and there are none.
        """
        refit, folds = self.recipe.training.refit, self.recipe.training.served_folds
        if refit == "validation" and not open_view(dataset, view)["counts"]["validation"]:
            raise RecipeError(
                "training.refit = 'validation': the view has no validation events to add. Set training.refit to none "
                "or all, or data.split so that there are some."
            )
        version, parent = (dataset.name, dataset.number), self._parent_model(dataset, view)
        job = TrainJob(self.recipe, version, view, self.storage, self.recipe.name, parent=parent)
        choice = {"model": ModelChoice("popularity", PopularityConfig())}
        defaults = {"training": Training(), "evaluation": Evaluation()}
        popular = replace(job, recipe=self.recipe.model_copy(update=choice | defaults), parent=None)
        alone = self.recipe.model == popular.recipe.model
        baseline = self._train("baseline", popular, dataset)
        first = baseline if alone else self._train("train", replace(job, profile=self.profile is not None), dataset)
        if self.profile and (alone or self.outcomes["train"].skipped):
            raise RecipeError(
                f"--profile: no steps were taken, so {self.profile} was not written: the training is done already, or "
                "its model is fitted at once. Train something that is new, for example with --set training.seed=1."
            )
        evaluated = {"main": first, "popular": baseline}
        if refit == "none":
            return Trained(evaluated, evaluated)
        again = replace(job, folds=folds, epochs=best_epoch(self.storage, first))
        served = self._train("refit", again, dataset)
        # What answers when nothing is known of a user must not lag behind the model.
        fallback = served if alone else self._train("fallback", replace(popular, folds=folds), dataset)
        return Trained(evaluated, {"main": served, "popular": fallback})

    def evaluate(self, dataset: Dataset, view: str, trained: Trained) -> Json:
        """Bundles -> metrics: by role (``main`` and ``popular``), then by fold; ``test_refit`` is of what is served."""
        # Of what was trained on all there is nothing left to measure.
        refit = {"refit": trained.served["main"]} if self.recipe.training.refit == "validation" else {}
        bundles = trained.evaluated | refit

        def work(run: TrackedRun) -> tuple[Json, int]:
            distinct = dict.fromkeys(trained.evaluated.values())
            of = {path: evaluate(self._measure(dataset, view, path)) for path in distinct}
            results = {role: of[path] for role, path in trained.evaluated.items()}
            for path in refit.values():
                measure = replace(self._measure(dataset, view, path), folds=("test",))
                results["main"] = results["main"] | {"test_refit": evaluate(measure)["test"]}
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
        self, dataset: Dataset, view: str, trained: Trained, metrics: Json, promote: bool = True
    ) -> tuple[RegisteredRelease, str]:
        """Everything -> a registered Release, promoted if it is not worse. Returns it, and what was decided.

        Args:
            dataset: The Dataset.
            view: Digest of the view.
            trained: The models.
            metrics: Theirs.
            promote: Whether it may become the champion; it is the candidate in any case.
        """
        index = self._index(dataset, view, trained.served["main"])
        content = self._release_content(dataset, view, trained, metrics, index)

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
            measure = self._measure(dataset, view, trained.evaluated["main"])
            decision = "the candidate; `rayrec promote` makes it the champion"
            if refusal := recall_refusal(index, registered):
                decision = refusal
            elif promote:
                tested = metrics["main"]["test"][metric]
                decision = promote_if_not_worse(self._tracker, registered, metric, tested, measure)
            for target in self._with_parent(run):
                target.tags({"rayrec.decision": decision, "rayrec.release": registered.digest})
            return {"name": registered.name, "version": registered.version, "decision": decision}, 0

        output = self._stage(
            "register", {"content": content, "promote": promote}, ("name",), self._release_exists, work
        ).output
        return find_release(f"{output['name']}/{output['version']}"), output["decision"]

    # ---- what each stage needs

    def _registered_parent(self) -> RegisteredRelease | None:
        """The Release that `Training.warm_start` names."""
        reference = self.recipe.training.warm_start
        if reference is None:
            return None
        if issubclass(model_class(self.recipe.model.name), Fitted):
            raise RecipeError(
                f"training.warm_start: '{self.recipe.model.name}' is fitted to all events at once, and begins with no "
                "weights. Leave the setting out."
            )
        try:
            return find_release(reference)
        except ModelError as error:
            raise RecipeError(f"training.warm_start: {error}") from error

    def _parent_model(self, dataset: Dataset, view: str) -> Parent | None:
        """The model that `Training.warm_start` names; where that was trained on test events, the one before it."""
        registered = self._registered_parent()
        if registered is None:
            return None
        release = open_release(Storage.open(registered.storage), registered.digest)
        fair = fair_bundle(release, dataset, view, load_view(dataset, view))
        _LOG.warning("training: begins with the weights of %s/%d", registered.name, registered.version)
        if fair.trained_on_test:
            known = fair.trained_on_test
            what = known if isinstance(known, str) else f"it was trained on {known:,} of them"
            _LOG.warning(
                "training.warm_start: %s/%d may know test events (%s): the test metrics flatter",
                *(registered.name, registered.version, what),
            )
        return Parent(f"{registered.name}/{registered.version}", release.digest, fair.path, release.storage)

    def _train(self, stage: str, job: TrainJob, dataset: Dataset) -> str:
        recipe = job.recipe

        def work(run: TrackedRun) -> tuple[Json, int]:
            entries: list[Metrics] = []
            # Two curves in one plot are a tangle: the pipeline's run shows that of the first training.
            targets = [run] if stage == "refit" else self._with_parent(run)

            def log(entry: Metrics) -> None:
                entries.append(entry)
                curve = {key: value for key, value in entry.items() if key != "epoch"}
                for target in targets:
                    target.metrics(curve, step=int(entry["epoch"]))

            def on_epoch(entry: Metrics) -> None:
                log(entry)
                self.watcher.epoch(entry, job.epochs or recipe.training.epochs)

            run.params({"model": recipe.sections("model")["model"], "training": job.settings})
            # Of a training that is taken up the curve is whole.
            for entry in checkpoints.history() if self.resume else ():
                log(entry)
            with system_metrics(run):
                bundle = train_model(job, run_name, on_epoch, self.resume)
            self._log_dataset(run, dataset, job.view)
            if job.profile:
                self._keep_profile(run, checkpoints)
            made_by = self.storage.read_json(f"{bundle}/metrics.json")
            run.tags({f"rayrec.{key}": made_by[key] for key in ("workers", "threads") if key in made_by})
            if entries:
                run.figure(plot_curve(entries, recipe.training.metric), "curve.png")
            return {"bundle": bundle}, events * max(1, len(entries))

        counts = open_view(dataset, job.view)["counts"]
        events = sum(counts[fold] for fold in job.folds)
        inputs, run_name = training_inputs(job, dataset), training_name(job, dataset, stage)
        checkpoints = Checkpoints(self.storage, run_name)
        outcome = self._stage(stage, inputs, (), self._bundle_exists, work)
        # It is recorded: nobody will take it up again.
        checkpoints.clear()
        return str(outcome.output["bundle"])

    def _keep_profile(self, run: TrackedRun, checkpoints: Checkpoints) -> None:
        if self.profile is None or not self.storage.exists(checkpoints.profile):
            _LOG.warning("training: too few steps were taken to profile any")
            return
        self.profile.write_bytes(self.storage.read(checkpoints.profile))
        run.file(self.profile)

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

    def _index(self, dataset: Dataset, view: str, bundle: str) -> Json | str:
        """What a Release says of the index of the items, built where there are many; `EXACT` where there are not."""
        settings, name = self.recipe.serving.index, self.recipe.name
        job = IndexJob(settings, name, bundle, (dataset.name, dataset.number), view, self.storage)
        if not job.is_wanted:
            return EXACT

        def work(run: TrackedRun) -> tuple[Json, int]:
            about = index_items(job)
            for target in self._with_parent(run):
                target.metrics({f"index/{kind}_recall": about[kind]["recall"] for kind in about if kind != "path"})
            return {"bundle": bundle, "index": about}, open_bundle(self.storage, bundle).manifest["num_items"]

        inputs = {"bundle": bundle, "dataset": dataset.digest, "view": view, "settings": settings.model_dump()}
        found: Json = self._stage("index", inputs, ("name",), self._index_exists, work).output["index"]
        return found

    def _index_exists(self, output: Json) -> bool:
        return self.storage.exists(f"{output['index']['path']}/{INDEX_MANIFEST}")

    def _release_content(self, dataset: Dataset, view: str, trained: Trained, metrics: Json, index: Json | str) -> Json:
        """What the Release pins."""
        manifest, training = dataset.manifest, self.recipe.training
        refit = {"refit": metrics["main"]["test_refit"]} if "test_refit" in metrics["main"] else {}
        return {
            "name": self.recipe.name,
            "simulated": self.recipe.simulated,
            "models": trained.served,
            "served": {
                "refit": training.refit,
                "folds": list(training.served_folds),
                "evaluated": trained.evaluated,
            },
            "variants": {role: open_bundle(self.storage, path).runtime for role, path in trained.served.items()},
            "index": index,
            "dataset": {"name": dataset.name, "manifest": dataset.number, "digest": dataset.digest, "view": view},
            "catalogue": (manifest["items"] or manifest["vocab"]["item"])["sha256"],
            "transforms": open_view(dataset, view)["transform"],
            "event_types": list(self.recipe.data.view.event_types),
            "serving": self.recipe.sections("serving")["serving"],
            "evaluation": self.recipe.sections("evaluation")["evaluation"],
            "metric": training.metric,
            "funnel": {"sources": ["main"], "fallback": "popular", "exclude_seen": self.recipe.serving.exclude_seen},
            "metrics": {role: result["test"] for role, result in metrics.items()} | refit,
        }

    def _measure(self, dataset: Dataset, view: str, bundle: str) -> Measure:
        """A bundle on the held-out events of a view."""
        settings, metrics = self.recipe.evaluation, self.recipe.metric_names
        return Measure(settings, metrics, (dataset.name, dataset.number), view, self.storage, bundle, self.storage)

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
                for target in [run] if fold == "validation" else self._with_parent(run):
                    target.metrics(numbers)
        warnings = leakage_warnings(results["main"]["test"], self.recipe.evaluation.exclude_seen)
        for warning in warnings:
            _LOG.warning("evaluation: %s", warning)
        run.tags({"rayrec.warnings": " ".join(warnings)})
        run.json(results, "metrics.json")
        run.figure(plot_by_cutoff(results, self.recipe.evaluation.ks), "metrics_by_cutoff.png")


def training_inputs(job: TrainJob, dataset: Dataset) -> Json:
    """All that decides what a training makes, but for the code."""
    chosen = job.recipe.sections("name", "model", "evaluation") | {"training": job.settings}
    return {"dataset": dataset.digest, "view": job.view, **chosen}


def training_name(job: TrainJob, dataset: Dataset, stage: str = "train") -> str:
    """Of a training's checkpoints: the same training has the same name, whoever begins it."""
    return short_digest([training_inputs(job, dataset), code_version(*CODE[stage])])


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
        release, training = dataclasses.asdict(self.release), self.recipe.training
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
            "served": {"refit": training.refit, "folds": list(training.served_folds)},
            "metrics": self.metrics["main"],
            "baseline": self.metrics["popular"],
            "stages": {name: outcome.summary() for name, outcome in self.stages.items()},
            "tracking": {"uri": without_passwords(tracking_uri()), "run_id": self.release.run_id},
        }


def run(recipe: Recipe, storage: Storage, watcher: Watcher, resume: bool = True, append: bool = False) -> RunResult:
    """Prepare, train, evaluate, register."""
    with Pipeline(recipe, storage, watcher, resume, append) as pipeline:
        dataset, view = pipeline.prepare()
        trained = pipeline.train(dataset, view)
        metrics = pipeline.evaluate(dataset, view, trained)
        release, decision = pipeline.register(dataset, view, trained, metrics)
    return RunResult(recipe, dataset, release, decision, metrics, pipeline.outcomes)
