"""A space file: what is searched, and the options of the sweep, each of which the command line may override."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field, field_validator, model_validator

from rayrec.errors import RecipeError
from rayrec.recipe import Recipe
from rayrec.recipe_data import Section
from rayrec.recipe_files import described, nearest
from rayrec.tuning.objectives import Objectives, parse_objectives
from rayrec.tuning.space import Changes, Space, as_it_is, check_against, parse_space
from rayrec.yaml_files import is_file, read_yaml

SEED = "training.seed"
SEEDS = 1 << 63
"""There are as many."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(value: object) -> object:
    """``90s``, ``15m``, ``2h`` or ``1d`` as seconds."""
    if isinstance(value, str) and (found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", value.strip())):
        return float(found[1]) * UNITS[found[2]]
    if isinstance(value, str):
        raise ValueError("write a time like 90s, 15m, 2h or 1d")
    return value


def _several(value: object) -> object:
    """One text as a list of one."""
    return (value,) if isinstance(value, str) else value


class Options(Section):
    """How a space is searched."""

    trials: int = Field(16, ge=1, le=100_000, description="Trials, the recipe as it is among them.")
    max_time: Annotated[float, BeforeValidator(_seconds), Field(gt=0)] | None = Field(
        None, description="Stop after so long, such as 15m or 2h. What runs then is stopped."
    )
    metric: Annotated[tuple[str, ...], BeforeValidator(_several)] = Field(
        (),
        description="What is to be as good as possible on validation events; by default training.metric. Several: also "
        "p95_ms and size_mb.",
    )
    constraints: Annotated[tuple[str, ...], BeforeValidator(_several)] = Field(
        (), description="What the best must fulfil, such as p95_ms <= 5."
    )
    algorithm: Literal["grid", "random", "tpe", "nsga2"] = Field("tpe", description="How values are chosen.")
    scheduler: Literal["none", "asha", "median", "hyperband", "pbt"] = Field(
        "none", description="What stops trials early (pbt: has them go on from better ones)."
    )
    grace_epochs: int = Field(8, ge=1, description="Epochs that every trial has before it may be stopped.")
    reduction: int = Field(3, ge=2, description="asha, hyperband: one of so many goes on at each rung.")
    parallel: int | None = Field(None, ge=1, description="Trials at a time; by default one a CPU, or a GPU.")
    gpus: float | None = Field(None, ge=0, description="GPUs a trial, such as 0.5; by default its share.")
    seed: int = Field(0, ge=0, lt=1 << 32, description="Of what the algorithm draws.")
    confirm: int = Field(
        0, ge=0, le=1000, description="So many of the best trials, and the recipe as it is, are trained with new seeds."
    )
    confirm_seeds: int = Field(3, ge=1, le=1000, description="New seeds of each; the best mean wins.")
    max_failed: float = Field(0.3, ge=0, le=1, description="Share of the trials that may fail before the sweep does.")

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean(cls, value: object) -> object:
        # Which pydantic takes for 1 and 0.
        if isinstance(value, bool):
            raise ValueError("expected no boolean")
        return value

    @model_validator(mode="after")
    def _go_together(self) -> Options:
        if self.scheduler == "pbt" and self.algorithm in {"grid", "nsga2"}:
            raise ValueError(f"pbt draws its own values: set algorithm to random or tpe, not {self.algorithm}")
        if self.scheduler == "pbt" and self.constraints:
            raise ValueError("pbt ends in a schedule, of which no recipe is to be measured: leave constraints out")
        if self.scheduler == "pbt" and self.confirm:
            raise ValueError("pbt ends in a schedule, which no other seed goes through: set confirm to 0")
        if len(self.metric) > 1 and self.scheduler != "none":
            many = len(self.metric)
            raise ValueError(f"scheduler {self.scheduler} knows one metric, not {many}: use none (--scheduler none)")
        return self


@dataclass(frozen=True)
class Search:
    """What is searched, and how.

    Attributes:
        space: The parameters.
        options: How.
        objectives: For what.
        points: The trials, if they are known beforehand.
    """

    space: Space
    options: Options
    objectives: Objectives
    points: tuple[Changes, ...] = ()


def load_search(reference: str, given: Mapping[str, Any], recipe: Recipe) -> Search:
    """A space file with what the command line says, checked against the recipe.

    Args:
        reference: A YAML file, or the name of one that comes with rayrec.
        given: Options that take precedence over the file's.
        recipe: What is tuned.

    Raises:
        RecipeError: Whatever is wrong, one a line.
    """
    where = f"space {reference}"
    raw = read_yaml(_file(reference), where)
    if "space" not in raw:
        unknown = next((str(key) for key in raw if key not in Options.model_fields), None)
        found = f" There is '{unknown}'.{nearest(unknown, ['space', *Options.model_fields])}" if unknown else ""
        raise RecipeError(f"{where}: space: required, but missing.{found}")
    # Alone first, so that the message says where to look.
    _options(given, "tune: on the command line")
    options = _options({key: value for key, value in raw.items() if key != "space"} | dict(given), where)
    objectives = parse_objectives(options.metric or (recipe.training.metric,), options.constraints)
    space = parse_space(raw["space"], where)
    check_against(space, recipe, where)
    if options.algorithm == "grid":
        space.grid()
    if options.confirm and recipe.training.seed + options.confirm_seeds >= SEEDS:
        raise RecipeError(
            f"{where}: {SEED} ({recipe.training.seed}) leaves no room for {options.confirm_seeds} other seeds."
        )
    if options.confirm and SEED in space.keys:
        raise RecipeError(f"{where}: {SEED} is searched: what is confirmed with other seeds must not be one itself.")
    if options.scheduler in {"pbt", "hyperband"} and recipe.training.workers:
        raise RecipeError(
            f"{where}: {options.scheduler} pauses trials, which trainings with workers of their own cannot do. Set "
            "training.workers to 0, or choose asha or median."
        )
    if options.scheduler == "pbt":
        _check_population(space, recipe, where)
    return Search(space, options, objectives)


def packaged_spaces() -> dict[str, Path]:
    """The space files that come with rayrec, by name."""
    checkout = Path(__file__).parents[3]
    # A checkout has them where people look for them; its installation has copies that may be older.
    inside = (checkout / "pyproject.toml").is_file()
    folder = checkout / "tuning" if inside else Path(sys.prefix) / "share" / "rayrec" / "tuning"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _file(reference: str) -> Path:
    path, known = Path(reference), packaged_spaces()
    if is_file(path, f"space {reference[:200]}"):
        return path
    if reference in known:
        return known[reference]
    if path.is_dir():
        raise RecipeError(f"space {reference}: is a folder. Name a file in it.")
    listed = ", ".join(known)
    raise RecipeError(
        f"space {reference}: there is no such file.{nearest(path.stem, known)} Those that come with rayrec: {listed}."
    )


def _options(raw: Mapping[str, Any], where: str) -> Options:
    try:
        return Options.model_validate(raw)
    except pydantic.ValidationError as error:
        lines = described(error, Options.model_json_schema(), whole="options")
        # Their names stand on the command line with two dashes.
        raise RecipeError(f"{where}:\n  " + "\n  ".join(lines)) from error


MUTABLE = "training.learning_rate", "training.table_learning_rate", "training.weight_decay", "training.clip"


def _check_population(space: Space, recipe: Recipe, where: str) -> None:
    """A population is changed while it trains: only what weights do not depend on can be; and the recipe is part of it.

    Raises:
        RecipeError: Something else is searched, or the recipe's own values are outside the space.
    """
    wrong = [key for key in space.keys if key not in MUTABLE]
    if wrong:
        raise RecipeError(
            f"{where}: {', '.join(wrong)}: pbt changes values while the weights are kept, which is possible for "
            f"{', '.join(MUTABLE)}. Leave the others out, or choose another scheduler."
        )
    if as_it_is(space, recipe) is None:
        raise RecipeError(
            f"{where}: pbt begins with the recipe as it is, which this space does not reach. Widen the space, or set "
            f"{', '.join(space.keys)} in the recipe to values within it."
        )
