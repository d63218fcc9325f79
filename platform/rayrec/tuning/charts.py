"""Charts of a sweep: points, and lines across one axis a parameter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rayrec.data.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, compact, round_step, svg, text, titles

WIDE = 980
FAINT = 0.25
LABELS_MOST = 6


@dataclass(frozen=True)
class Axis:
    """Where values lie between 0 and 1.

    Attributes:
        title: Below it.
        ticks: Places, and what stands there.
        low: The value at 0, or its logarithm.
        high: At 1.
        log: Whether they are logarithms.
        levels: Instead: values that are no numbers, in order.
    """

    title: str
    ticks: tuple[tuple[float, str], ...]
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    levels: tuple[Any, ...] = ()

    def at(self, value: Any) -> float:
        """The place of a value."""
        if self.levels:
            return (self.levels.index(value) + 0.5) / len(self.levels)
        number = math.log10(value) if self.log else float(value)
        return (number - self.low) / (self.high - self.low)

    @classmethod
    def of_numbers(cls, title: str, values: Sequence[float], log: bool = False) -> Axis:
        """An axis that all the values are on."""
        if log:
            low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
            high = max(high, low + 1)
            powers = [(n - low) / (high - low) for n in range(low, high + 1)]
            return cls(title, tuple((at, f"{10.0**n:g}") for n, at in enumerate(powers, low)), low, high, True)
        span = max(values) - min(values) or abs(max(values)) or 1.0
        step = round_step(span / 4)
        first, last = math.floor(min(values) / step), math.ceil(max(values) / step)
        count = max(1, last - first)
        ticks = tuple((n / count, compact((first + n) * step)) for n in range(count + 1))
        return cls(title, ticks, first * step, (first + count) * step)

    @classmethod
    def of_levels(cls, title: str, levels: Sequence[Any]) -> Axis:
        """An axis with a place for each value."""
        every = math.ceil(len(levels) / LABELS_MOST)
        ticks = [((n + 0.5) / len(levels), str(level)) for n, level in enumerate(levels) if n % every == 0]
        return cls(title, tuple(ticks), levels=tuple(levels))


@dataclass(frozen=True)
class Point:
    """A trial in a chart.

    Attributes:
        x: On the first axis.
        y: On the second.
        tip: What pointing at it shows.
        strong: Whether it stands out.
    """

    x: Any
    y: float
    tip: str
    strong: bool = True


def scatter(title: str, description: str, points: Sequence[Point], axes: tuple[Axis, Axis], steps: bool = False) -> str:
    """Points; with ``steps``, and a line along the highest so far."""
    across, up = axes
    width, height = WIDTH, HEIGHT
    bottom = height - BOTTOM

    def place(point: Point) -> tuple[float, float]:
        x = LEFT + across.at(point.x) * (width - LEFT - RIGHT)
        return x, TOP + (1 - up.at(point.y)) * (bottom - TOP)

    parts = []
    for at, label in up.ticks:
        y = TOP + (1 - at) * (bottom - TOP)
        kind = "base" if at == 0 else "rule"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(text(LEFT - 6, y + 4, label, "end"))
    for at, label in across.ticks:
        parts.append(text(LEFT + at * (width - LEFT - RIGHT), bottom + 16, label, "middle"))
    if steps:
        parts.append(_highest([place(point) for point in points], width - RIGHT))
    for point in points:
        x, y = place(point)
        parts.append(
            f'<circle class="bar" cx="{x:.1f}" cy="{y:.1f}" r="4" fill-opacity="{1 if point.strong else FAINT}">'
            f"<title>{escape(point.tip)}</title></circle>"
        )
    parts.append(titles((across.title, up.title), width, height))
    return svg(title, description, width, height, parts)


def _highest(places: Sequence[tuple[float, float]], right: float) -> str:
    """A line along the highest place so far (the smallest y), in steps."""
    line: list[str] = []
    best = math.inf
    for x, y in places:
        if y < best:
            line += [f"{x:.1f},{best:.1f}"] if line else []
            line.append(f"{x:.1f},{y:.1f}")
            best = y
    return f'<polyline class="line" points="{" ".join([*line, f"{right:.1f},{best:.1f}"])}"/>'


@dataclass(frozen=True)
class Line:
    """A trial across all axes.

    Attributes:
        values: On each axis; None where it has none there.
        tip: What pointing at it shows.
        strength: From 0 to 1: how well it did.
    """

    values: tuple[Any, ...]
    tip: str
    strength: float


def parallel(title: str, description: str, lines: Sequence[Line], axes: Sequence[Axis]) -> str:
    """An axis a parameter, a line a trial: the better it did, the darker."""
    height, top, bottom = 300, 14, 250
    gap = (WIDE - 2 * LEFT) / max(1, len(axes) - 1)

    def place(n: int, value: Any) -> str:
        return f"{LEFT + n * gap:.1f},{bottom - axes[n].at(value) * (bottom - top):.1f}"

    parts = []
    for line in sorted(lines, key=lambda line: line.strength):
        opacity = 0.08 + 0.92 * line.strength**2
        places = [None if value is None else place(n, value) for n, value in enumerate(line.values)]
        for there, stretch in itertools.groupby(places, key=lambda at: at is not None):
            # Where it has no value, it does not touch the axis.
            if there:
                parts.append(
                    f'<polyline class="line" stroke-opacity="{opacity:.2f}" points="{" ".join(map(str, stretch))}">'
                    f"<title>{escape(line.tip)}</title></polyline>"
                )
    for n, axis in enumerate(axes):
        x, end = LEFT + n * gap, n == len(axes) - 1
        parts.append(f'<line class="base" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        for at, label in axis.ticks:
            y = bottom - at * (bottom - top) + 4
            parts.append(text(x - 6 if end else x + 6, y, label, "end" if end else "start"))
        parts.append(
            text(x, bottom + 20 + 18 * (n % 2), axis.title, "end" if end else "start" if n == 0 else "middle", "axis")
        )
    return svg(title, description, WIDE, height, parts)
