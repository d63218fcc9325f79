"""Charts as inline SVG: text in, text out, coloured by the page's style sheet and so fit for light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 10, 46
"""Margins around the area that is drawn in: room for the labels of the axes."""


@dataclass(frozen=True)
class Bar:
    """A bar.

    Attributes:
        label: Below it, where there is room.
        value: Its height.
        tip: What pointing at it shows.
    """

    label: str
    value: float
    tip: str


def bars(title: str, description: str, data: Sequence[Bar], axes: tuple[str, str], width: int = WIDTH) -> str:
    """A bar chart, with at most as many labels as do not touch; ``axes`` are the titles of x and y."""
    height = HEIGHT
    plot_width, plot_height = width - LEFT - RIGHT, height - TOP - BOTTOM
    top, ticks = _scale(max((bar.value for bar in data), default=0))
    step = plot_width / max(1, len(data))
    gap = min(3.0, step * 0.15)
    longest = max((len(bar.label) for bar in data), default=1)
    every = max(1, math.ceil((longest * 7.5 + 12) / step))
    parts = [y_axis(ticks, top, width, height), titles(axes, width, height)]
    for place, bar in enumerate(data):
        x = LEFT + place * step
        size = plot_height * bar.value / top
        # A bar of little is still seen, one of nothing is not drawn.
        size = max(size, 1.0) if bar.value else 0.0
        y = TOP + plot_height - size
        parts.append(
            f'<rect class="bar" x="{x + gap / 2:.1f}" y="{y:.1f}" width="{step - gap:.1f}" height="{size:.1f}">'
            f"<title>{escape(bar.tip)}</title></rect>"
        )
        if place % every == 0:
            parts.append(text(x + step / 2, height - BOTTOM + 16, bar.label, "middle"))
    return svg(title, description, width, height, parts)


def curve(title: str, description: str, points: Sequence[tuple[float, float]], axes: tuple[str, str]) -> str:
    """A curve through points of two shares, from 0 to 1, over the diagonal."""
    width, height = WIDTH, HEIGHT
    plot_width, plot_height = width - LEFT - RIGHT, height - TOP - BOTTOM

    def at(x: float, y: float) -> str:
        return f"{LEFT + x * plot_width:.1f},{TOP + (1 - y) * plot_height:.1f}"

    line = " ".join(at(x, y) for x, y in points)
    labels = [
        text(LEFT + share * plot_width, height - BOTTOM + 16, f"{share:.0%}", "middle")
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    parts = [
        y_axis([(share, f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)], 1, width, height),
        f'<polygon class="area" points="{line} {at(1, 0)} {at(0, 0)}"/>',
        f'<polyline class="even" points="{at(0, 0)} {at(1, 1)}"/>',
        f'<polyline class="line" points="{line}"/>',
        *labels,
        titles(axes, width, height),
    ]
    return svg(title, description, width, height, parts)


def heatmap(title: str, description: str, rows: Sequence[tuple[str, Sequence[int]]], x_title: str) -> str:
    """Counts by row (``label``, counts) and column as cells, the darker the more."""
    columns = len(rows[0][1])
    width, cell = WIDTH, (WIDTH - 40 - 4) / columns
    tall = 22
    height = 8 + tall * len(rows) + 62
    most = max(max(counts) for _, counts in rows) or 1
    parts = []
    for row, (label, counts) in enumerate(rows):
        y = 8 + row * tall
        parts.append(text(34, y + 15, label, "end"))
        parts.extend(
            f'<rect class="bar" x="{40 + column * cell:.1f}" y="{y}" width="{cell - 1:.1f}" height="{tall - 1}" '
            f'fill-opacity="{0.06 + 0.94 * count / most:.3f}">'
            f"<title>{escape(label)} {column:02d}:00: {count:,} events</title></rect>"
            for column, count in enumerate(counts)
        )
    bottom = 8 + tall * len(rows)
    parts.extend(
        text(40 + (c + 0.5) * cell, bottom + 15, f"{c:02d}", "middle") for c in range(0, columns, columns // 8 or 1)
    )
    parts.append(text(40, bottom + 50, x_title, "start", "axis"))
    parts.append(_legend(width, bottom + 40, most))
    return svg(title, description, width, height, parts)


@dataclass(frozen=True)
class Estimate:
    """A value with the interval it is thought to lie in.

    Attributes:
        label: Above it.
        low: The interval begins here
        value: The value.
        high: and ends here.
    """

    label: str
    low: float
    value: float
    high: float


def whiskers(title: str, description: str, data: Sequence[Estimate], x_title: str) -> str:
    """Values as dots with their intervals, a row each, on an axis that has 0 on it."""
    width, tall = WIDTH, 40
    bottom = TOP + tall * len(data)
    ends = [0.0, *(end for row in data for end in (row.low, row.high))]
    step = round_step((max(ends) - min(ends)) / 4 or 1.0)
    first, last = math.floor(min(ends) / step + 1e-9), math.ceil(max(ends) / step - 1e-9)

    def at(value: float) -> float:
        return RIGHT + (width - 2 * RIGHT) * (value / step - first) / max(1, last - first)

    parts = []
    for n in range(first, last + 1):
        x, kind = at(step * n), "base" if n == 0 else "rule"
        parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(text(x, bottom + 16, compact(step * n), "middle"))
    for place, row in enumerate(data):
        y = TOP + tall * place + 28
        tip = escape(f"{row.label}: {row.value:.4f}, from {row.low:.4f} to {row.high:.4f}")
        parts.append(text(RIGHT + 4, y - 14, row.label, "start"))
        parts.append(f'<line class="line" x1="{at(row.low):.1f}" x2="{at(row.high):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="bar" cx="{at(row.value):.1f}" cy="{y}" r="5"><title>{tip}</title></circle>')
    parts.append(text(width / 2, bottom + 38, x_title, "middle", "axis"))
    return svg(title, description, width, bottom + 44, parts)


def compact(number: float) -> str:
    """A number in few characters: 1,234,567 is 1.2M."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, the first that is not below ``least`` (positive)."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)


