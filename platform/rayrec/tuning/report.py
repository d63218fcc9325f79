"""The report of a sweep: one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from rayrec.artifacts import Json
from rayrec.data.page import document, percent, section, table
from rayrec.recipe import Recipe
from rayrec.tuning.charts import Axis, Line, Point, parallel, scatter
from rayrec.tuning.confirmation import Confirmed
from rayrec.tuning.options import Search
from rayrec.tuning.records import TrialRecord, front_of, most_epochs, state_of
from rayrec.tuning.sampling import importances
from rayrec.tuning.space import Parameter

SHOWN = 200
"""Trials of the table."""


def sweep_page(
    recipe: Recipe,
    chosen: Search,
    trials: Sequence[TrialRecord],
    best: TrialRecord,
    confirmed: Sequence[Confirmed],
    metrics: Json,
) -> str:
    """The page.

    Args:
        recipe: What was tuned.
        chosen: What was searched.
        trials: All of them.
        best: The best of them.
        confirmed: What the best ones reached with new seeds.
        metrics: Of the best one's model, by fold.
    """
    measured = [trial for trial in trials if trial.curve]
    sections = [
        _against_default(trials, best, chosen, metrics),
        _confirmed(confirmed, best, chosen),
        _history(measured, chosen),
        *_importance(measured, chosen),
        *_front(trials, chosen),
        *_parallel(measured, chosen),
        *(_slice(parameter, measured, chosen) for parameter in _varied(chosen) if len(measured) > 1),
        _searched(chosen),
        _failures(trials),
        _table(measured, best, chosen),
    ]
    note = (
        "Metrics are of validation events, of each trial's best epoch; of trials that were stopped early (faint), what "
        "they had reached. Choosing the best of many flatters it: the test metrics of the best are the ones to believe."
    )
    title = f"{recipe.name}: {len(trials)} trials"
    return document(
        title, _header(recipe, chosen, title), _tiles(recipe, trials, best, confirmed), [s for s in sections if s], note
    )


def _header(recipe: Recipe, chosen: Search, title: str) -> str:
    mark = ' <span class="mark">simulated data</span>' if recipe.simulated else ""
    options = chosen.options
    limits = "".join(f" · {escape(str(constraint))}" for constraint in chosen.objectives.constraints)
    how = f"{escape(', '.join(chosen.objectives.names))}{limits} · {options.algorithm}, scheduler {options.scheduler}"
    return f'<header><h1>{escape(title)}{mark}</h1><p class="muted">{how} · seed {options.seed}</p></header>'


def _tiles(recipe: Recipe, trials: Sequence[TrialRecord], best: TrialRecord, confirmed: Sequence[Confirmed]) -> str:
    epochs, most = sum(len(trial.curve) for trial in trials), most_epochs(recipe, trials)
    states = [(state, sum(trial.state == state for trial in trials)) for state in ("done", "stopped", "failed")]
    tiles = [
        ("Best", f"{best.best:.4f}", f"trial {best.number}"),
        *(
            (f"Mean of {len(found.seeds)} other seeds", f"{found.mean:.4f}", _trial_name(found.trial))
            for found in confirmed
            if found.trial in {0, best.number}
        ),
        ("The recipe as it is", f"{trials[0].best:.4f}" if trials and trials[0].curve else "none", "trial 0"),
        ("Trials", f"{len(trials):,}", ", ".join(f"{count} {state}" for state, count in states if count)),
        ("Budget saved", f"{1 - epochs / max(1, most):.0%}", f"{epochs:,} of at most {most:,} epochs"),
        ("Training", f"{sum(trial.seconds for trial in trials) / 60:.1f} min", "of all trials together"),
    ]
    cells = (f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in tiles)
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def _against_default(trials: Sequence[TrialRecord], best: TrialRecord, chosen: Search, metrics: Json) -> str:
    default = trials[0]
    names = [*chosen.space.keys, *chosen.objectives.wanted, "epochs", "seconds"]

    def cell(record: TrialRecord, name: str) -> str:
        own: dict[str, Any] = {**record.changes, **record.values, "epochs": len(record.curve)}
        own["seconds"] = round(record.seconds, 1)
        return _value(own[name]) if name in own else ""

    rows = [_row(name, [cell(default, name), cell(best, name)]) for name in names]
    metric = chosen.objectives.metric
    tested = "; ".join(
        f"{fold} {metric} {metrics[fold][metric]:.4f}" for fold in ("test", "test_refit") if fold in metrics
    )
    note = f'<p class="note">The best, measured once more when the sweep was over: {tested}.</p>' if tested else ""
    head = ["", "The recipe as it is", f"Best: trial {best.number}"]
    return section("Best against the recipe as it is", table(head, rows) + note)


def _confirmed(confirmed: Sequence[Confirmed], best: TrialRecord, chosen: Search) -> str:
    """What new seeds say."""
    if not confirmed:
        return ""
    head = ["Trial", *(f"Seed {seed}" for seed in confirmed[0].seeds), "Mean", "Standard deviation"]
    rows = [
        _row(
            f"{_trial_name(found.trial)}{' (best)' if found.trial == best.number else ''}",
            [f"{value:.4f}" for value in (*found.values, found.mean, found.spread)],
        )
        for found in confirmed
    ]
    note = (
        f'<p class="note">{escape(chosen.objectives.metric)} of validation events. A trial that was chosen for being '
        "high is lucky, too: with other seeds it is not, and the best mean wins.</p>"
    )
    return section("With other seeds", table(head, rows) + note)


def _history(measured: Sequence[TrialRecord], chosen: Search) -> str:
    if not measured:
        return ""
    metric = chosen.objectives.metric
    points = [_point(trial.number, trial, metric) for trial in measured]
    axes = (
        Axis.of_numbers("trial", [0, max(1, *(trial.number for trial in measured), 1)]),
        Axis.of_numbers(metric, [trial.best for trial in measured]),
    )
    described = f"{len(measured)} trials; the highest {max(trial.best for trial in measured):.4f}"
    return section("History", scatter("History", described, points, axes, steps=True))


def _importance(measured: Sequence[TrialRecord], chosen: Search) -> list[str]:
    varied = {parameter.key for parameter in _varied(chosen)}
    shares = importances(chosen.space, [(trial.changes, trial.best) for trial in measured])
    found = {key: share for key, share in shares.items() if key in varied}
    if not found:
        return []
    rows = []
    for key, share in found.items():
        bar = f'<td class="share"><span style="width:{100 * share:.2f}%"></span></td>'
        rows.append(f'<tr><th scope="row">{escape(key)}</th><td>{percent(share)}</td>{bar}</tr>')
    note = '<p class="note">The share of the differences between trials that each explains (fANOVA).</p>'
    return [section("Importance", table(["", "Share", ""], rows) + note)]


def _front(trials: Sequence[TrialRecord], chosen: Search) -> list[str]:
    objectives = chosen.objectives
    if len(objectives.names) < 2:
        return []
    done, front = [trial for trial in trials if trial.state == "done"], front_of(list(trials), objectives)
    if not done:
        return []
    charts = []
    for other in objectives.names[1:]:
        on = {trial.number for trial in front}
        points = [
            Point(t.values[other], t.values[objectives.metric], _tip(t, objectives.metric), t.number in on)
            for t in done
        ]
        axes = (
            Axis.of_numbers(other, [trial.values[other] for trial in done]),
            Axis.of_numbers(objectives.metric, [trial.values[objectives.metric] for trial in done]),
        )
        title = f"{objectives.metric} against {other}"
        limited = " that meets the constraints" if objectives.constraints else ""
        note = f'<p class="note">Strong: the Pareto front, which no trial{limited} beats in everything.</p>'
        charts.append(section(title, scatter(title, f"{len(front)} trials on the front", points, axes) + note))
    return charts


def _parallel(measured: Sequence[TrialRecord], chosen: Search) -> list[str]:
    if len(measured) < 2:
        return []
    metric, parameters = chosen.objectives.metric, _varied(chosen)
    axes = [*(_axis(parameter, measured) for parameter in parameters)]
    axes.append(Axis.of_numbers(metric, [trial.best for trial in measured]))
    ranked = sorted(trial.best for trial in measured)
    lines = [
        Line(
            (*(trial.changes.get(parameter.key) for parameter in parameters), trial.best),
            _tip(trial, metric),
            ranked.index(trial.best) / (len(ranked) - 1),
        )
        for trial in measured
        if trial.changes
    ]
    title = "Parallel coordinates"
    chart = parallel(title, f"{len(lines)} trials across {len(axes)} axes", lines, axes)
    return [
        section(title, f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">{chart}</div>', wide=True)
    ]


def _slice(parameter: Parameter, measured: Sequence[TrialRecord], chosen: Search) -> str:
    metric = chosen.objectives.metric
    having = [trial for trial in measured if parameter.key in trial.changes]
    if not having:
        return ""
    points = [_point(trial.changes[parameter.key], trial, metric) for trial in having]
    axes = (_axis(parameter, having), Axis.of_numbers(metric, [trial.best for trial in having]))
    return section(parameter.key, scatter(parameter.key, f"{metric} by {parameter.key}", points, axes))


def _varied(chosen: Search) -> list[Parameter]:
    """The parameters that have more than one value."""
    return [parameter for parameter in chosen.space.parameters if parameter.levels is None or len(parameter.levels) > 1]


def _axis(parameter: Parameter, trials: Sequence[TrialRecord]) -> Axis:
    """The axis of a parameter."""
    title = _short(parameter.key)
    if parameter.kind == "choice":
        return Axis.of_levels(title, parameter.values)
    values = [trial.changes[parameter.key] for trial in trials if parameter.key in trial.changes]
    return Axis.of_numbers(title, [*parameter.values[:2], *values], log=parameter.kind.startswith("log"))


def _searched(chosen: Search) -> str:
    """The space."""
    rows = []
    for parameter in chosen.space.parameters:
        when = ", ".join(f"{key} = {' or '.join(map(str, values))}" for key, values in parameter.when.items())
        values = ", ".join(_value(value) for value in parameter.values)
        rows.append(_row(parameter.key, [parameter.kind, values, escape(when)]))
    return section("What was searched", table(["", "Kind", "Values", "When"], rows))


def _failures(trials: Sequence[TrialRecord]) -> str:
    rows = [_row(f"{trial.number}", [escape(trial.reason)]) for trial in trials if trial.state == "failed"]
    return section("Failed", table(["Trial", "Why"], rows), wide=True) if rows else ""


def _table(measured: Sequence[TrialRecord], best: TrialRecord, chosen: Search) -> str:
    wanted, keys = chosen.objectives.wanted, chosen.space.keys
    ordered = sorted(measured, key=lambda trial: (-trial.best, trial.number))
    rows = []
    for trial in ordered[:SHOWN]:
        values = {chosen.objectives.metric: trial.best} | trial.values
        cells = [escape(state_of(trial, chosen.objectives))]
        cells += [_value(values[name]) if name in values else "" for name in wanted]
        cells += [str(len(trial.curve)), f"{trial.seconds:.1f}"]
        cells += [_value(trial.changes.get(key, "")) for key in keys]
        rows.append(_row(f"{trial.number}{' (best)' if trial is best else ''}", cells))
    head = ["Trial", "State", *wanted, "Epochs", "Seconds", *map(_short, keys)]
    body = f'<div class="scroll" tabindex="0" role="region" aria-label="Trials">{table(head, rows)}</div>'
    return section("Trials" if len(ordered) <= SHOWN else f"The best {SHOWN} trials", body, wide=True)


def _point(x: Any, trial: TrialRecord, metric: str) -> Point:
    return Point(x, trial.best, _tip(trial, metric), trial.state == "done")


def _tip(trial: TrialRecord, metric: str) -> str:
    changes = ", ".join(f"{_short(key)} {_value(value)}" for key, value in trial.changes.items())
    return f"trial {trial.number} ({trial.state}): {metric} {trial.best:.4f}; {changes or 'the recipe as it is'}"


def _trial_name(number: int) -> str:
    return f"trial {number}" if number else "trial 0, the recipe as it is"


def _short(key: str) -> str:
    return key.partition(".")[2]


def _value(value: Any) -> str:
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _row(name: str, cells: Sequence[str]) -> str:
    return f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
