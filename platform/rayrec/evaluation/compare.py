"""Releases on the same users: which is better, for whom, and whether that is luck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from rayrec.artifacts import Json, Storage
from rayrec.data.dataset import Dataset, open_dataset
from rayrec.data.splits import FOLDS
from rayrec.data.tasks import by_ray, result
from rayrec.data.views import Sequences, load_view, open_view
from rayrec.errors import DataError, ModelError, RecipeError
from rayrec.evaluation.evaluate import Measure, evaluate_here
from rayrec.evaluation.leakage import leakage_warnings, trained_on
from rayrec.evaluation.outcomes import read_ranks
from rayrec.evaluation.slices import accuracy
from rayrec.inference.bundle import open_bundle
from rayrec.inference.release import Release
from rayrec.metrics.ranking import parse_metric
from rayrec.metrics.significance import holm, paired_test
from rayrec.models.interactions import Each, here
from rayrec.recipe import Evaluation

USUAL = ("hr@10", "ndcg@10", "mrr@10", "recall@20", "ndcg@20")
BEYOND_ACCURACY = ("coverage", "novelty", "gini", "popularity_bias", "diversity")


@dataclass(frozen=True)
class Entrant:
    """A Release to compare.

    Attributes:
        reference: What it is called, such as ``movies/3``.
        release: The Release.
    """

    reference: str
    release: Release


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        data: On what all were measured: ``name``, ``manifest``, ``digest``, ``view``, ``split``, ``exclude_seen``,
            ``simulated`` and ``users``.
        metrics: The accuracy metrics that are shown and tested.
        models: Of each Release, in the order given: ``reference``, ``release``, ``bundle`` (which was measured),
            ``kind``, ``trained_on_test`` and ``refit_on_test`` (see `FairBundle`) and ``test``, its results.
        tests: Of every Release but the first and every metric: ``model`` and ``metric``; the mean ``difference`` to the
            first with its 95 % interval from ``low`` to ``high``; ``p_value`` and, corrected for the number of tests,
            ``p_holm``; and with how many users it is ``better``, ``equal`` and ``worse``.
        warnings: What makes the figures look better than they are.
    """

    data: Json
    metrics: tuple[str, ...]
    models: list[Json]
    tests: list[Json]
    warnings: list[str]

    @property
    def beyond_accuracy(self) -> list[str]:
        """The other metrics that are shown: at the cut-offs of `metrics`, where they were measured."""
        ks = dict.fromkeys(parse_metric(name)[1] for name in self.metrics)
        names = [f"{name}@{k}" for k in ks for name in BEYOND_ACCURACY]
        return [name for name in names if name in self.models[0]["test"]]

    def to_json(self) -> Json:
        """The object that ``--json`` prints."""
        return asdict(self)


def compare(entrants: Sequence[Entrant], metrics: Sequence[str] = ()) -> Comparison:
    """Measure all Releases anew on the test fold that the first one was measured on, and as it was.

    Args:
        entrants: Two or more. Items are matched by key, so that models made from other versions of the data take part.
        metrics: What to show and test; by default what the first Release was chosen by, and `USUAL`.

    Raises:
        RecipeError: A metric is unknown.
        DataError: The first Release's Dataset or view is gone or damaged, or nobody can be ranked.
        ModelError: A model is damaged.
    """
    compared: Comparison = result(ray.remote(num_cpus=1)(compare_here).remote(entrants, metrics, by_ray))
    return compared


def compare_here(entrants: Sequence[Entrant], metrics: Sequence[str] = (), each: Each = here) -> Comparison:
    """`compare` in this process; ``each`` shares out users."""
    first = entrants[0].release
    settings, names, shown = _asked(first, metrics)
    pinned = first.content["dataset"]
    dataset = open_dataset(first.storage, pinned["name"], pinned["manifest"])
    sequences = load_view(dataset, pinned["view"])
    models, values = [], []
    for entrant in entrants:
        release, version = entrant.release, (dataset.name, dataset.number)
        fair, storage = fair_bundle(release, dataset, pinned["view"], sequences), release.storage
        measure = Measure(settings, names, version, pinned["view"], first.storage, fair.path, storage, ("test",))
        tested = evaluate_here(measure, each)["test"]
        if tested["users"] < 2:
            raise DataError(
                f"only one user of Dataset '{dataset.name}' can be ranked, from whom nothing follows for others. "
                "Compare on more data."
            )
        about = {"reference": entrant.reference, "release": release.digest, "bundle": fair.path, "test": tested}
        leaks = {"trained_on_test": fair.trained_on_test, "refit_on_test": fair.refit_on_test}
        models.append(about | leaks | {"kind": release.bundle().manifest["kind"]})
        values.append(accuracy(read_ranks(first.storage, tested["outcomes"]), shown))
    data = {
        **pinned,
        "split": open_view(dataset, pinned["view"])["split"]["kind"],
        "exclude_seen": settings.exclude_seen,
        "simulated": first.content["simulated"],
        "users": models[0]["test"]["users"],
    }
    references = [entrant.reference for entrant in entrants]
    return Comparison(data, shown, models, _tests(references, values), _warnings(models, settings))


