"""The plots that go to MLflow."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rayrec.artifacts import Json
from rayrec.evaluation.compare import Comparison


def plot_curve(entries: Sequence[dict[str, float]], metric: str) -> Figure:
    """Training loss and validation metric by epoch."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    loss = figure.add_subplot()
    epochs = [entry["epoch"] for entry in entries]
    loss.plot(epochs, [entry["loss"] for entry in entries], color="tab:gray", label="training loss")
    loss.set(xlabel="epoch", ylabel="training loss (nats a target)")
    # Where nothing is held out for validation, there is only the loss.
    if all(metric in entry for entry in entries):
        quality = loss.twinx()
        quality.plot(epochs, [entry[metric] for entry in entries], color="tab:blue", label=f"validation {metric}")
        quality.set_ylabel(f"validation {metric}")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def plot_by_cutoff(results: Json, ks: Sequence[int]) -> Figure:
    """Hit rate and NDCG on the test fold by cut-off, of the model and of the baseline."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    for place, metric in enumerate(("hr", "ndcg"), start=1):
        axes = figure.add_subplot(1, 2, place)
        for role, folds in results.items():
            shown = [k for k in sorted(ks) if f"{metric}@{k}" in folds["test"]]
            axes.plot(shown, [folds["test"][f"{metric}@{k}"] for k in shown], marker="o", label=role)
        axes.set(xlabel="k", ylabel=f"test {metric}@k", ylim=(0, None))
        axes.legend()
    return figure


def plot_comparison(comparison: Comparison) -> Figure:
    """Accuracy of every model, and differences to the first one, with 95 % intervals."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    values, differences = figure.subplots(1, 2)
    names, first = comparison.metrics, comparison.models[0]["reference"]
    for place, model in enumerate(comparison.models):
        tested = model["test"]
        intervals = [(tested["intervals"][name][0], tested[name], tested["intervals"][name][1]) for name in names]
        _whiskers(values, place, len(comparison.models), intervals, model["reference"])
        tests = [test for test in comparison.tests if test["model"] == model["reference"]]
        if tests:
            intervals = [(test["low"], test["difference"], test["high"]) for test in tests]
            _whiskers(differences, place, len(comparison.models), intervals, model["reference"])
    values.set(ylabel="mean over users, 95 % interval", ylim=(0, None))
    differences.axhline(0, color="tab:gray", linewidth=1)
    differences.set(ylabel=f"difference to {first}, 95 % interval")
    for axes in (values, differences):
        axes.set_xticks(range(len(names)), names)
        axes.legend()
    return figure


def _whiskers(axes: Axes, place: int, places: int, intervals: Sequence[tuple[float, float, float]], label: str) -> None:
    """A model's values (low, value, high) beside those of the others, in the colour of its place."""
    at = [n + 0.6 * ((place + 0.5) / places - 0.5) for n in range(len(intervals))]
    errors = [[value - low for low, value, _ in intervals], [high - value for _, value, high in intervals]]
    axes.errorbar(at, [value for _, value, _ in intervals], errors, fmt="o", capsize=3, color=f"C{place}", label=label)
