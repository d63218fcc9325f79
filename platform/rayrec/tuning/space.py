"""A search space: which keys of a recipe take which values, and the options of a sweep over them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import BaseTrial

from rayrec.errors import RecipeError
from rayrec.recipe import Recipe, Training
from rayrec.recipe_files import nearest, parse_recipe
from rayrec.yaml_files import brief

Changes = dict[str, Any]
"""Keys of a recipe and the values that they take in a trial, such as ``{"training.batch_size": 64}``."""

SECTIONS = ("model", "training")
FIXED = {
    "training.metric": "--metric chooses it",
    "training.refit": "trials are judged on validation events, which must not be learnt from",
    "training.warm_start": "all trials begin with random weights",
    **dict.fromkeys(
        (f"training.{key}" for key in ("workers", "min_workers", "hung", "gpus", "threads", "memory_mb")),
        "it changes how a trial is run, not what it learns: set it in the recipe, or with --set",
    ),
}
"""Keys of these sections that a sweep sets itself, and why."""
WHOLE = frozenset({"int", "log_int"})
DIGITS = 12
"""Of values in steps, which are rounded as people write them: 0.9, not 0.8999999999999999, is three steps of 0.3."""
CHOICES_MOST = 1000
"""Values of a choice: each is checked against the recipe."""
STEPS_MOST = 10**9
"""Of a range, beyond which sums of steps lose digits."""
LEVELS_MOST = 10_000
"""Values of a key that grid search goes through at most."""


@dataclass(frozen=True)
class Parameter:
    """A key of the recipe and the values it may take.

    Attributes:
        key: Such as ``training.learning_rate``.
        kind: One of `KINDS`.
        values: What the space file gives: of ``choice`` the values; of the others the lowest and the highest, and of
            ``quantised`` the step between.
        when: It is only there if other keys have one of these values.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def applies(self, changes: Changes) -> bool:
        """Whether its conditions hold."""
        return all(key in changes and changes[key] in allowed for key, allowed in self.when.items())

    def suggested(self, trial: BaseTrial) -> Any:
        """A value of Optuna's choice. Choices are drawn by their place, so that they may be lists."""
        drawn = KINDS[self.kind](trial, self.key, self.values)
        return self.values[drawn] if self.kind == "choice" else round(drawn, DIGITS) if self.steps else drawn

    def drawn(self, value: Any) -> Any:
        """What is drawn for a value of the recipe; None where the space does not reach it."""
        if self.kind == "choice":
            return self.values.index(value) if value in self.values else None
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return None
        low, high = self.values[:2]
        steps = (value - low) / self.values[2] if self.kind == "quantised" else 0.0
        return value if low <= value <= high and abs(steps - round(steps)) < 1e-9 else None

    def nearest(self, value: Any) -> Any:
        """The value within its bounds that is nearest to another."""
        if self.kind == "choice":
            return value
        low, high = self.values[:2]
        if self.steps:
            low, high, step = self.values
            value = round(low + round((value - low) / step) * step, DIGITS)
        return min(max(round(value) if self.whole else value, low), high)

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return self.kind in WHOLE

    @property
    def steps(self) -> bool:
        """Whether its values are numbers in steps."""
        return self.kind == "quantised"

    @property
    def levels(self) -> list[Any] | None:
        """All the values, in order; None where there are too many to go through them."""
        if self.kind == "choice":
            return list(self.values)
        if self.kind in {"uniform", "log_uniform"}:
            return None
        step = self.values[2] if self.kind == "quantised" else 1
        count = math.floor((self.values[1] - self.values[0]) / step + 1e-9) + 1
        return None if count > LEVELS_MOST else [round(self.values[0] + n * step, DIGITS) for n in range(count)]

    @property
    def extremes(self) -> Sequence[Any]:
        """The values that must fit into a recipe, for all between them to do so."""
        return self.values if self.kind == "choice" else self.values[:2]


KINDS: dict[str, Callable[[BaseTrial, str, Sequence[Any]], Any]] = {
    "choice": lambda trial, key, v: trial.suggest_categorical(key, range(len(v))),
    "uniform": lambda trial, key, v: trial.suggest_float(key, v[0], v[1]),
    "log_uniform": lambda trial, key, v: trial.suggest_float(key, v[0], v[1], log=True),
    "int": lambda trial, key, v: trial.suggest_int(key, v[0], v[1]),
    "log_int": lambda trial, key, v: trial.suggest_int(key, v[0], v[1], log=True),
    "quantised": lambda trial, key, v: trial.suggest_float(key, v[0], _last_step(*v), step=v[2]),
}


def _last_step(low: float, high: float, step: float) -> float:
    """The highest value that is reached from ``low`` in whole steps."""
    return round(low + math.floor((high - low) / step + 1e-9) * step, DIGITS)


