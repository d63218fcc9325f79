"""What people see of a sweep: a table of trials that lives while they run, and the closing one."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from rayrec.artifacts import Json
from rayrec.recipe import Recipe
from rayrec.stages import Metrics, StageOutcome
from rayrec.sweep import SweepResult
from rayrec.terminal import errors, stdout_console
from rayrec.tuning.options import Search
from rayrec.tuning.records import TrialRecord, best_of, state_of

ROWS = 20
"""Trials of the live table: those that run, and the best."""
STYLES = {"running": "cyan", "done": "green", "stopped": "yellow", "failed": "red"}


class SweepDisplay:
    """A live table of trials; on no terminal, a line for each that ends."""

    def __init__(self, recipe: Recipe, chosen: Search) -> None:
        self._recipe, self._search = recipe, chosen
        self._records: dict[int, TrialRecord] = {}
        self._kind = "trial"
        self._lock = threading.Lock()
        self._live = Live(console=errors, refresh_per_second=4, transient=True, get_renderable=self._table)

    def __enter__(self) -> SweepDisplay:
        simulated = " [bold yellow](simulated data)[/]" if self._recipe.simulated else ""
        options = self._search.options
        how = f"{options.trials} trials, {options.algorithm}, scheduler {options.scheduler}"
        errors.print(f"[bold]{self._recipe.name}[/]{simulated}: {', '.join(self._search.space.keys)}; {how}")
        if errors.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if errors.is_terminal:
            self._live.stop()
        ended = sum(record.state != "running" for record in self._records.values())
        if isinstance(error, KeyboardInterrupt):
            errors.print(f"{ended} of {self._search.options.trials} trials have ended, and are kept")

    def known(self, records: list[TrialRecord]) -> None:
        """What trials there are from an earlier session."""
        with self._lock:
            self._records = {record.number: record for record in records}
        if records:
            ended = sum(record.state != "running" for record in records)
            begun = len(records) - ended
            what = "a sweep of which" if self._kind == "trial" else "these, of which"
            errors.print(f"  goes on with {what} {ended} have ended and {begun} have begun")

    def confirming(self, chosen: Search) -> None:
        """The trials that follow are of the best ones' settings, with other seeds."""
        with self._lock:
            self._search, self._records, self._kind = chosen, {}, "confirmation"
        errors.print(f"  confirms  {len(chosen.points)} trainings with other seeds")

    def trial(self, record: TrialRecord) -> None:
        """A trial has begun, gone on by an epoch, or ended."""
        with self._lock:
            self._records[record.number] = record
        if record.state == "running":
            return
        if not errors.is_terminal or record.state == "failed":
            values = "  ".join(f"{name} {value:.4f}" for name, value in record.values.items()) or record.reason
            about = f"{len(record.curve)} epochs, {record.seconds:.1f} s"
            line = f"  {self._kind} {record.number:>3}  {record.state:<8} {values}  {about}  {_changes(record)}"
            errors.print(line, markup=False, soft_wrap=True)

    def stage(self, name: str) -> None:
        """A stage begins."""

    def prepared(self, counts: Json, view: Json) -> None:
        """There is a Dataset."""

    def epoch(self, entry: Metrics, epochs: int) -> None:
        """An epoch of the best trial's training has ended."""

    def done(self, name: str, outcome: StageOutcome) -> None:
        """A stage has ended or was skipped."""
        text = "unchanged, skipped" if outcome.skipped else f"{outcome.seconds:.1f} s"
        errors.print(f"  {name:<9} {text}")

    def _table(self) -> RenderableType:
        with self._lock:
            records = list(self._records.values())
        running = [record for record in records if record.state == "running"]
        ended = sorted((r for r in records if r.state != "running"), key=lambda r: -r.best)
        rows = [*running, *ended][:ROWS]
        best = best_of(records, self._search.objectives)
        head = f"{len(ended)} of {self._search.options.trials} trials ended, {len(running)} running"
        return Group(trials_table(rows, best, self._search), head)


def trials_table(rows: list[TrialRecord], best: TrialRecord | None, chosen: Search) -> Table:
    """A row a trial; the best is bold."""
    objectives = chosen.objectives
    table = Table(title="trials", title_justify="left")
    for column in ("trial", "state", *objectives.wanted, "epochs", "seconds"):
        table.add_column(column, justify="left" if column == "state" else "right")
    for key in chosen.space.keys:
        table.add_column(key.removeprefix("training."), justify="right", overflow="fold")
    for record in rows:
        values = {objectives.metric: record.best} | record.values if record.curve else record.values
        cells = [f"{values[name]:.4f}" if name in values else "" for name in objectives.wanted]
        changes = [_value(record.changes.get(key, "")) for key in chosen.space.keys]
        state = f"[{STYLES[record.state]}]{state_of(record, objectives)}[/]"
        table.add_row(
            *(str(record.number), state, *cells, str(len(record.curve)), f"{record.seconds:.1f}", *changes),
            style="bold" if record is best else "",
        )
    return table


def show_sweep(result: SweepResult, out: Path, report: Path | None) -> None:
    """The closing table, and where to look."""
    console: Console = stdout_console()
    console.print(trials_table(sorted(result.trials, key=lambda r: (-r.best, r.number)), result.best, result.search))
    if result.confirmed:
        console.print(_confirmed_table(result))
    if result.front:
        limited = " (of those that meet the constraints)" if result.search.objectives.constraints else ""
        console.print(f"Pareto front{limited}: {', '.join(f'trial {record.number}' for record in result.front)}")
    failed = [record for record in result.trials if record.state == "failed"]
    for record in failed:
        console.print(f"trial {record.number} failed: {record.reason}", markup=False)
    metric, default = result.search.objectives.metric, result.trials[0]
    epochs = sum(len(record.curve) for record in result.trials)
    console.print(
        f"Best      trial {result.best.number}: validation {metric} {result.best.best:.4f}, the recipe as it is "
        f"{f'{default.best:.4f}' if default.curve else 'none'}; test {result.metrics['test'][metric]:.4f}"
    )
    means = {found.trial: f"{found.mean:.4f}" for found in result.confirmed}
    if means:
        both = f"{means[result.best.number]}, the recipe as it is {means.get(0, 'none')}"
        console.print(f"Confirmed mean of {len(result.confirmed[0].seeds)} other seeds: {both}")
    console.print(f"Epochs    {epochs} of at most {result.at_most} ({epochs / max(1, result.at_most):.0%})")
    console.print(f"Release   {result.release.name}/{result.release.version}  the candidate")
    console.print(f"Report    {report or f'{result.folder}/sweep.html'}", soft_wrap=True)
    console.print(f"Train it  rayrec run {out}")


def _confirmed_table(result: SweepResult) -> Table:
    """What new seeds say of the best trials and of the recipe as it is."""
    table = Table(title=f"{result.search.objectives.metric} with other seeds", title_justify="left")
    for column in ("trial", *(f"seed {seed}" for seed in result.confirmed[0].seeds), "mean", "deviation"):
        table.add_column(column, justify="right")
    for found in result.confirmed:
        cells = [f"{value:.4f}" for value in (*found.values, found.mean, found.spread)]
        name = f"{found.trial}{' (as it is)' if found.trial == 0 else ''}"
        table.add_row(name, *cells, style="bold" if found.trial == result.best.number else "")
    return table


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _changes(record: TrialRecord) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in record.changes.items()) or "(the recipe as it is)"
