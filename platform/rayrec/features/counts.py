"""How often each key occurs."""

from __future__ import annotations

from typing import Any

import polars as pl


class Counts:
    """A count for each distinct key; memory is of the order of their number.

    Args:
        dtype: Of the keys.
    """

    def __init__(self, dtype: Any) -> None:
        self._parts = [pl.DataFrame(schema={"key": dtype, "count": pl.Int64})]

    def add(self, keys: pl.Series) -> None:
        """Count ``[N]`` keys, none of which is null."""
        if len(keys):
            counted = keys.alias("key").value_counts(name="count")
            self._append(counted.with_columns(pl.col("count").cast(pl.Int64)))

    def merge(self, other: Counts) -> None:
        """Add what the other has counted."""
        self._append(other.frame())

    def frame(self) -> pl.DataFrame:
        """``key`` and ``count``, in the order of the keys."""
        if len(self._parts) > 1:
            self._parts = [pl.concat(self._parts).group_by("key").agg(pl.col("count").sum())]
        return self._parts[0].sort("key")

    def _append(self, part: pl.DataFrame) -> None:
        self._parts.append(part)
        # Added up only when as much has come as there was: each key is handled a few times, not once a block.
        first, *others = (part.height for part in self._parts)
        if sum(others) > max(first, 1 << 16):
            self._parts = [self.frame()]

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Counts:
        """What `frame` gave."""
        counts = cls(frame.schema["key"])
        counts._parts = [frame]
        return counts