@dataclass(frozen=True)
class Space:
    """All the parameters, those with conditions after those that these name."""

    parameters: tuple[Parameter, ...]

    def active(self, value: Callable[[Parameter], Any]) -> Changes:
        """The parameters whose conditions hold, each given a value in turn."""
        changes: Changes = {}
        for parameter in self.parameters:
            if parameter.applies(changes):
                changes[parameter.key] = value(parameter)
        return changes

    def grid(self) -> Iterator[Changes]:
        """Every combination.

        Raises:
            RecipeError: A parameter has no end of values.
        """
        for parameter in self.parameters:
            if parameter.levels is None:
                raise RecipeError(
                    f"space {parameter.key}: grid search goes through all values, and {parameter.kind} has too many. "
                    "Write `choice: [...]`, or use --algorithm random or tpe."
                )
        return self._combinations({}, self.parameters)

    def _combinations(self, changes: Changes, left: Sequence[Parameter]) -> Iterator[Changes]:
        if not left:
            yield dict(changes)
            return
        parameter, *others = left
        for level in (parameter.levels or []) if parameter.applies(changes) else [None]:
            chosen = {parameter.key: level} if parameter.applies(changes) else {}
            yield from self._combinations({**changes, **chosen}, others)

    def extremes_of(self, key: str) -> Sequence[Any]:
        """The extremes of a key's values; none where it is not searched."""
        return next((parameter.extremes for parameter in self.parameters if parameter.key == key), ())

    @property
    def keys(self) -> list[str]:
        """The recipe keys."""
        return [parameter.key for parameter in self.parameters]


def changed(recipe: Recipe, changes: Changes) -> Recipe:
    """The recipe with some keys changed; with another model, that has its own defaults.

    Raises:
        RecipeError: A key or a value is wrong, or they do not go together.
    """
    raw = recipe.model_dump(mode="json", by_alias=True)
    if changes.get("model.name", recipe.model.name) != recipe.model.name:
        raw["model"] = {}
    for key, value in changes.items():
        node = raw
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise RecipeError(f"space {key}: '{parent}' has no keys of its own.")
        node[last] = value
    return parse_recipe(raw, where=recipe.name)


def as_it_is(space: Space, recipe: Recipe) -> Changes | None:
    """The recipe itself as a point of the space; None where the space does not reach it."""
    raw = recipe.model_dump(mode="json", by_alias=True)

    def own(key: str) -> Any:
        node: Any = raw
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    changes: Changes = {}
    for parameter in space.parameters:
        if parameter.applies(changes):
            if parameter.drawn(own(parameter.key)) is None:
                return None
            changes[parameter.key] = own(parameter.key)
    return changes


def parse_space(raw: Any, where: str) -> Space:
    """A space given as plain values.

    Raises:
        RecipeError: A kind is unknown, or a range impossible.
    """
    if not isinstance(raw, dict) or not raw:
        raise RecipeError(f"{where}: expected recipe keys, such as `training.learning_rate: {{uniform: [0.1, 0.5]}}`.")
    problems: list[str] = []
    found = [_parameter(str(key), value, problems) for key, value in raw.items()]
    parameters = [parameter for parameter in found if parameter]
    _check_conditions(parameters, [str(key) for key in raw], problems)
    if problems:
        raise RecipeError(f"{where}:\n  " + "\n  ".join(problems))
    return Space(_in_order(parameters, where))


def check_against(space: Space, recipe: Recipe, where: str) -> None:
    """Find what would be wrong in every trial, before one is begun.

    A value need not go with all others (64 values do not part into 5 heads), but with some.

    Raises:
        RecipeError: A key is unknown, or none of the recipes with one of its extreme values is valid.
    """
    problems: dict[str, None] = {}
    for parameter in space.parameters:
        for value in parameter.extremes:
            if (problem := _impossible(space, recipe, parameter, value)) is not None:
                # A wrong key is wrong with every value.
                problems.setdefault(problem)
    if problems:
        raise RecipeError(f"{where}:\n  " + "\n  ".join(problems))


# ---- reading


def _parameter(key: str, given: Any, problems: list[str]) -> Parameter | None:
    section = key.partition(".")[0]
    if section not in SECTIONS or "." not in key:
        own = "training" if key in Training.__dataclass_fields__ else "model"
        hint = " Set others with --set." if "." in key else f" Did you mean '{own}.{key}'?"
        begins = " or ".join(f"`{name}.`" for name in SECTIONS)
        problems.append(f"{key}: trials share one Dataset, so keys that can be searched begin with {begins}.{hint}")
        return None
    if key in FIXED:
        problems.append(f"{key}: a sweep cannot search it: {FIXED[key]}.")
        return None
    if not isinstance(given, dict):
        problems.append(f"{key} = {brief(given)}: expected a kind with its values, such as {{choice: [1, 2]}}.")
        return None
    kinds = [name for name in given if name != "when"]
    if len(kinds) != 1 or kinds[0] not in KINDS:
        unknown = [str(name) for name in kinds if name not in KINDS]
        hint = nearest(unknown[0], KINDS) if unknown else ""
        problems.append(
            f"{key}: expected one of {', '.join(KINDS)}, found {', '.join(map(str, kinds)) or 'none'}.{hint}"
        )
        return None
    kind = kinds[0]
    if reason := _wrong_values(kind, given[kind]):
        problems.append(f"{key}.{kind} = {brief(given[kind])}: {reason}")
        return None
    when = _conditions(key, given.get("when", {}), problems)
    return Parameter(key, kind, tuple(given[kind]), when)


