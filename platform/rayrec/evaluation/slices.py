"""Accuracy of groups: who is served well, and who is not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from rayrec.artifacts import Json
from rayrec.evaluation.full_ranking import RankedUsers
from rayrec.metrics.ranking import METRICS, parse_metric

LARGEST_SLICES = 20
"""Groups shown of a feature of users; the others are one."""


def accuracy(ranks: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Each user's value of metrics such as ``ndcg@10``: ``[U, T]`` int64 ranks to ``[U]`` float64 each."""
    return {name: METRICS[metric](ranks, k) for name in names for metric, k in [parse_metric(name)]}


def by_history_length(ranked: RankedUsers, bounds: Sequence[int], names: Sequence[str]) -> Json:
    """By the number of events before the held-out ones."""
    slices = {}
    for low, high in pairwise([-1, 0, *sorted(bounds), np.inf]):
        inside = (ranked.past_lengths > low) & (ranked.past_lengths <= high)
        label = f">{int(low)}" if np.isinf(high) else f"{int(low) + 1}-{int(high)}" if high else "0"
        slices[label] = _of(ranked.ranks[inside], names)
    return _with_users(slices)


def by_popularity(ranked: RankedUsers, popularity: np.ndarray, names: Sequence[str]) -> Json:
    """By how popular the held-out item is; a user with items in several groups counts in each, with those items.

    ``head``, ``middle`` and ``tail`` are the items that, the most popular first, take the first, second and last third
    of the training events.

    Args:
        ranked: The users.
        popularity: ``[V + 1]`` int64, training events of each item row.
        names: The metrics.
    """
    order = np.argsort(-popularity[1:], kind="stable") + 1
    before = np.cumsum(popularity[order]) - popularity[order]
    group = np.zeros(len(popularity), dtype=np.int64)
    group[order] = np.minimum(3 * before // max(1, popularity[1:].sum()), 2)
    slices = {}
    for number, label in enumerate(("head", "middle", "tail")):
        ranks = np.where((group[ranked.targets] == number) & (ranked.ranks > 0), ranked.ranks, 0)
        slices[label] = _of(ranks[(ranks > 0).any(axis=1)], names) | {"items": int((group[1:] == number).sum())}
    return _with_users(slices)


def by_group(ranked: RankedUsers, groups: np.ndarray, names: Sequence[str]) -> Json:
    """By the group of each user of the view (``[U]`` words), the largest groups first."""
    mine = groups[ranked.users]
    words, counts = np.unique(mine, return_counts=True)
    shown = words[np.argsort(-counts, kind="stable")[:LARGEST_SLICES]]
    slices = {str(word): _of(ranked.ranks[mine == word], names) for word in shown}
    others = ~np.isin(mine, shown)
    return _with_users({**slices, f"({len(words) - len(shown):,} others)": _of(ranked.ranks[others], names)})


def _of(ranks: np.ndarray, names: Sequence[str]) -> Json:
    means = {name: float(values.mean()) for name, values in accuracy(ranks, names).items()} if len(ranks) else {}
    return {"users": len(ranks), **means}


def _with_users(slices: Json) -> Json:
    return {label: values for label, values in slices.items() if values["users"]}
