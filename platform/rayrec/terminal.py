"""What people see while a command works and when it is done. Everything goes to stderr but the closing table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from rayrec.artifacts import Json
from rayrec.pipeline import Metrics, RunResult, StageOutcome
from rayrec.recipe import Recipe

SHOWN = ("hr@10", "ndcg@10", "mrr@10", "coverage@10", "popularity_bias@10")

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
        note = f"loss {entry['loss']:.3f}  {metric} {entry[metric]:.4f}"
        if self._task is not None:
            self._bars.update(self._task, total=epochs, completed=int(entry["epoch"]), note=note)
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
    out = _stdout()
    label = " (SIMULATED DATA)" if result.recipe.simulated else ""
    quality = Table(title=f"{result.recipe.name}{label}: test fold, full ranking", title_justify="left")
    quality.add_column("")
    roles = {"main": result.recipe.model.name, "popular": "popularity"}
    if result.recipe.model.name == "popularity":
        roles.pop("main")
    for title in roles.values():
        quality.add_column(title, justify="right")
    tested = {role: result.metrics[role]["test"] for role in roles}
    for name in [name for name in SHOWN if name in tested["popular"]]:
        quality.add_row(name, *(f"{tested[role][name]:.4f}" for role in roles))
    out.print(quality)
    cost = Table(title="stages", title_justify="left")
    for column in ("stage", "seconds", "rows", "rows/s"):
        cost.add_column(column, justify="left" if column == "stage" else "right")
    for name, outcome in result.stages.items():
        rate = outcome.summary()["rows_per_second"]
        seconds = "skipped" if outcome.skipped else f"{outcome.seconds:.1f}"
        cost.add_row(name, seconds, f"{outcome.rows:,}", f"{rate:,.0f}" if rate else "")
    out.print(cost)
    metric = result.recipe.training.metric
    if result.metrics["main"]["test"][metric] < result.metrics["popular"]["test"][metric]:
        out.print(
            f"[bold yellow]Note[/]      the model is below popularity by {metric}: train longer, or check the data"
        )
    release, tracking = result.release, result.to_json()["tracking"]
    decision = "unchanged" if result.stages["register"].skipped else result.decision
    out.print(f"Release   {release.name}/{release.version}  {decision}")
    out.print(f"Dataset   {result.dataset.uri}")
    out.print(f"MLflow    mlflow ui --backend-store-uri {tracking['uri']}", soft_wrap=True)
    out.print(f"Serve it  rayrec serve {release.name}")


def show_inventory(found: Json) -> None:
    """Tables of Datasets, models and Releases."""
    out = _stdout()
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


def _stdout() -> Console:
    """Standard output; where it is no terminal, tables get room."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {number:.4f}" for key, number in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