def _wrong_values(kind: str, values: Any) -> str:
    """What is wrong with the values of a kind; nothing if nothing is."""
    if kind == "choice":
        if not isinstance(values, list) or not values:
            return "expected a list of values."
        if len(values) > CHOICES_MOST:
            return f"at most {CHOICES_MOST} values. Write a range, such as {{int: [1, 5000]}}."
        return "a value stands twice." if any(value in values[:n] for n, value in enumerate(values)) else ""
    expected = "[lowest, highest, step]" if kind == "quantised" else "[lowest, highest]"
    length = 3 if kind == "quantised" else 2
    if not isinstance(values, list) or len(values) != length:
        return f"expected {expected}."
    whole = kind in WHOLE
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not _is_number(value):
            # YAML reads 1e-3 as text: it wants a dot and a sign.
            hint = " (write 1e-3 as 1.0e-3 or 0.001)" if isinstance(value, str) and _is_number(value) else ""
            return f"{brief(value)} is not a{' whole' if whole else ''} number{hint}."
    low, high = values[:2]
    if low >= high:
        return f"the lowest ({low}) must be below the highest ({high})."
    if kind.startswith("log") and low <= 0:
        return f"the lowest must be above 0 on a logarithmic scale, not {low}."
    if kind == "quantised" and not 0 < values[2] <= high - low:
        return f"the step must be above 0 and at most {high - low:g}, not {values[2]}."
    if kind == "quantised" and (high - low) / values[2] > STEPS_MOST:
        return f"more than {STEPS_MOST:,} steps: leave the step out, with uniform."
    return ""


def _is_number(value: str | float) -> bool:
    try:
        return math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False


def _conditions(key: str, given: Any, problems: list[str]) -> dict[str, tuple[Any, ...]]:
    if not isinstance(given, dict):
        problems.append(f"{key}.when = {brief(given)}: expected keys and their values, such as {{model.name: sasrec}}.")
        return {}
    if [] in given.values():
        problems.append(f"{key}.when = {brief(given)}: an empty list allows nothing.")
        return {}
    return {str(name): tuple(value) if isinstance(value, list) else (value,) for name, value in given.items()}


def _check_conditions(parameters: Sequence[Parameter], keys: Sequence[str], problems: list[str]) -> None:
    by_key = {parameter.key: parameter for parameter in parameters}
    for parameter in parameters:
        for name, allowed in parameter.when.items():
            if name not in keys or name == parameter.key:
                others = [key for key in keys if key != parameter.key]
                problems.append(f"{parameter.key}.when: '{name}' is no other key of this space.{nearest(name, others)}")
            elif name in by_key:
                levels = by_key[name].levels
                for value in allowed:
                    if levels is None or value not in levels:
                        hint = nearest(brief(value), map(str, levels or []))
                        problems.append(f"{parameter.key}.when: {name} is never {brief(value)} in this space.{hint}")


def _in_order(parameters: Sequence[Parameter], where: str) -> tuple[Parameter, ...]:
    """Those with conditions after those that these name."""
    ordered: list[Parameter] = []
    left = list(parameters)
    while left:
        known = {parameter.key for parameter in ordered}
        ready = [parameter for parameter in left if set(parameter.when) <= known]
        if not ready:
            raise RecipeError(f"{where}: the conditions of {', '.join(p.key for p in left)} go round in a circle.")
        ordered += ready
        left = [parameter for parameter in left if parameter not in ready]
    return tuple(ordered)


# ---- checking against a recipe

TRIES = 24
"""Draws of the other parameters, before a value is given up as one that goes with none of them."""


def _impossible(space: Space, recipe: Recipe, parameter: Parameter, value: Any) -> str | None:
    """Why no recipe with this value is valid; None where one is."""
    randomly = random.Random(0)
    reason = ""
    tried: list[Changes] = []
    for _ in range(TRIES):
        forced = _conditions_met(space, parameter, randomly) | {parameter.key: value}

        def value_of(other: Parameter, forced: Changes = forced) -> Any:
            return forced[other.key] if other.key in forced else randomly.choice(other.levels or other.extremes)

        if (changes := space.active(value_of)) in tried:
            continue
        tried.append(changes)
        try:
            changed(recipe, changes)
        except RecipeError as error:
            lines = str(error).splitlines()[1:] or [str(error)]
            reason = reason or next((line.strip() for line in lines if parameter.key in line), lines[0].strip())
        else:
            return None
    return reason


def _conditions_met(space: Space, parameter: Parameter, randomly: random.Random) -> Changes:
    """Values of other keys with which a parameter is there."""
    by_key = {other.key: other for other in space.parameters}
    forced: Changes = {}
    for name, allowed in parameter.when.items():
        forced |= _conditions_met(space, by_key[name], randomly) | {name: randomly.choice(allowed)}
    return forced
