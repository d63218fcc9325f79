"""The page of a comparison: one HTML file that needs no network, and on which no user appears."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rayrec.artifacts import Json
from rayrec.data.charts import Estimate, whiskers
from rayrec.data.page import document, section, table, text
from rayrec.evaluation.compare import Comparison


def comparison_page(comparison: Comparison) -> str:
    """The page."""
    names = [str(model["reference"]) for model in comparison.models]
    sections = [
        _warnings(comparison.warnings),
        _metrics(comparison, names),
        *(_accuracy_chart(comparison, metric) for metric in comparison.metrics),
        _tests(comparison, names[0]),
        *(_difference_chart(comparison, metric, names[0]) for metric in comparison.metrics),
        *_slices(comparison, names),
    ]
    note = (
        "Intervals: 95 %, by bootstrap over users. p: paired randomisation test over users, corrected (Holm) for the "
        "number of tests. Both are about other users, not about training again with another seed."
    )
    return document(f"{' against '.join(names)}", _header(comparison, names), _tiles(comparison), sections, note)


def p_value(value: float) -> str:
    """As people read it."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def with_interval(test: Json, metric: str) -> str:
    """A metric of a test fold, with its interval where it has one."""
    interval = test["intervals"].get(metric)
    return f"{test[metric]:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def _header(comparison: Comparison, names: Sequence[str]) -> str:
    data = comparison.data
    mark = ' <span class="mark">simulated data</span>' if data["simulated"] else ""
    seen = "items already seen are left out" if data["exclude_seen"] else "items already seen may be recommended"
    facts = f"Dataset {escape(data['name'])}, manifest {data['manifest']} · split {escape(data['split'])} · {seen}"
    title = escape(" against ".join(names))
    return f'<header><h1>{title}{mark}</h1><p class="muted">{facts} · full ranking of the test fold</p></header>'


def _tiles(comparison: Comparison) -> str:
    tiles = [
        ("Models", f"{len(comparison.models)}", "on the same users"),
        ("Users", f"{comparison.data['users']:,}", ""),
    ]
    cells = (f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in tiles)
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return section("Leakage", '<p class="note good">✓ None was found.</p>', wide=True)
    lines = "".join(f'<p class="medium">{escape(warning)}</p>' for warning in warnings)
    return section("Leakage", lines, wide=True)


def _metrics(comparison: Comparison, names: Sequence[str]) -> str:
    tested = [model["test"] for model in comparison.models]
    rows = [
        _row(name, [with_interval(test, name) if name in test else "" for test in tested])
        for name in (*comparison.metrics, *comparison.beyond_accuracy)
    ]
    kinds = _row("model", [text(model["kind"]) for model in comparison.models])
    return section("Metrics", _scrolling("Metrics", table(["", *names], [kinds, *rows])), wide=True)


def _accuracy_chart(comparison: Comparison, metric: str) -> str:
    data = []
    for model in comparison.models:
        low, high = model["test"]["intervals"][metric]
        data.append(Estimate(model["reference"], low, model["test"][metric], high))
    best = max(data, key=lambda row: row.value)
    description = f"The highest is {best.label} with {best.value:.4f}."
    return section(metric, whiskers(metric, description, data, f"{metric}, with 95 % intervals"))


def _tests(comparison: Comparison, first: str) -> str:
    rows = []
    for test in comparison.tests:
        difference = f"{test['difference']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}]"
        users = [f"{test[key]:,}" for key in ("better", "equal", "worse")]
        rows.append(_row(test["model"], [test["metric"], difference, escape(p_value(test["p_holm"])), *users]))
    head = ["Model", "Metric", f"Difference to {first}", "p (Holm)", "Users better", "Equal", "Worse"]
    return section(f"Against {first}", _scrolling("Tests", table(head, rows)), wide=True)


def _difference_chart(comparison: Comparison, metric: str, first: str) -> str:
    tests = [test for test in comparison.tests if test["metric"] == metric]
    data = [Estimate(test["model"], test["low"], test["difference"], test["high"]) for test in tests]
    title = f"{metric}: difference to {first}"
    description = "; ".join(f"{row.label} {row.value:+.4f}" for row in data)
    return section(title, whiskers(title, description, data, "difference, with 95 % intervals"))


def _slices(comparison: Comparison, names: Sequence[str]) -> list[str]:
    metric = comparison.metrics[0]
    first = comparison.models[0]["test"]["slices"]
    sections = []
    for kind, groups in first.items():
        rows = []
        for label, values in groups.items():
            figures = [model["test"]["slices"][kind][label][metric] for model in comparison.models]
            rows.append(_row(label, [f"{values['users']:,}", *(f"{figure:.4f}" for figure in figures)]))
        title = f"{metric} by {kind.removeprefix('user.').replace('_', ' ')}"
        sections.append(section(title, _scrolling(title, table(["", "Users", *names], rows))))
    return sections


def _row(name: str, cells: Sequence[str]) -> str:
    return f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _scrolling(label: str, body: str) -> str:
    """What may be wider than a phone; it must be reachable by keyboard."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{body}</div>'
