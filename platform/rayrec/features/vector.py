"""A dense vector given with each row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

from rayrec.features.base import FeatureConfig, Fitted, Output, Statistics
from rayrec.features.lists import as_vectors


@dataclass(frozen=True, kw_only=True)
class Vector(FeatureConfig):
    """A dense vector given with each row: a list of numbers, or text with one between brackets or spaces."""

    kind: Literal["vector"] = "vector"
    dimension: int = field(metadata={"ge": 1, "le": 65_536, "description": "How many numbers."})

    def update(self, column: pa.Array, statistics: Statistics) -> None:
        """Nothing is learnt."""

    def fitted(self, statistics: Statistics) -> FittedVector:
        """The same for all data."""
        return FittedVector(self)


@dataclass(frozen=True)
class FittedVector(Fitted):
    """A dense vector: fixed_size_list<float32>; zeros when missing, of another length or not finite."""

    config: Vector

    @property
    def output(self) -> Output:
        """So many numbers."""
        return Output(self.config.kind, dimension=self.config.dimension)

    def apply(self, column: pa.Array) -> pa.Array:
        """See `Fitted.apply`."""
        vectors = as_vectors(column, self.config.dimension)
        return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.config.dimension)
