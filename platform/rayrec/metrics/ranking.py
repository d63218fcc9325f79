"""From ranks to accuracy metrics.

Every metric takes ``ranks`` (int64 [U, T]: the 1-based rank of each of a user's targets, 0 = padding) and a
cut-off ``k >= 1``, and returns float64 [U]. Relevance is binary. In the formulas of one user, ``R`` is the number of
targets (entries that are not padding) and a *hit* is a target of rank at most ``k``. A user without targets scores 0.

With one target per user (leave-one-out) recall equals the hit rate, MAP equals MRR, and the ideal DCG is 1.
`rayrec.metrics.ranks` makes the ranks.
"""

import difflib
import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Metric = Callable[[IntArray, int], FloatArray]

LARGEST_CUTOFF = 10_000
"""Nobody looks at more recommendations; memory is kept for as many of every user."""

UNREACHABLE_RANK = int(np.iinfo(np.int32).max)
"""The rank of an excluded target: beyond every cut-off, yet small enough for int64 arithmetic on it."""


def hit_rate(ranks: IntArray, k: int) -> FloatArray:
    """HR@k: 1 if any target is in the first k, else 0. int64 [U, T] -> float64 [U].

    Also called success@k (trec_eval); ranx and RecBole agree. Where a paper means the *share of targets hit* by it,
    that is ``recall`` here.

    >>> hit_rate(np.array([[3, 12], [11, 0]]), k=10)
    array([1., 0.])
    """
    return np.asarray(_is_hit(ranks, k).any(axis=1), dtype=np.float64)


def recall(ranks: IntArray, k: int) -> FloatArray:
    """Recall@k = #hits / R. int64 [U, T] -> float64 [U].

    The textbook normaliser R, as in ranx, trec_eval and RecBole. The Mult-VAE line of papers (Liang et al., WWW 2018)
    divides by min(k, R), which is larger where a user has more than k targets.

    >>> recall(np.array([[3, 12], [11, 0]]), k=10)
    array([0.5, 0. ])
    """
    return _hits(ranks, k) / np.maximum(_relevant(ranks), 1)


def precision(ranks: IntArray, k: int) -> FloatArray:
    """Precision@k = #hits / k. int64 [U, T] -> float64 [U].

    Always divided by k, also where a user has fewer than k targets or the catalogue fewer than k items (as in ranx
    and trec_eval), so its maximum is min(k, R) / k.

    >>> precision(np.array([[3, 12], [11, 0]]), k=10)
    array([0.1, 0. ])
    """
    return _hits(ranks, k) / k


def f1(ranks: IntArray, k: int) -> FloatArray:
    """F1@k = 2 * #hits / (k + R), the harmonic mean of precision@k and recall@k. int64 [U, T] -> float64 [U].

    Taken per user (as in ranx) and averaged afterwards; it is not the F1 of the averaged precision and recall.

    >>> f1(np.array([[1, 12]]), k=2)
    array([0.5])
    """
    return 2 * _hits(ranks, k) / (k + _relevant(ranks))


def average_precision(ranks: IntArray, k: int) -> FloatArray:
    """AP@k = (1 / min(k, R)) * sum over hits of precision at the hit's rank. int64 [U, T] -> float64 [U].

    The i-th best hit, at rank r, adds i / r. Normalised by min(k, R), so that a perfect list scores 1 at every k (as
    in RecBole and Kaggle's MAP@k). ranx and trec_eval (``map_cut``) divide by R instead: theirs is
    ours * min(k, R) / R. Its mean over users is MAP@k.

    >>> average_precision(np.array([[4, 2, 0]]), k=5)
    array([0.5])
    """
    ordered = np.sort(np.where(_is_hit(ranks, k), ranks, UNREACHABLE_RANK), axis=1)
    ordinals = np.arange(1, ranks.shape[1] + 1)
    precisions = np.where(_is_hit(ordered, k), ordinals / ordered, 0.0)
    return np.asarray(precisions.sum(axis=1) / _most_hits(ranks, k), dtype=np.float64)


def reciprocal_rank(ranks: IntArray, k: int) -> FloatArray:
    """RR@k = 1 / (rank of the best hit), 0 without a hit. int64 [U, T] -> float64 [U].

    Its mean over users is MRR@k. trec_eval's ``recip_rank`` has no cut-off (k is the catalogue's size there).

    >>> reciprocal_rank(np.array([[8, 4], [11, 0]]), k=10)
    array([0.25, 0.  ])
    """
    best = np.where(_is_hit(ranks, k), ranks, UNREACHABLE_RANK).min(axis=1, initial=UNREACHABLE_RANK)
    return np.where(best <= k, 1 / best, 0.0)


def dcg(ranks: IntArray, k: int) -> FloatArray:
    """DCG@k = sum over hits of 1 / log2(rank + 1). int64 [U, T] -> float64 [U].

    Järvelin & Kekäläinen (TOIS 2002) with the discount log2(rank + 1) that libraries use (theirs leaves rank 1 and 2
    undiscounted). With binary relevance the exponential gain 2^rel - 1 (Burges et al., ICML 2005) is the same.

    >>> dcg(np.array([[1, 3], [11, 0]]), k=10)
    array([1.5, 0. ])
    """
    hits = _is_hit(ranks, k)
    return np.asarray((hits / np.log2(np.where(hits, ranks, 1) + 1)).sum(axis=1), dtype=np.float64)


def ndcg(ranks: IntArray, k: int) -> FloatArray:
    """NDCG@k = DCG@k / IDCG@k, with IDCG@k = sum for r = 1..min(k, R) of 1 / log2(r + 1). [U, T] -> float64 [U].

    The ideal list is cut at k too (as in ranx, trec_eval and RecBole), so a perfect list scores 1 at every k.

    >>> ndcg(np.array([[3]]), k=10)
    array([0.5])
    """
    discounts = 1 / np.log2(np.arange(2, ranks.shape[1] + 3))
    ideal = np.cumsum(discounts)[_most_hits(ranks, k) - 1]
    return np.asarray(dcg(ranks, k) / ideal, dtype=np.float64)


def _is_hit(ranks: IntArray, k: int) -> BoolArray:
    if k < 1:
        msg = f"the cut-off k must be at least 1, got {k}"
        raise ValueError(msg)
    return (ranks >= 1) & (ranks <= k)


def _hits(ranks: IntArray, k: int) -> IntArray:
    return np.asarray(_is_hit(ranks, k).sum(axis=1), dtype=np.int64)


def _relevant(ranks: IntArray) -> IntArray:
    return np.asarray((ranks >= 1).sum(axis=1), dtype=np.int64)


def _most_hits(ranks: IntArray, k: int) -> IntArray:
    """min(k, R) as int64 [U], but 1 for a user without targets: their 0 hits are then divided by something."""
    return np.clip(_relevant(ranks), 1, k)


METRICS: dict[str, Metric] = {
    "hr": hit_rate,
    "recall": recall,
    "precision": precision,
    "f1": f1,
    "map": average_precision,
    "mrr": reciprocal_rank,
    "dcg": dcg,
    "ndcg": ndcg,
}


def ranking_metrics(ranks: IntArray, ks: Sequence[int]) -> dict[str, float]:
    """Average every metric of ``METRICS`` at every cut-off over the users that have a target.

    ``ranks`` is int64 [U, T] with 0 = padding. Users without targets (rows of padding) have nothing to find, so they
    are left out of the means rather than counted as failures. Keys are metric names as ``parse_metric`` reads them.

    Raises:
        ValueError: no user has a target, or a cut-off is below 1.

    >>> ranking_metrics(np.array([[1], [4], [0]]), ks=[3])["hr@3"]
    0.5
    """
    evaluated = ranks[(ranks >= 1).any(axis=1)]
    if len(evaluated) == 0:
        msg = f"none of the {len(ranks)} users has a target, so there is no mean over users"
        raise ValueError(msg)
    return {f"{name}@{k}": float(metric(evaluated, k).mean()) for k in ks for name, metric in METRICS.items()}


def parse_metric(name: str) -> tuple[str, int]:
    """Split a metric's full name into its key in ``METRICS`` and its cut-off.

    Raises:
        ValueError: it is not ``<metric>@<k>``; the message offers the nearest name that is.

    >>> parse_metric("ndcg@10")
    ('ndcg', 10)
    """
    match = re.fullmatch(r"(\w+)@([1-9][0-9]*)", name)
    if match and match[1] in METRICS and len(match[2]) <= len(str(LARGEST_CUTOFF)) and int(match[2]) <= LARGEST_CUTOFF:
        return match[1], int(match[2])
    if match and match[1] in METRICS:
        msg = f"metric {name[:40]!r}: the largest cut-off is {LARGEST_CUTOFF:,}"
        raise ValueError(msg)
    msg = f"unknown metric {name!r}, did you mean {_nearest_metric(name)!r}? Metrics: {', '.join(METRICS)}, each @k"
    raise ValueError(msg)


def _nearest_metric(name: str) -> str:
    stem = re.split(r"[@\d]", name.lower(), maxsplit=1)[0]
    keys = {spelling: key for key, metric in METRICS.items() for spelling in (key, metric.__name__)}
    nearest = difflib.get_close_matches(stem, keys, n=1, cutoff=0.0)[0]
    digits = re.search(r"[1-9][0-9]*$", name)
    return f"{keys[nearest]}@{digits[0] if digits else 10}"
