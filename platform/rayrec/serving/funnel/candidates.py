"""What may be shown: the best items of several sources, each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FUSED = 60
"""What reciprocal rank fusion adds to a place (Cormack, Clarke & Buettcher, SIGIR 2009)."""


@dataclass(frozen=True)
class Gathered:
    """Candidates of a batch of requests.

    Attributes:
        rows: ``[B, C]`` int64 item rows; 0 where there are fewer.
        places: By source, ``[B, C]`` int64: the place of each candidate in it, from 1; 0 where it does not have it.
    """

    rows: np.ndarray
    places: Mapping[str, np.ndarray]

    def by_ranks(self) -> np.ndarray:
        """The sum over the sources of the inverse of each place: ``[B, C]`` float64."""
        found = np.zeros(self.rows.shape)
        for places in self.places.values():
            found += np.where(places > 0, 1 / (FUSED + places), 0)
        return found

    def sources(self, request: int, candidate: int) -> dict[str, int]:
        """Which sources a candidate comes from, with its place in each."""
        found = {name: int(places[request, candidate]) for name, places in self.places.items()}
        return {name: place for name, place in found.items() if place}


def gather(first: str, best: np.ndarray, others: Sequence[Mapping[str, np.ndarray]]) -> Gathered:
    """Put candidates together.

    Args:
        first: The name of the first source.
        best: ``[B, K]`` int64, the rows that it gives to each request, best first; 0 where it has fewer.
        others: Of each request, by the name of the source, the rows that others give, best first.
    """
    known = np.where(best > 0, np.arange(1, best.shape[1] + 1), 0)
    if not any(others):
        return Gathered(best, {first: known})
    columns = [_columns(mine, theirs) for mine, theirs in zip(best.tolist(), others, strict=True)]
    width = max([best.shape[1], *(1 + max(found.values(), default=0) for found in columns)])
    rows = np.zeros((len(best), width), np.int64)
    names = list(dict.fromkeys(name for theirs in others for name in theirs))
    places = {name: np.zeros(rows.shape, np.int64) for name in [first, *names]}
    places[first][:, : best.shape[1]] = known
    for request, (found, theirs) in enumerate(zip(columns, others, strict=True)):
        rows[request, [*found.values()]] = [*found]
        for name, given in theirs.items():
            at = [found[row] for row in given.tolist()]
            places[name][request, at] = np.arange(1, len(at) + 1)
    rows[:, : best.shape[1]] = best
    return Gathered(rows, places)


def _columns(mine: list[int], theirs: Mapping[str, np.ndarray]) -> dict[int, int]:
    """The column of each row: those of the first source where they are, the others behind them."""
    found = {row: column for column, row in enumerate(mine) if row}
    following = len(mine)
    for given in theirs.values():
        for row in given.tolist():
            if row not in found:
                found[row] = following
                following += 1
    return found