def _asked(first: Release, metrics: Sequence[str]) -> tuple[Evaluation, tuple[str, ...], tuple[str, ...]]:
    """The first Release's settings; the metrics to measure; those of them to show."""
    if "evaluation" not in first.content:
        raise ModelError(
            f"the Release {first.digest} of '{first.name}' does not say how it was evaluated: an earlier rayrec made "
            "it. Run its recipe again, or name a newer Release first."
        )
    settings, metric = Evaluation(**first.content["evaluation"]), first.content["metric"]
    try:
        ks = {parse_metric(name)[1] for name in metrics}
    except ValueError as error:
        raise RecipeError(f"--metric: {error}") from error
    settings = settings.model_copy(update={"ks": tuple(sorted(ks.union(settings.ks)))})
    measured = settings.metric_names(metric)
    shown = metrics or [metric, *(name for name in USUAL if name in measured)]
    return settings, tuple(dict.fromkeys([*measured, *shown])), tuple(dict.fromkeys(shown))


def _tests(references: Sequence[str], values: Sequence[dict[str, np.ndarray]]) -> list[Json]:
    """Every Release against the first by every metric, corrected as one family."""
    tests = []
    for reference, mine in zip(references[1:], values[1:], strict=True):
        for metric, first in values[0].items():
            test = paired_test(mine[metric], first)
            better, worse = (int(found.sum()) for found in (mine[metric] > first, mine[metric] < first))
            tests.append(
                {
                    "model": reference,
                    "metric": metric,
                    **{key: getattr(test, key) for key in ("difference", "low", "high", "p_value")},
                    **{"better": better, "equal": test.ties, "worse": worse},
                }
            )
    corrected = holm([test["p_value"] for test in tests])
    return [test | {"p_holm": float(p)} for test, p in zip(tests, corrected, strict=True)]


# ---- leakage


def _warnings(models: Sequence[Json], settings: Evaluation) -> list[str]:
    found = []
    for model in models:
        trained, name = model["trained_on_test"], model["reference"]
        if isinstance(trained, str):
            found.append(f"{name}: whether it was trained on test events is not known: {trained}")
        elif trained:
            found.append(f"{name} was trained on {trained:,} of the test events: it knows what it is asked for.")
        if refit := model["refit_on_test"]:
            found.append(f"{name}: {refit_note(refit)}.")
    return [*found, *leakage_warnings(models[0]["test"], settings.exclude_seen)]


@dataclass(frozen=True)
class FairBundle:
    """Which bundle of a Release is to be measured on some test events.

    Attributes:
        path: The one that is served; where that was trained again on some of the test events, the one before, of which
            the Release's own metrics are.
        trained_on_test: How many of the test events it was trained on itself, or why that is not known.
        refit_on_test: How many what is served was trained on, where that is therefore not measured; else 0.
    """

    path: str
    trained_on_test: int | str
    refit_on_test: int = 0


def fair_bundle(release: Release, dataset: Dataset, view: str, tested: Sequences) -> FairBundle:
    """The bundle of a Release's model to measure on the test events of a view.

    Raises:
        ModelError: A bundle is damaged or gone.
    """
    served, before = release.content["models"]["main"], release.evaluated["main"]

    def known(path: str) -> int | str:
        return trained_on_test(open_bundle(release.storage, path).manifest, release.storage, dataset, view, tested)

    refit = known(served)
    if served == before or not refit or isinstance(refit, str):
        return FairBundle(served, refit)
    return FairBundle(before, known(before), refit)


def refit_note(events: int) -> str:
    """What is to be said where a `FairBundle` is not what is served."""
    return f"what it serves was trained again on {events:,} of the test events, so the model before that was measured"


def trained_on_test(manifest: Json, storage: Storage, dataset: Dataset, view: str, tested: Sequences) -> int | str:
    """How many of the test events a model was trained on, or why that is not known.

    Users and items are matched by key, as they are when the model is asked.
    """
    made_from, folds = manifest["dataset"], [FOLDS[name] for name in manifest["training"].get("folds", ["train"])]
    if (made_from["digest"], manifest["view"]) == (dataset.digest, view):
        return trained_on(tested, tested, folds)
    try:
        trained = open_dataset(storage, made_from["name"], made_from["manifest"])
        return trained_on(tested, _translated(load_view(trained, manifest["view"]), trained, dataset), folds)
    except DataError as error:
        return str(error)


def _translated(sequences: Sequences, of: Dataset, to: Dataset) -> Sequences:
    """A view of a Dataset with the indexes of another's vocabularies; -1 for what that does not have."""

    def indexes(table: str, mine: np.ndarray) -> np.ndarray:
        keys = of.vocabulary(table)["key"].take(pa.array(mine - 1))
        # What was erased has no key, and is nobody.
        found = pc.index_in(keys, to.vocabulary(table)["key"].combine_chunks(), skip_nulls=True)
        return np.asarray(pc.add(pc.fill_null(found.combine_chunks(), -2), 1).to_numpy(), np.int64)

    users, items = indexes("user", sequences.users), indexes("item", sequences.item_indexes)
    return Sequences(users, sequences.histories, sequences.folds, items, sequences.item_keys)
