"""The plots that go to MLflow."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from rayrec.artifacts import Json


def plot_curve(entries: Sequence[dict[str, float]], metric: str) -> Figure:
    """Training loss and validation metric by epoch."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    loss = figure.add_subplot()
    epochs = [entry["epoch"] for entry in entries]
    loss.plot(epochs, [entry["loss"] for entry in entries], color="tab:gray", label="training loss")
    loss.set(xlabel="epoch", ylabel="training loss (nats a target)")
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
