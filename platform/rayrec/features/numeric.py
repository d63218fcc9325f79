"""A number, scaled."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.features.base import FeatureConfig, Fitted, Json, Output, Statistics
from rayrec.features.columns import as_numbers
from rayrec.features.quantiles import Quantiles, rounded

LARGEST = float(np.finfo(np.float32).max)
"""Models compute in float32: numbers beyond its range are taken as its ends."""


@dataclass(frozen=True, kw_only=True)
class Numeric(FeatureConfig):
    """A number."""

    kind: Literal["numeric"] = "numeric"
    scale: Literal["none", "standardise", "min-max", "log", "quantile"] = field(
        default="standardise",
        metadata={"description": "`log` is log(1 + x), standardised; `quantile` gives the number of a bucket."},
    )
    buckets: int = field(
        default=16,
        metadata={"ge": 2, "le": 65_536, "description": "For `quantile`: how many, with equally many rows in each."},
    )
    missing: Literal["mean", "median"] | float = field(
        default="mean", metadata={"description": "What takes the place of none."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.missing, float) and not math.isfinite(self.missing):
            raise ValueError(f"missing must be mean, median or a finite number, not {self.missing}")

    def update(self, column: pa.Array, statistics: Statistics) -> None:
        """Add up or count the numbers there are."""
        numbers = _numbers(column)
        present = numbers[~np.isnan(numbers)]
        if self.missing == "mean" or self.scale in {"standardise", "min-max"}:
            statistics.sums.add(present)
        if self.missing == "median" or self.scale == "quantile":
            statistics.values.add(rounded(present))
        if self.scale == "log":
            statistics.logs.add(_log(present))

    def fitted(self, statistics: Statistics) -> FittedNumeric:
        """The scale, of the numbers there were."""
        sums, quantiles = statistics.sums, Quantiles(statistics.values)
        centre, spread = 0.0, 1.0
        if self.scale == "standardise":
            centre, spread = sums.mean, sums.deviation
        elif self.scale == "log":
            centre, spread = statistics.logs.mean, statistics.logs.deviation
        elif self.scale == "min-max" and sums.count:
            centre, spread = sums.low, sums.high - sums.low
        fill = {"mean": sums.mean, "median": quantiles(0.5)}.get(str(self.missing), self.missing)
        edges = [quantiles(n / self.buckets) for n in range(1, self.buckets)] if self.scale == "quantile" else []
        return FittedNumeric(self, float(fill), centre, spread or 1.0, np.array(edges))


@dataclass(frozen=True, eq=False)
class FittedNumeric(Fitted):
    """A number: float32, or the int64 number of a bucket.

    Attributes:
        fill: Takes the place of none.
        centre: What is subtracted.
        spread: What is divided by, never 0.
        edges: ``[buckets - 1]`` float64, for `quantile`: where buckets from the second on begin.
    """

    config: Numeric
    fill: float
    centre: float
    spread: float
    edges: np.ndarray

    @property
    def output(self) -> Output:
        """A number, or ids below the number of buckets."""
        return Output(self.config.kind, size=self.config.buckets if self.config.scale == "quantile" else 0)

    def apply(self, column: pa.Array) -> pa.Array:
        """See `Fitted.apply`."""
        numbers = _numbers(column)
        numbers = np.clip(np.where(np.isnan(numbers), self.fill, numbers), -LARGEST, LARGEST)
        if self.config.scale == "quantile":
            return pa.array(np.searchsorted(self.edges, numbers, side="right"), pa.int64())
        if self.config.scale == "log":
            numbers = _log(numbers)
        with np.errstate(over="ignore"):
            scaled = (numbers - self.centre) / self.spread
        limits = (0.0, 1.0) if self.config.scale == "min-max" else (-LARGEST, LARGEST)
        return pa.array(np.clip(scaled, *limits).astype(np.float32))

    def to_json(self) -> Json:
        """The scale."""
        return {"fill": self.fill, "centre": self.centre, "spread": self.spread, "edges": self.edges.tolist()}

    @classmethod
    def from_json(cls, config: Any, learnt: Json) -> Fitted:
        """A scale from its numbers."""
        fill, centre, spread = (float(learnt[key]) for key in ("fill", "centre", "spread"))
        return cls(config, fill, centre, spread, np.array(learnt["edges"], np.float64))


def _numbers(column: pa.Array) -> np.ndarray:
    return np.clip(as_numbers(column), -LARGEST, LARGEST)


def _log(numbers: np.ndarray) -> np.ndarray:
    """log(1 + x), below 0 that of 0. By the C library: NumPy's own differs in the last bit from machine to machine."""
    return pc.log1p(pa.array(np.maximum(numbers, 0.0))).to_numpy(zero_copy_only=False)
