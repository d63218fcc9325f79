"""Quantiles of many numbers in bounded memory, the same in whatever order the numbers come."""

from __future__ import annotations

import numpy as np
import polars as pl

from rayrec.features.counts import Counts

DROPPED = 40
"""Bits of a double that are rounded away: 13 significant ones stay."""

LARGEST = float.fromhex("0x1.fffp+1023")
"""The largest double of 13 bits."""


def rounded(numbers: np.ndarray) -> pl.Series:
    """The keys that `Counts` counts: ``[N]`` Int32, each a float64 rounded to 13 significant bits.

    A number is off by at most ``2**-13`` of itself, and exact when it has no more bits, as whole numbers up to 8192
    have. There are no more than ``2**24`` keys; columns of the real world have some thousands.
    """
    bits = (np.clip(numbers, -LARGEST, LARGEST) + 0.0).view(np.int64)  # + 0.0: there is one zero
    return pl.Series((bits + (1 << (DROPPED - 1)) >> DROPPED).astype(np.int32))


class Quantiles:
    """Quantiles from counts of `rounded` numbers, between two of them by linear interpolation (as NumPy's default)."""

    def __init__(self, counts: Counts) -> None:
        frame = counts.frame()
        values = (frame["key"].to_numpy().astype(np.int64) << DROPPED).view(np.float64)
        order = np.argsort(values)
        self._values, self._ends = values[order], np.cumsum(frame["count"].to_numpy()[order])

    def __call__(self, share: float) -> float:
        """The value that ``share`` of the numbers are not above; 0 when there are none."""
        if not len(self._ends):
            return 0.0
        position = share * (int(self._ends[-1]) - 1)
        below = int(position)
        first, second = self._values[np.searchsorted(self._ends, [below, min(below + 1, self._ends[-1] - 1)], "right")]
        weight = position - below
        return float(first * (1 - weight) + second * weight)
