"""Full ranking: every held-out event is ranked among all items, never among a sample of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rayrec.features.histories import Histories, pad
from rayrec.inference.top_k import top_k
from rayrec.metrics.ranking import rank_targets

ScoreFunction = Callable[[np.ndarray], np.ndarray]
"""``[B, L]`` int64 histories, left-padded with 0, to ``[B, V + 1]`` float32 scores."""


@dataclass(frozen=True)
class HeldOut:
    """Users with their past and what they did next.

    Attributes:
        past: What the model may see of each user, and what is removed from the ranking when seen items are.
        future: The held-out events of the same users; none is empty.
    """

    past: Histories
    future: Histories

    def part(self, rank: int, size: int) -> HeldOut:
        """Every ``size``-th user from ``rank`` on."""
        users = range(rank, len(self.past), size)
        return HeldOut(Histories.of(self.past[u] for u in users), Histories.of(self.future[u] for u in users))


@dataclass(frozen=True)
class RankedUsers:
    """What a model did for each user.

    Attributes:
        ranks: ``[U, T]`` int64, the rank of each held-out item; 0 is padding.
        recommended: ``[U, K]`` int64 item rows, best first; 0 is padding.
        past_lengths: ``[U]`` int64, events of the user before the held-out ones.
    """

    ranks: np.ndarray
    recommended: np.ndarray
    past_lengths: np.ndarray


def rank_users(
    score: ScoreFunction, held_out: HeldOut, max_length: int, top: int, exclude_seen: bool = True, batch_size: int = 256
) -> RankedUsers:
    """Rank all items for every user.

    An item held out twice counts once. With ``exclude_seen``, a held-out item that the user already had cannot be
    recommended by anybody and is no target; a user left without a target is left out.

    Args:
        score: The model.
        held_out: The users.
        max_length: How many of the latest events the model reads.
        top: K, how many recommendations to keep of each user.
        exclude_seen: Remove the items of the past from the ranking.
        batch_size: Users scored at a time.
    """
    targets = [_targets(held_out, user, exclude_seen) for user in range(len(held_out.past))]
    users = np.array([user for user, items in enumerate(targets) if len(items)], dtype=np.int64)
    width = max((len(items) for items in targets), default=1) or 1
    ranks = np.zeros((len(users), width), dtype=np.int64)
    recommended = np.zeros((len(users), top), dtype=np.int64)
    for start in range(0, len(users), batch_size):
        chunk = users[start : start + batch_size]
        pasts = [held_out.past[user] for user in chunk]
        scores = score(pad(pasts, max_length))
        excluded = _excluded(pasts, scores.shape, exclude_seen)
        ranks[start : start + len(chunk)] = rank_targets(scores, _padded(targets, chunk, width), excluded)
        recommended[start : start + len(chunk)] = top_k(np.where(excluded, -np.inf, scores), top)[0]
    return RankedUsers(ranks, recommended, held_out.past.lengths[users])


def _targets(held_out: HeldOut, user: int, exclude_seen: bool) -> np.ndarray:
    targets = np.unique(held_out.future[user])
    return np.setdiff1d(targets, held_out.past[user]) if exclude_seen else targets


def _padded(targets: list[np.ndarray], users: np.ndarray, width: int) -> np.ndarray:
    """``[B, width]`` int64, padded with -1 as `rank_targets` wants it."""
    padded = np.full((len(users), width), -1, dtype=np.int64)
    for row, user in zip(padded, users, strict=True):
        row[: len(targets[user])] = targets[user]
    return padded


def _excluded(pasts: list[np.ndarray], shape: tuple[int, ...], exclude_seen: bool) -> np.ndarray:
    """``[B, V + 1]`` bool: padding, and what the user already had."""
    excluded = np.zeros(shape, dtype=bool)
    excluded[:, 0] = True
    if exclude_seen:
        for row, past in zip(excluded, pasts, strict=True):
            row[past] = True
    return excluded
