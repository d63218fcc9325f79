"""The best k of many scores, the same whatever the runtime: numpy to answer requests, torch to evaluate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def top_k(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best ``k`` columns of each row, equal scores in the order of their columns.

    Args:
        scores: ``[B, V]`` float32; minus infinity is never returned.
        k: How many.

    Returns:
        Columns ``[B, k]`` int64 and their scores ``[B, k]`` float32; where fewer are left, column 0 and minus infinity.

    Raises:
        ValueError: A score is NaN and would be among the best.

    Example::

        >>> top_k(np.array([[0.1, 0.9, 0.9]], np.float32), 2)[0]
        array([[1, 2]])
    """
    columns = np.zeros((len(scores), k), dtype=np.int64)
    values = np.full((len(scores), k), -np.inf, dtype=np.float32)
    kept = min(k, scores.shape[1])
    if not kept or not len(scores):
        return columns, values
    best, each = _best_columns(scores, kept), np.arange(len(scores))[:, None]
    found = scores[each, best]
    order = np.argsort(-found, axis=1, kind="stable")
    values[:, :kept] = found[each, order]
    columns[:, :kept] = np.where(values[:, :kept] > -np.inf, best[each, order], 0)
    return columns, values


def _best_columns(scores: np.ndarray, k: int) -> np.ndarray:
    """The columns of the best ``k`` of each row, ascending: ``[B, k]`` int64."""
    # The k-th best is found in linear time; of those tied with it, the first columns fill the places left.
    limits = np.partition(scores, -k, axis=1)[:, -k]
    rows, columns = np.divmod(np.flatnonzero(scores >= limits[:, None]), scores.shape[1])
    if len(rows) > len(scores) * k:
        tied = scores[rows, columns] == limits[rows]
        places = k - np.bincount(rows[~tied], minlength=len(scores))
        ties = np.cumsum(tied)
        ties_before = np.concatenate([[0], ties])[np.searchsorted(rows, np.arange(len(scores)))]
        columns = columns[~tied | (ties - ties_before[rows] <= places[rows])]
    if len(columns) != len(scores) * k:
        raise ValueError("scores hold NaN, which is neither better nor worse than another score")
    return columns.reshape(-1, k)


def top_k_tensor(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`top_k` of a tensor, on its device.

    Args:
        scores: ``[B, V]`` float32 without NaN; minus infinity is never returned.
        k: How many.

    Returns:
        Columns ``[B, k]`` int64 and their scores ``[B, k]``; where fewer are left, column 0 and minus infinity.
    """
    kept = min(k, scores.shape[1])
    columns = scores.new_zeros((len(scores), k)).long()
    values = scores.new_full((len(scores), k), -float("inf"))
    if not kept:
        return columns, values
    # One more than asked for shows whether the last place is tied; which of the tied torch takes is left open.
    best, where = scores.topk(min(kept + 1, scores.shape[1]))
    if kept < scores.shape[1]:
        tied = ((best[:, kept - 1] == best[:, kept]) & (best[:, kept] > -float("inf"))).nonzero()[:, 0]
        where[tied, :kept] = _first_columns(scores[tied], best[tied, kept - 1, None], kept)
    ascending = where[:, :kept].sort(dim=1).values
    values[:, :kept], order = scores.gather(1, ascending).sort(dim=1, descending=True, stable=True)
    columns[:, :kept] = ascending.gather(1, order).masked_fill(values[:, :kept] == -float("inf"), 0)
    return columns, values


def _first_columns(scores: torch.Tensor, limits: torch.Tensor, k: int) -> torch.Tensor:
    """The columns of all above the limit, which are fewer than ``k``, and of the first at it: ``[B, k]`` int64."""
    import torch

    earliness = torch.arange(scores.shape[1], 0, -1, device=scores.device, dtype=torch.float32)
    at_or_below = torch.where(scores == limits, earliness, -torch.inf)
    return torch.where(scores > limits, torch.inf, at_or_below).topk(k).indices
