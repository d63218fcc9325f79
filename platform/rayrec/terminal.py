"""What people see while a command works and when it is done. Everything goes to stderr but the closing table."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from rayrec.artifacts import Json
from rayrec.cross_validation import CrossValidation
from rayrec.evaluation.compare import Comparison
from rayrec.evaluation.comparison_page import p_value, with_interval
from rayrec.metrics.ranking import parse_metric
from rayrec.pipeline import RunResult
from rayrec.recipe import Recipe
from rayrec.stages import Metrics, StageOutcome

if TYPE_CHECKING:
    from rayrec.serving.queries import Answer
    from rayrec.tracking import RegisteredRelease

SHOWN = ("hr", "recall", "ndcg", "mrr", "coverage", "popularity_bias")

PLAIN_WIDTH = 120

errors = Console(stderr=True, highlight=False)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner while something starts."""
    with errors.status(what):
        yield


class RunDisplay:
    """A line a stage, a bar for the epochs of training. On no terminal, plain lines."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=errors,
            transient=True,
            disable=not errors.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> RunDisplay:
        simulated = " [bold yellow](simulated data)[/]" if self._recipe.simulated else ""
        errors.print(f"[bold]{self._recipe.name}[/]{simulated}: {self._recipe.model.name}")
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def stage(self, name: str) -> None:
        """A stage begins."""
        self._task = self._bars.add_task(name, total=None, note="")

    def prepared(self, counts: Json, view: Json) -> None:
        """There is a Dataset."""
        left = [f"{counts[key]:,} {key}" for key in ("quarantined", "deduplicated", "erased") if counts[key]]
        kept = f"{counts['events']:,} events of {counts['read']:,} rows"
        errors.print(f"            log   {', '.join([kept, *left])}")
        held = ", ".join(f"{view[fold]:,} {fold}" for fold in ("validation", "test"))
        sizes = f"{view['events']:,} events, {view['users']:,} users, {view['items']:,} items"
        errors.print(f"            view  {sizes}; {held}")

    def epoch(self, entry: Metrics, epochs: int) -> None:
        """An epoch has ended."""
        metric = self._recipe.training.metric
        measured = f"  {metric} {entry[metric]:.4f}" if metric in entry else ""
        skipped = f"  {entry['skipped']:.0f} steps skipped" if entry.get("skipped") else ""
        note = f"loss {entry['loss']:.3f}{measured}{skipped}"
        if self._task is not None:
            rate = f"{note}  {entry['tokens_per_second']:,.0f} tokens/s"
            self._bars.update(self._task, total=epochs, completed=int(entry["epoch"]), note=rate)
        if not errors.is_terminal:
            errors.print(f"  epoch {int(entry['epoch']):>3}  {note}  {entry['seconds']:.1f} s")

    def done(self, name: str, outcome: StageOutcome) -> None:
        """A stage has ended or was skipped."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        text = "unchanged, skipped" if outcome.skipped else f"{outcome.seconds:.1f} s"
        errors.print(f"  {name:<9} {text}")


def show_result(result: RunResult) -> None:
    """The closing tables: quality beside the baseline, cost by stage, where to look."""
    out = stdout_console()
    show_quality(result.recipe, result.metrics)
    cost = Table(title="stages", title_justify="left")
    for column in ("stage", "seconds", "rows", "rows/s"):
        cost.add_column(column, justify="left" if column == "stage" else "right")
    for name, outcome in result.stages.items():
        rate = outcome.summary()["rows_per_second"]
        seconds = "skipped" if outcome.skipped else f"{outcome.seconds:.1f}"
        cost.add_row(name, seconds, f"{outcome.rows:,}", f"{rate:,.0f}" if rate else "")
    out.print(cost)
    release, tracking = result.release, result.to_json()["tracking"]
    decision = "unchanged" if result.stages["register"].skipped else result.decision
    out.print(f"Release   {release.name}/{release.version}  {decision}")
    out.print(f"Dataset   {result.dataset.uri}")
    out.print(f"MLflow    mlflow ui --backend-store-uri {tracking['uri']}", soft_wrap=True)
    served = release.name if "champion" in release.aliases else f"{release.name}/{release.version}"
    out.print(f"Serve it  rayrec serve {served}")


def show_quality(recipe: Recipe, metrics: Json) -> None:
    """The metrics of the test fold with their intervals, beside the baseline."""
    label = " (SIMULATED DATA)" if recipe.simulated else ""
    roles = {"main": recipe.model.name, "popular": "baseline" if recipe.model.name == "popularity" else "popularity"}
    if metrics["main"]["test"] == metrics["popular"]["test"]:
        roles = {"main": recipe.model.name}
    columns = {name: metrics[role]["test"] for role, name in roles.items()}
    if "test_refit" in metrics["main"]:
        columns[f"{recipe.model.name}, refit"] = metrics["main"]["test_refit"]
    table = _table(f"{recipe.name}{label}: test fold, full ranking, 95 % intervals", ["", *columns])
    tested = list(columns.values())
    for name in [name for name in _at_cutoff_of(recipe.training.metric) if name in tested[0]]:
        # With one held-out event a user, recall is the hit rate.
        if not name.startswith("recall") or tested[0][name] != tested[0].get(name.replace("recall", "hr")):
            table.add_row(name, *(with_interval(test, name) for test in tested))
    out = stdout_console()
    out.print(table)
    metric, refit = recipe.training.metric, recipe.training.refit
    if refit != "none":
        measured = "nothing is left to measure it on" if refit == "all" else "column refit"
        folds = ", ".join(recipe.training.served_folds)
        out.print(f"[bold]Served[/]    the model trained again on {folds} ({measured})")
    if metrics["main"]["test"][metric] < metrics["popular"]["test"][metric]:
        out.print(f"[bold yellow]Note[/]      the model is below popularity by {metric}")


