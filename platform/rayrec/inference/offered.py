"""Which items a request may be answered with."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

NO_ROWS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Offered:
    """Some of the items of a model, by their rows.

    Attributes:
        allowed: ``[V + 1]`` bool, never padding. It must not be changed.
    """

    allowed: np.ndarray

    @classmethod
    def everything(cls, num_items: int) -> Offered:
        """All items."""
        allowed = np.ones(num_items + 1, bool)
        allowed[0] = False
        return cls(allowed)

    @cached_property
    def rows(self) -> np.ndarray:
        """``[n]`` int64, rising."""
        return np.flatnonzero(self.allowed)

    @cached_property
    def count(self) -> int:
        """How many there are."""
        return int(np.count_nonzero(self.allowed))

    @cached_property
    def bits(self) -> np.ndarray:
        """``[(V + 8) // 8]`` uint8, a bit a row, the lowest first."""
        return np.packbits(self.allowed, bitorder="little")

    def also(self, other: Offered) -> Offered:
        """What is offered by both."""
        return Offered(self.allowed & other.allowed)

    def changed(self, rows: np.ndarray, allowed: np.ndarray) -> Offered:
        """The same but for some rows, ``[n]`` int64, which are allowed or not: ``[n]`` bool."""
        copy = self.allowed.copy()
        copy[rows] = allowed
        copy[0] = False
        return Offered(copy)


@dataclass(frozen=True)
class Limits:
    """Which items one request may be answered with.

    Attributes:
        within: The items that are offered to requests like it.
        but: ``[n]`` int64 rows, those it must not be answered with all the same; few, such as what the user had.
    """

    within: Offered
    but: np.ndarray = field(default_factory=lambda: NO_ROWS)

    def allows(self, rows: np.ndarray) -> np.ndarray:
        """Which rows may be in the answer: bool, of the same shape."""
        allowed: np.ndarray = self.within.allowed[rows]
        return allowed & ~np.isin(rows, self.but) if len(self.but) else allowed

    def among(self, rows: np.ndarray) -> np.ndarray:
        """Those that may be in the answer, in their order."""
        return rows[self.allows(rows)]

    def hide(self, scores: np.ndarray) -> None:
        """Minus infinity for what must not be in the answer, in ``[V + 1]`` float32 scores."""
        scores[~self.within.allowed] = -np.inf
        scores[self.but] = -np.inf

    @property
    def count(self) -> int:
        """How many items may be in the answer."""
        return self.within.count - int(np.count_nonzero(self.within.allowed[np.unique(self.but)]))
