"""Parts of a moment, in UTC."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from rayrec.features.base import FeatureConfig, Fitted, Output, Statistics
from rayrec.features.times import DAY, as_seconds


@dataclass(frozen=True, kw_only=True)
class Timestamp(FeatureConfig):
    """Parts of a moment."""

    kind: Literal["timestamp"] = "timestamp"
    column: str | None = field(
        default=None, metadata={"description": "By default named as the feature; `timestamp` is the event's own."}
    )
    parts: tuple[Literal["hour", "weekday", "day", "month", "year"], ...] = field(
        default=("hour", "weekday"), metadata={"min_length": 1, "description": "Which."}
    )

    def update(self, column: pa.Array, statistics: Statistics) -> None:
        """Nothing is learnt."""

    def fitted(self, statistics: Statistics) -> FittedTimestamp:
        """The same for all data."""
        return FittedTimestamp(self)


@dataclass(frozen=True)
class FittedTimestamp(Fitted):
    """Parts of a moment: fixed_size_list<int64>; hour 0-23, weekday 0 = Monday, day 1-31, month 1-12; -1 is missing."""

    config: Timestamp

    @property
    def output(self) -> Output:
        """A number for each part."""
        return Output(self.config.kind, dimension=len(self.config.parts), parts=self.config.parts)

    def apply(self, column: pa.Array) -> pa.Array:
        """See `Fitted.apply`."""
        seconds, valid = as_seconds(column)
        seconds = np.where(valid, seconds, 0)
        days = seconds // DAY
        months = days.astype("datetime64[D]").astype("datetime64[M]")
        parts = {
            "hour": seconds // 3600 % 24,
            "weekday": (days + 3) % 7,  # day 0, 1970-01-01, was a Thursday
            "day": days - months.astype("datetime64[D]").astype(np.int64) + 1,
            "month": months.astype(np.int64) % 12 + 1,
            "year": months.astype(np.int64) // 12 + 1970,
        }
        chosen = np.stack([np.where(valid, parts[part], -1) for part in self.config.parts], axis=1)
        return pa.FixedSizeListArray.from_arrays(pa.array(chosen.reshape(-1), pa.int64()), chosen.shape[1])