def show_comparison(comparison: Comparison) -> None:
    """Metrics side by side, tests against the first, slices."""
    out, names = stdout_console(), [str(model["reference"]) for model in comparison.models]
    tested = [model["test"] for model in comparison.models]
    data = comparison.data
    label = " (SIMULATED DATA)" if data["simulated"] else ""
    title = f"{data['name']}{label}: test fold, full ranking, {data['users']:,} users, 95 % intervals"
    metrics = _table(title, ["", *(f"{m['reference']} ({m['kind']})" for m in comparison.models)])
    for name in (*comparison.metrics, *comparison.beyond_accuracy):
        metrics.add_row(name, *(with_interval(test, name) if name in test else "" for test in tested))
    out.print(metrics)
    head = ["", "metric", "difference", "95 % interval", "p (Holm)", "better", "equal", "worse"]
    tests = _table(f"against {names[0]}: users better, equal, worse", head)
    for test in comparison.tests:
        interval = f"{test['low']:+.4f} to {test['high']:+.4f}"
        users = (f"{test[key]:,}" for key in ("better", "equal", "worse"))
        difference = f"{test['difference']:+.4f}"
        tests.add_row(test["model"], test["metric"], difference, interval, p_value(test["p_holm"]), *users)
    out.print(tests)
    metric = comparison.metrics[0]
    slices = _table(f"{metric} by slice", ["slice", "users", *names])
    for kind, groups in tested[0]["slices"].items():
        for group, values in groups.items():
            figures = (f"{test['slices'][kind][group][metric]:.4f}" for test in tested)
            slices.add_row(f"{kind} {group}", f"{values['users']:,}", *figures)
    out.print(slices)


def show_cross_validation(found: CrossValidation) -> None:
    """Mean and standard deviation over folds, beside the baseline."""
    label = " (SIMULATED DATA)" if found.simulated else ""
    title = f"{found.recipe}{label}: mean ± standard deviation over {found.folds} test folds, full ranking"
    table = _table(title, ["", found.model, "popularity", "difference", "95 % interval"])
    for name in [name for name in dict.fromkeys([*_at_cutoff_of(found.metric), found.metric]) if name in found.metrics]:
        values = found.metrics[name]
        means = (f"{values[role]['mean']:.4f} ± {values[role]['sd']:.4f}" for role in ("main", "popular"))
        difference = values["difference"]
        interval = f"{difference['low']:+.4f} to {difference['high']:+.4f}"
        table.add_row(name, *means, f"{difference['mean']:+.4f}", interval)
    out = stdout_console()
    out.print(table)
    out.print("The intervals allow for folds that share training events (Nadeau and Bengio 2003).")


def _at_cutoff_of(metric: str) -> list[str]:
    """What is shown, at the cut-off of the metric that models are chosen by."""
    return [f"{name}@{parse_metric(metric)[1]}" for name in SHOWN]


def _table(title: str, columns: Sequence[str]) -> Table:
    """A table of figures: all columns but the first to the right."""
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table


def show_answer(release: RegisteredRelease, user: str, known: bool, answer: Answer) -> None:
    """What a user is recommended."""
    whom = user if known else f"{user}, of whom nothing is known"
    title = _plain(f"{release.name}/{release.version} for {whom} (source: {answer.source})")
    table = Table(title=title, title_justify="left")
    table.add_column("rank", justify="right")
    for column in ("item", "title", "categories"):
        table.add_column(column, overflow="fold")
    table.add_column("score", justify="right")
    for rank, scored in enumerate(answer.items, start=1):
        item = scored.item
        texts = map(_plain, (item.item, item.title or "", ", ".join(item.categories)))
        table.add_row(str(rank), *texts, f"{scored.score:.4g}")
    stdout_console().print(table)


def _plain(text: str) -> Text:
    """As it is, without markup and what terminals take for commands."""
    return Text("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text))


def show_inventory(found: Json) -> None:
    """Tables of Datasets, models and Releases."""
    out = stdout_console()
    out.print(f"storage {found['storage']}")
    for kind in ("datasets", "models", "releases"):
        rows = found[kind]
        if not rows:
            out.print(f"no {kind}")
            continue
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = Table(title=kind, title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(_shown(row.get(column, "")) for column in columns))
        out.print(table)


def stdout_console() -> Console:
    """Standard output; where it is no terminal, tables get room."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {number:.4f}" for key, number in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
