"""The best k of many scores, the same whatever the runtime."""

from __future__ import annotations

import numpy as np


def top_k(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best ``k`` columns of each row, equal scores in the order of their columns.

    Args:
        scores: ``[B, V]`` float32; minus infinity is never returned.
        k: How many.

    Returns:
        Columns ``[B, k]`` int64 and their scores ``[B, k]`` float32; where fewer are left, column 0 and minus infinity.

    Example::

        >>> top_k(np.array([[0.1, 0.9, 0.9]], np.float32), 2)[0]
        array([[1, 2]])
    """
    columns = np.zeros((len(scores), k), dtype=np.int64)
    values = np.full((len(scores), k), -np.inf, dtype=np.float32)
    kept = min(k, scores.shape[1])
    if not kept:
        return columns, values
    # The k-th best is found in linear time; everything tied with it stays in, so that columns break ties.
    limits = np.partition(scores, -kept, axis=1)[:, -kept]
    for row, limit in enumerate(limits):
        candidates = np.flatnonzero((scores[row] >= limit) & (scores[row] > -np.inf))
        best = candidates[np.argsort(-scores[row, candidates], kind="stable")[:k]]
        columns[row, : len(best)] = best
        values[row, : len(best)] = scores[row, best]
    return columns, values
