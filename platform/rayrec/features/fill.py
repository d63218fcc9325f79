"""Cleaning of columns: what takes the place of missing values, and where numbers are clipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.errors import RecipeError
from rayrec.features.base import FeatureConfig, Fitted, Json, Output, Statistics
from rayrec.features.columns import as_numbers, as_words, is_number
from rayrec.features.quantiles import LARGEST, Quantiles, rounded


@dataclass(frozen=True, kw_only=True)
class Fill(FeatureConfig):
    """Imputation, then clipping; both learnt from the column as it came.

    Attributes:
        missing: ``mean``, ``median`` or ``most_frequent``; any other number or text is itself taken. By default missing
            values stay missing.
        clip: At the quantiles ``low`` and ``high``, or ``factor`` times the interquartile range outside the quartiles.
    """

    kind: Literal["fill"] = "fill"
    missing: float | str | None = None
    clip: Literal["quantile", "iqr"] | None = None
    low: float = 0.01
    high: float = 0.99
    factor: float = 1.5

    def reads_numbers(self, column: pa.Array) -> bool:
        """Whether the column is taken for numbers: by what is asked for, else by its type."""
        asked = self.clip is not None or self.missing in {"mean", "median"} or isinstance(self.missing, int | float)
        return asked or is_number(column.type)

    def update(self, column: pa.Array, statistics: Statistics) -> None:
        """Add up or count the values there are."""
        if self.reads_numbers(column):
            numbers = as_numbers(column)
            numbers = numbers[~np.isnan(numbers)]
            column = pa.array(numbers)
            if self.missing == "mean":
                statistics.sums.add(numbers)
            if self.missing == "median" or self.clip is not None:
                statistics.values.add(rounded(numbers))
        if self.missing == "most_frequent":
            statistics.words.add(pl.Series(as_words(column).drop_null()))

    def fitted(self, statistics: Statistics) -> FittedFill:
        """The value and the bounds; of nothing but missing values, mean and median are 0."""
        quantiles, fill = Quantiles(statistics.values), self.missing
        if self.missing == "mean":
            fill = statistics.sums.mean
        elif self.missing == "median":
            fill = quantiles(0.5)
        elif self.missing == "most_frequent":
            counted = statistics.words.frame().sort(["count", "key"], descending=[True, False])
            fill = next(iter(counted["key"]), None)
        bounds = (-LARGEST, LARGEST)
        if self.clip == "quantile":
            bounds = (quantiles(self.low), quantiles(self.high))
        elif self.clip == "iqr":
            first, third = quantiles(0.25), quantiles(0.75)
            more = min(self.factor * (third - first), LARGEST)
            bounds = (max(first - more, -LARGEST), min(third + more, LARGEST))
        return FittedFill(self, fill, *bounds)


@dataclass(frozen=True)
class FittedFill(Fitted):
    """A cleaned column: float64 where it is taken for numbers, else string; null where missing values stay.

    Attributes:
        fill: Takes the place of missing values.
        low: Numbers below become this one.
        high: Numbers above become this one.
    """

    config: Fill
    fill: float | str | None
    low: float
    high: float

    @property
    def output(self) -> Output:
        """A number or a text."""
        return Output(self.config.kind)

    def apply(self, column: pa.Array) -> pa.Array:
        """See `Fitted.apply`. What is no number in a column of numbers is missing."""
        if not self.config.reads_numbers(column):
            words = as_words(column).cast(pa.string())
            return words if self.fill is None else pc.fill_null(words, str(self.fill))
        numbers = as_numbers(column)
        fill = as_numbers(pa.array([None if self.fill is None else str(self.fill)], pa.string()))
        numbers = np.where(np.isnan(numbers), fill, numbers)
        if self.config.clip is not None:
            numbers = np.clip(numbers, self.low, self.high)
        return pa.array(numbers, from_pandas=True)

    def to_json(self) -> Json:
        """The value and the bounds."""
        return {"fill": self.fill, "low": self.low, "high": self.high}


def fills(missing: Mapping[str, float | str], outliers: Mapping[str, Mapping[str, Any]]) -> dict[str, Fill]:
    """What `Fit` learns for the recipe's ``clean.missing`` and ``clean.outliers`` (as plain values), by column.

    ``drop`` fills nothing: rows are left out by whoever reads the column, where it is null.

    Raises:
        RecipeError: A number that is to be taken is not finite.
    """
    for name, value in missing.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"data.clean.missing.{name} = {value}: give a finite number.")
    asked = {name: None if value == "drop" else value for name, value in missing.items()}
    clips = {name: {"clip" if key == "method" else key: v for key, v in o.items()} for name, o in outliers.items()}
    return {name: Fill(missing=asked.get(name), **clips.get(name, {})) for name in sorted({*asked, *clips})}