def _legend(width: int, y: float, most: int) -> str:
    steps = "".join(
        f'<rect class="bar" x="{width - 150 + 16 * n}" y="{y}" width="15" height="10" '
        f'fill-opacity="{0.06 + 0.94 * n / 4:.3f}"/>'
        for n in range(5)
    )
    return text(width - 156, y + 10, "0", "end") + steps + text(width - 64, y + 10, compact(most), "start")


def _scale(largest: float) -> tuple[float, list[tuple[float, str]]]:
    """The top of an axis from 0, and its ticks: 1, 2 or 5 times a power of ten apart."""
    if largest <= 0:
        return 1.0, [(0.0, "0")]
    step = round_step(largest / 5)
    count = math.ceil(largest / step - 1e-9)
    return step * count, [(step * n, compact(step * n)) for n in range(count + 1)]


def y_axis(ticks: Sequence[tuple[float, str]], top: float, width: int, height: int) -> str:
    """Lines across from ticks (value, label), of an axis from 0 to ``top``."""
    plot_height = height - TOP - BOTTOM
    parts = []
    for value, label in ticks:
        y = TOP + plot_height * (1 - value / top)
        kind = "base" if value == 0 else "rule"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(text(LEFT - 6, y + 4, label, "end"))
    return "".join(parts)


def titles(axes: tuple[str, str], width: int, height: int) -> str:
    """The titles of x and y."""
    middle = TOP + (height - TOP - BOTTOM) / 2
    return (
        text(LEFT + (width - LEFT - RIGHT) / 2, height - 6, axes[0], "middle", "axis")
        + f'<text class="axis" text-anchor="middle" transform="translate(11 {middle:.1f}) rotate(-90)">'
        + f"{escape(axes[1])}</text>"
    )


def text(x: float, y: float, words: str, anchor: str, kind: str = "tick") -> str:
    """Words at a place; ``anchor`` is ``start``, ``middle`` or ``end``."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def svg(title: str, description: str, width: int, height: int, parts: Sequence[str]) -> str:
    """A chart of these parts, with a name and a description for who does not see it."""
    # Ids must differ between the charts of a page; their titles do.
    name = "".join(letter if letter.isalnum() else "-" for letter in title.lower())
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )
