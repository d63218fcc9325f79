"""What trials are judged by: metrics on validation events, and what the exported scorer costs."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rayrec.errors import RecipeError
from rayrec.metrics.ranking import LARGEST_CUTOFF, METRICS, parse_metric
from rayrec.recipe_files import nearest

COSTS = {
    "p95_ms": "95th percentile of how long the exported scorer takes for one request on one thread, in milliseconds",
    "size_mb": "size of the model as it is published, in MB",
}
"""What else than metrics can be asked for; less is better."""
COMPARISONS = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Constraint:
    """What a trial must fulfil to be the best.

    Attributes:
        name: A metric or one of `COSTS`.
        comparison: ``<=`` or ``>=``.
        bound: The limit.
    """

    name: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name} {self.comparison} {self.bound:g}"

    def excess(self, value: float) -> float:
        """How far a value is on the wrong side; 0 or less where it is on the right one."""
        return value - self.bound if self.comparison == "<=" else self.bound - value

    def met(self, values: Mapping[str, float]) -> bool:
        """Whether a trial's values fulfil it."""
        return self.name in values and bool(COMPARISONS[self.comparison](values[self.name], self.bound))


@dataclass(frozen=True)
class Objectives:
    """What is to be as good as possible, and what must be good enough.

    Attributes:
        names: Metrics and `COSTS`. The first is a metric: what trainings watch, and what schedulers stop by.
        constraints: What must be good enough.
    """

    names: tuple[str, ...]
    constraints: tuple[Constraint, ...] = ()

    @property
    def metric(self) -> str:
        """The validation metric that trainings watch."""
        return self.names[0]

    @property
    def wanted(self) -> tuple[str, ...]:
        """Everything that has to be measured of a trial."""
        return tuple(dict.fromkeys([*self.names, *(constraint.name for constraint in self.constraints)]))

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        """Of each name, as Optuna has it."""
        return ["minimize" if name in COSTS else "maximize" for name in self.names]

    def allows(self, values: Mapping[str, float]) -> bool:
        """Whether all constraints are met."""
        return all(constraint.met(values) for constraint in self.constraints)

    def front(self, values: Sequence[Mapping[str, float]]) -> list[int]:
        """Places of those that no other is better than in one objective and as good in all (the Pareto front)."""
        points = [self._signed(each) for each in values]
        return [place for place, point in enumerate(points) if not any(_beats(other, point) for other in points)]

    def _signed(self, values: Mapping[str, float]) -> list[float]:
        """Values of which more is better."""
        return [-values[name] if name in COSTS else values[name] for name in self.names]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def parse_objectives(names: Sequence[str], constraints: Sequence[str]) -> Objectives:
    """Objectives by their names, and constraints such as ``p95_ms <= 5``.

    Raises:
        RecipeError: Something is asked for that is not measured.
    """
    for name in names:
        check_measured(name, "metric")
    if not names or names[0] in COSTS:
        first = names[0] if names else "nothing"
        raise RecipeError(
            f"metric: the first must be one that training watches, such as ndcg@10, not {first}. Others go after it."
        )
    if len(set(names)) < len(names):
        raise RecipeError(f"metric: {', '.join(names)}: one is named twice.")
    return Objectives(tuple(names), tuple(_constraint(text) for text in constraints))


def check_measured(name: str, where: str) -> None:
    """Refuse what no trial measures.

    Raises:
        RecipeError: It is no ranking metric with its cut-off and none of `COSTS`; the message has the nearest name.
    """
    if name in COSTS:
        return
    try:
        parse_metric(name)
    except ValueError as error:
        base, _, cut = name.partition("@")
        known = [*COSTS, *(f"{metric}@{cut if _is_cutoff(cut) else 10}" for metric in METRICS)]
        raise RecipeError(
            f"{where}: trials do not measure '{name[:40]}'.{nearest(name[:40] if cut else base, known)} They measure "
            f"{', '.join(METRICS)} at a cut-off from @1 to @{LARGEST_CUTOFF}, {' and '.join(COSTS)}."
        ) from error


def _is_cutoff(text: str) -> bool:
    return re.fullmatch("[1-9][0-9]*", text) is not None and len(text) < 10 and int(text) <= LARGEST_CUTOFF


def _constraint(text: str) -> Constraint:
    found = re.fullmatch(r"\s*(\S+?)\s*(<=|>=)\s*(\S+)\s*", text)
    try:
        if not found:
            raise ValueError
        name, comparison, bound = found[1], found[2], float(found[3])
        if not math.isfinite(bound):
            raise ValueError
    except ValueError:
        raise RecipeError(f"constraint '{text}': write it like 'p95_ms <= 5' or 'recall@20 >= 0.1'.") from None
    check_measured(name, f"constraint '{text}'")
    return Constraint(name, comparison, bound)
