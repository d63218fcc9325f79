"""Sums that are exact, so that neither their order nor how rows are split changes a digit of a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

HALF = 27
"""Bits of the lower half of a 53-bit mantissa, and of the halves of its square."""

LOW = (1 << HALF) - 1
UNIT = 1073 + 53
"""Every double is a whole multiple of ``2**-UNIT``: so much the smallest exponent and 53 bits need."""


class Sums:
    """Count, sum, sum of squares, least and greatest of many doubles.

    The sums are Python integers, in units of ``2**-UNIT`` and of its square: about 300 and 600 bytes at most.
    """

    def __init__(self) -> None:
        self.count = self.total = self.squares = 0
        self.low, self.high = math.inf, -math.inf

    def add(self, numbers: np.ndarray) -> None:
        """Add ``[N]`` finite float64, N at most ``2**26``: so many halves of 27 bits a double sums without rounding."""
        if not len(numbers):
            return
        fractions, exponents = np.frexp(numbers)
        whole = np.ldexp(fractions, 53).astype(np.int64)
        places = exponents + 1073
        high, low = whole >> HALF, whole & LOW
        self.count += len(numbers)
        self.total += _sum(places, [(whole, 0)], scale=1)
        self.squares += _sum(places, [(high * high, 2 * HALF), (high * low, HALF + 1), (low * low, 0)], scale=2)
        self.low, self.high = min(self.low, float(numbers.min())), max(self.high, float(numbers.max()))

    def merge(self, other: Sums) -> None:
        """Add what the other has seen."""
        self.count += other.count
        self.total += other.total
        self.squares += other.squares
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def mean(self) -> float:
        """The nearest double to the true mean; 0 of nothing."""
        return float(Fraction(self.total, self.count << UNIT)) if self.count else 0.0

    @property
    def deviation(self) -> float:
        """The population's standard deviation, to 64 bits before it is rounded to a double; 0 of nothing."""
        if not self.count:
            return 0.0
        root = math.isqrt((self.count * self.squares - self.total**2) << 128)
        return float(Fraction(root, self.count << (UNIT + 64)))

    def to_json(self) -> list[str]:
        """All of it as texts: JSON has neither integers of this size nor infinities."""
        return [hex(self.count), hex(self.total), hex(self.squares), self.low.hex(), self.high.hex()]

    @classmethod
    def from_json(cls, texts: Sequence[str]) -> Sums:
        """What `to_json` wrote."""
        sums = cls()
        sums.count, sums.total, sums.squares = (int(text, 16) for text in texts[:3])
        sums.low, sums.high = (float.fromhex(text) for text in texts[3:])
        return sums


def _sum(places: np.ndarray, terms: Sequence[tuple[np.ndarray, int]], scale: int) -> int:
    """The exact sum of ``values * 2**shift * 2**(scale * places)`` over all terms ``(values, shift)``."""
    total = 0
    for values, shift in terms:
        for half, more in ((values >> HALF, HALF), (values & LOW, 0)):
            sums = np.bincount(places, weights=half)
            for place in np.flatnonzero(sums):
                total += int(sums[place]) << (scale * int(place) + shift + more)
    return total
