"""What every kind of feature is: a config, what is gathered for it in one pass, and its fitted form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa

from rayrec.features.counts import Counts
from rayrec.features.sums import Sums

Json = dict[str, Any]


@dataclass
class Statistics:
    """What is gathered about one column; each kind adds to what it needs, the rest stays empty.

    Attributes:
        words: Counts of words; memory is that of the distinct ones, whatever ``max_size`` keeps in the end.
        values: Counts of numbers rounded to 13 bits, for quantiles.
        sums: Of the numbers.
        logs: Of the logarithms of the numbers.
    """

    words: Counts = field(default_factory=lambda: Counts(pl.String))
    values: Counts = field(default_factory=lambda: Counts(pl.Int32))
    sums: Sums = field(default_factory=Sums)
    logs: Sums = field(default_factory=Sums)

    def merge(self, other: Statistics) -> None:
        """Add what the other has gathered."""
        self.words.merge(other.words)
        self.values.merge(other.values)
        self.sums.merge(other.sums)
        self.logs.merge(other.logs)


@dataclass(frozen=True)
class Output:
    """What a feature gives to a model.

    Attributes:
        kind: Of the feature.
        size: Of the vocabulary: ids are below it. 0 where the values are no ids.
        dimension: Numbers a row: of a vector, or parts of a moment.
        parts: Of a moment, in their order.
    """

    kind: str
    size: int = 0
    dimension: int = 1
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FeatureConfig(ABC):
    """What the recipe says of a feature."""

    kind: str
    column: str | None = field(default=None, metadata={"description": "By default named as the feature."})

    @abstractmethod
    def update(self, column: pa.Array, statistics: Statistics) -> None:
        """Gather what this kind needs from ``[N]`` further rows, N at most ``2**26``."""

    @abstractmethod
    def fitted(self, statistics: Statistics) -> Fitted:
        """The feature as it is once all rows are seen."""


@dataclass(frozen=True)
class Fitted(ABC):
    """A fitted feature."""

    config: FeatureConfig

    @property
    @abstractmethod
    def output(self) -> Output:
        """What it gives to a model."""

    @abstractmethod
    def apply(self, column: pa.Array) -> pa.Array:
        """``[N]`` rows of any type to ``[N]`` values. Each row by itself; never raises."""

    def to_json(self) -> Json:
        """What was learnt, as `from_json` reads it."""
        return {}

    @classmethod
    def from_json(cls, config: Any, learnt: Json) -> Fitted:
        """A feature from its config and what was learnt."""
        return cls(config, **learnt)
