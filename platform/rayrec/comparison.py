"""Comparing registered Releases: found by reference, measured, and kept as a page, a plot and an MLflow run."""

from __future__ import annotations

from collections.abc import Sequence

from rayrec.artifacts import Storage
from rayrec.data.dataset import open_dataset
from rayrec.errors import RecipeError
from rayrec.evaluation.compare import Comparison, Entrant, compare
from rayrec.evaluation.comparison_page import comparison_page
from rayrec.inference.release import open_release
from rayrec.plots import plot_comparison
from rayrec.tracking import TrackedRun, Tracker, find_release


def entrants(references: Sequence[str]) -> list[Entrant]:
    """The Releases to compare.

    Raises:
        RecipeError: They are fewer than two, or one is named twice.
        ModelError: One is not registered, or is damaged.
    """
    registered = [find_release(reference) for reference in references]
    names = [f"{release.name}/{release.version}" for release in registered]
    if len(set(names)) < len(names):
        raise RecipeError(f"{', '.join(references)}: one of them is named twice ({', '.join(names)}).")
    if len(names) < 2:
        raise RecipeError(f"{names[0]} alone cannot be compared. Name two Releases or more; `rayrec list` shows them.")
    releases = (open_release(Storage.open(release.storage), release.digest) for release in registered)
    return [Entrant(name, release) for name, release in zip(names, releases, strict=True)]


def compare_releases(entrants: Sequence[Entrant], metrics: Sequence[str] = ()) -> tuple[Comparison, str]:
    """Compare Releases, and log it in the experiment of the first one. Returns what came out, and the page."""
    comparison = compare(entrants, metrics)
    page = comparison_page(comparison)
    with Tracker(entrants[0].release.name).run("compare") as run:
        _log(run, comparison, entrants)
        run.text(page, "comparison.html")
    return comparison, page


def _log(run: TrackedRun, comparison: Comparison, entrants: Sequence[Entrant]) -> None:
    data = comparison.data
    dataset = open_dataset(entrants[0].release.storage, data["name"], data["manifest"])
    run.dataset(dataset.name, dataset.digest, dataset.uri, "evaluation", {"users": data["users"]})
    run.tags(
        {
            "rayrec.compared": ", ".join(entrant.reference for entrant in entrants),
            "rayrec.releases": ", ".join(entrant.release.digest for entrant in entrants),
            "rayrec.simulated": data["simulated"],
            "rayrec.warnings": " ".join(comparison.warnings),
        }
    )
    for model in comparison.models:
        names = (*comparison.metrics, *comparison.beyond_accuracy)
        run.metrics({f"{model['reference']}/{name}": model["test"][name] for name in names if name in model["test"]})
    for test in comparison.tests:
        keys = ("difference", "p_holm")
        run.metrics({f"{test['model']}/{test['metric']}/{key}": test[key] for key in keys})
    run.json(comparison.to_json(), "comparison.json")
    run.figure(plot_comparison(comparison), "comparison.png")
