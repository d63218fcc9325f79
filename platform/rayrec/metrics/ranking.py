"""From scores to ranks, and from ranks to accuracy metrics.

Every metric takes ``ranks`` (int64 [U, T]: the 1-based rank of each of a user's targets, 0 = padding) and a
cut-off ``k >= 1``, and returns float64 [U]. Relevance is binary. In the formulas of one user, ``R`` is the number of
targets (entries that are not padding) and a *hit* is a target of rank at most ``k``. A user without targets scores 0.

With one target per user (leave-one-out) recall equals the hit rate, MAP equals MRR, and the ideal DCG is 1.
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

UNREACHABLE_RANK = int(np.iinfo(np.int32).max)
"""The rank of an excluded target: beyond every cut-off, yet small enough for int64 arithmetic on it."""


def rank_targets(scores: npt.NDArray[np.float32], targets: IntArray, excluded: BoolArray | None = None) -> IntArray:
    """Rank each user's targets over the whole catalogue, ties counting against the model.

    ``rank = 1 + #(other candidates with score >= the target's score)``, where a candidate is any item that is not
    excluded, the user's other targets included. Of several tied targets of one user each takes its own rank: all tied
    non-targets come first, then the targets in their order in ``targets``. So a model that scores everything alike
    cannot look good by accident (Krichene & Rendle, KDD 2020, on why to rank over the whole catalogue; Sun et al.,
    ACL 2020, on why the place among ties must not favour the target).

    Args:
        scores: float32 [B, V], higher is better; minus infinity is a score like any other. A column that is no item
            (such as a padding row of the catalogue) is a candidate too unless ``excluded``.
        targets: int64 [B, T], columns of ``scores``, distinct within a user, padded with -1 anywhere in the row.
        excluded: bool [B, V], items that are no candidates (such as those seen in training); none by default.

    Returns:
        int64 [B, T]: ranks from 1 to V, 0 where ``targets`` is padded. A target that is itself excluded gets
        ``UNREACHABLE_RANK``: a relevant item that no cut-off reaches, so it still lowers recall.

    Raises:
        ValueError: a score is NaN, shapes disagree, or a target is repeated or no column of ``scores``.

    The cost is one pass over V per target, in memory of order B * V, never B * T * V.

    >>> rank_targets(np.array([[0.5, 0.9, 0.5, 0.1]], dtype=np.float32), np.array([[0, 3, -1]]))
    array([[3, 4, 0]])
    """
    if excluded is None:
        excluded = np.zeros(scores.shape, dtype=np.bool_)
    _check_rankable(scores, targets, excluded)
    present = targets >= 0
    users = np.arange(len(targets))[:, None]
    own = scores[users, targets]
    reachable = present & ~excluded[users, targets]
    ranks = np.where(present, UNREACHABLE_RANK, 0).astype(np.int64)
    candidate = ~excluded
    for user, column in np.argwhere(reachable):
        ranks[user, column] = np.count_nonzero((scores[user] >= own[user, column]) & candidate[user])
    return ranks - _tied_targets_behind(own, reachable)


def _check_rankable(scores: npt.NDArray[np.float32], targets: IntArray, excluded: BoolArray) -> None:
    if scores.ndim != 2 or targets.ndim != 2 or len(targets) != len(scores):
        msg = f"scores [B, V] and targets [B, T] do not fit: {scores.shape} and {targets.shape}"
        raise ValueError(msg)
    if excluded.shape != scores.shape or excluded.dtype != np.bool_:
        msg = f"excluded must be bool {scores.shape} like scores, got {excluded.dtype} {excluded.shape}"
        raise ValueError(msg)
    if np.isnan(scores).any():
        msg = f"{np.isnan(scores).any(axis=1).sum()} of {len(scores)} users have NaN scores; NaN has no rank"
        raise ValueError(msg)
    if ((targets < -1) | (targets >= scores.shape[1])).any():
        msg = f"targets must be -1 (padding) or columns 0..{scores.shape[1] - 1} of scores"
        raise ValueError(msg)
    in_order = np.sort(targets, axis=1)
    if ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).any():
        msg = "a user has the same target twice; relevance is a set, so pass each target once"
        raise ValueError(msg)


def _tied_targets_behind(own: npt.NDArray[np.float32], reachable: BoolArray) -> IntArray:
    """Count, for each target, the reachable targets of its user with the same score that stand behind it.

    ``own`` is float32 [B, T], ``reachable`` bool [B, T]; the answer is int64 [B, T], 0 where not reachable.
    """
    behind = np.zeros(own.shape, dtype=np.int64)
    for column in range(own.shape[1]):
        tied = (own[:, column + 1 :] == own[:, column, None]) & reachable[:, column + 1 :]
        behind[:, column] = tied.sum(axis=1)
    return np.where(reachable, behind, 0)


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
    if match and match[1] in METRICS:
        return match[1], int(match[2])
    msg = f"unknown metric {name!r}, did you mean {_nearest_metric(name)!r}? Metrics: {', '.join(METRICS)}, each @k"
    raise ValueError(msg)


def _nearest_metric(name: str) -> str:
    stem = re.split(r"[@\d]", name.lower(), maxsplit=1)[0]
    keys = {spelling: key for key, metric in METRICS.items() for spelling in (key, metric.__name__)}
    nearest = difflib.get_close_matches(stem, keys, n=1, cutoff=0.0)[0]
    digits = re.search(r"[1-9][0-9]*$", name)
    return f"{keys[nearest]}@{digits[0] if digits else 10}"
