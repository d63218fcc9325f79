"""What a batch of requests makes of the items: all their scores at once, or the best, looked up in an index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from rayrec.inference.offered import Limits, Offered
from rayrec.inference.top_k import top_k

SCORED_SHARE = 1 / 16
"""Of the items: where a request may be answered with no more, all of them are scored."""


class Scores(Protocol):
    """Scores of the items for a batch of requests, each within its limits.

    Attributes:
        limits: Of each request.
    """

    limits: Sequence[Limits]

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best ``k`` items of each request: rows ``[B, k]`` int64 and scores ``[B, k]`` float32, as of `top_k`."""

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Scores of some items: ``[B, C]`` int64 to ``[B, C]`` float32, minus infinity for what is not allowed."""

    def allows(self, rows: np.ndarray) -> np.ndarray:
        """Which of some items, ``[n]`` int64, may be in the answer to each request: ``[B, n]`` bool."""


class DenseScores:
    """The scores of all items.

    Args:
        scores: ``[B, V + 1]`` float32, which are changed: what is not allowed becomes minus infinity.
        limits: Of each request.
    """

    def __init__(self, scores: np.ndarray, limits: Sequence[Limits]) -> None:
        self.limits = limits
        self._scores = scores
        for row, limit in zip(scores, limits, strict=True):
            limit.hide(row)

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Scores`."""
        return top_k(self._scores, k)

    def of(self, rows: np.ndarray) -> np.ndarray:
        """See `Scores`."""
        return self._scores[np.arange(len(rows))[:, None], rows]

    def allows(self, rows: np.ndarray) -> np.ndarray:
        """See `Scores`."""
        return ~np.isneginf(self._scores[:, rows])


class Source(Protocol):
    """Where candidates for the best items are looked up."""

    def candidates(self, query: np.ndarray, k: int, within: Offered) -> np.ndarray:
        """Rows of about the best ``k`` of some items for a request, ``[D]``: ``[n]`` int64, in any order.

        There may be more, and fewer: then not all that are among the best were found.
        """


class Order:
    """The source where a higher score in one column is better for everybody: candidates are the first in order.

    Args:
        scores: ``[V + 1]`` float32.
    """

    def __init__(self, scores: np.ndarray) -> None:
        self._rows = np.argsort(-scores, kind="stable")

    def candidates(self, query: np.ndarray, k: int, within: Offered) -> np.ndarray:
        """See `Source`."""
        size = k
        while True:
            found = self._rows[:size]
            found = found[within.allowed[found]]
            if len(found) >= k or size >= len(self._rows):
                return found[:k]
            size *= 4


class FoundScores:
    """The best items by a source, with their exact scores.

    Args:
        queries: ``[B, D]`` float32.
        matrix: ``[V + 1, D]`` float32, the vectors of the items.
        source: Where candidates are looked up.
        limits: Of each request.
    """

    def __init__(self, queries: np.ndarray, matrix: np.ndarray, source: Source, limits: Sequence[Limits]) -> None:
        self.limits = limits
        self._queries = queries
        self._matrix = matrix
        self._source = source

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Scores`."""
        rows, values = np.zeros((len(self.limits), k), np.int64), np.full((len(self.limits), k), -np.inf, np.float32)
        for request, (query, limits) in enumerate(zip(self._queries, self.limits, strict=True)):
            rows[request], values[request] = best_by_product(query, self._matrix, k, self._source, limits)
        return rows, values

    def of(self, rows: np.ndarray) -> np.ndarray:
        """See `Scores`."""
        found: np.ndarray = np.matmul(self._matrix[rows], self._queries[:, :, None])[:, :, 0]
        for scores, mine, limits in zip(found, rows, self.limits, strict=True):
            scores[~limits.allows(mine)] = -np.inf
        return found

    def allows(self, rows: np.ndarray) -> np.ndarray:
        """See `Scores`."""
        return np.stack([limits.allows(rows) for limits in self.limits])


def best_of(
    score: Callable[[np.ndarray | slice], np.ndarray], find: Callable[[int], np.ndarray], k: int, limits: Limits
) -> tuple[np.ndarray, np.ndarray]:
    """The best items of a request by their exact scores, among candidates; as many as there are, if there are ``k``.

    Args:
        score: Scores of some items, ``[n]`` rows to ``[n]`` float32, or of all.
        find: Gives candidates, rows of about so many of the best that are offered; not asked where few are offered.
        k: How many.
        limits: Of the request.

    Returns:
        Rows ``[k]`` int64 and scores ``[k]`` float32, as of `top_k`.
    """
    few = limits.within.count <= SCORED_SHARE * len(limits.within.allowed)
    rows = limits.among(limits.within.rows if few else find(k + len(limits.but)))
    if not few and len(rows) < min(k, limits.count):
        scores = score(slice(None))
        limits.hide(scores)
        found, values = top_k(scores[None], k)
        return found[0], values[0]
    # Equal scores go in the order of their rows, as they do where all items are scored. Row 0, of which nothing is
    # known, stands at the places that `top_k` gives where fewer are left.
    rows = np.concatenate([[0], np.sort(rows)])
    scores = score(rows)
    scores[0] = -np.inf
    places, values = top_k(scores[None], k)
    return rows[places[0]], values[0]


def best_by_product(
    query: np.ndarray, matrix: np.ndarray, k: int, source: Source, limits: Limits
) -> tuple[np.ndarray, np.ndarray]:
    """`best_of` the products of a query, ``[D]``, with the rows of a matrix, ``[V + 1, D]``."""
    return best_of(
        lambda rows: matrix[rows] @ query, lambda count: source.candidates(query, count, limits.within), k, limits
    )
