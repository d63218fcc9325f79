"""Is it luck? Intervals and tests for means over users.

All take one value per user, as the metrics of `ranking` give them, and are decided by ``seed``. Users are what is drawn
at random, so the answers are about other users of the same kind; what another seed of the *training* would change, they
do not see.

Beyond 10,000 users, users are first put into 10,000 groups at random, which are then drawn as a whole: a million users
cost little more than ten thousand.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

GROUPS = 10_000
_DRAWS = 2**21  # random numbers held at a time: 16 MB


def bootstrap_interval(values: FloatArray, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> FloatArray:
    """Confidence interval of the mean over users by the percentile bootstrap (Efron & Tibshirani 1993, chapter 13).

    Users are drawn with replacement, as many as there are, ``resamples`` times; the interval holds the middle ``level``
    of the means. Several metrics share the draws, so their intervals belong to the same imagined users.

    With more than 10,000 users it is random groups that are drawn. Groups vary as their users do, less by their size,
    so the interval is as wide as that of the users; 10,000 groups tell its width to 0.7 %, 1,000 resamples to 3 %.

    Args:
        values: [U] or [U, M]: M metrics of each user.
        level: Between 0 and 1.
        resamples: How many.
        seed: Of the draws.

    Returns:
        Low and high: float64 [2] or [2, M].

    Raises:
        ValueError: fewer than 2 users, a value that is not finite, or ``level`` not between 0 and 1.

    >>> bootstrap_interval(np.array([0.0, 1.0] * 50)).round(1)
    array([0.4, 0.6])
    """
    values = np.asarray(values, dtype=np.float64)
    _check_users(values)
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    rng = np.random.default_rng(seed)
    sums, users = _grouped(values.reshape(len(values), -1), rng)
    draws = _draws(rng, resamples, len(users))
    means = np.concatenate([(counts @ sums) / (counts @ users)[:, None] for counts in draws])
    low_high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.asarray(low_high.reshape(2, *values.shape[1:]), dtype=np.float64)


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same users.

    Attributes:
        difference: Mean of the first minus mean of the second.
        low: The difference's confidence interval begins here
        high: and ends here.
        p_value: How often two equally good models differ at least so much, in either direction.
        users: How many were compared.
        ties: Users with whom both do equally well.
    """

    difference: float
    low: float
    high: float
    p_value: float
    users: int
    ties: int


def paired_test(
    a: FloatArray, b: FloatArray, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> PairedTest:
    """Test whether two models differ on the same users, by randomisation (Smucker, Allan & Carterette, CIKM 2007).

    Were the models equally good, each user's two values might as well be swapped: the sign of their difference would be
    a coin's. The p-value is the share of ``resamples`` random assignments of signs whose mean is at least as far from
    zero as the real one, which counts as one of them, so that it is never 0 (Phipson & Smyth 2010). Neither normality
    nor the many ties of ranking metrics matter.

    With more than 10,000 users, the users of a random group share their coin. These assignments are a subgroup of all,
    and a randomisation test over a subgroup keeps its level (Hemerik & Goeman, TEST 2018).

    Args:
        a: [U], a metric of the first model for each user.
        b: [U], that of the second, the same users in the same order.
        resamples: Random assignments; the smallest p-value there can be is ``1 / (resamples + 1)``.
        seed: Of the coins and of the interval's draws.
        level: Of the difference's ``bootstrap_interval``.

    Raises:
        ValueError: shapes disagree, fewer than 2 users, or a value is not finite.

    >>> paired_test(np.full(20, 0.3), np.full(20, 0.2)).p_value < 0.001
    True
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"both models need one value per user, [U], got {a.shape} and {b.shape}")
    differences = a - b
    low, high = bootstrap_interval(differences, level, seed=seed)
    rng = np.random.default_rng(seed)
    untied = differences[differences != 0]
    sums = _grouped(untied[:, None], rng)[0][:, 0]
    # Sums that are equal on paper may differ in their last digits.
    limit = abs(sums.sum()) - 1e-12 * np.abs(sums).sum()
    coins = _coins(rng, resamples, len(sums))
    reached = sum(int((np.abs(2 * (heads @ sums) - sums.sum()) >= limit).sum()) for heads in coins)
    return PairedTest(
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        p_value=(1 + reached) / (1 + resamples),
        users=len(differences),
        ties=len(differences) - len(untied),
    )


def holm(p_values: npt.ArrayLike) -> FloatArray:
    """Adjust the p-values of a family of tests, in their order (Holm, Scandinavian Journal of Statistics 1979).

    Compare each with 0.05 as if it were alone: the chance that any model is called different that is not is then at
    most 5 %, however many are compared and however they depend on each other. The i-th smallest of m is multiplied by
    m - i + 1, but never ends below a smaller one, nor above 1.

    Args:
        p_values: [m], from 0 to 1.

    Returns:
        float64 [m].

    >>> holm([0.04, 0.01, 0.03])
    array([0.06, 0.03, 0.06])
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError("p_values must be [m] numbers from 0 to 1")
    order = np.argsort(values)
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def _check_users(values: FloatArray) -> None:
    if values.ndim not in {1, 2} or len(values) < 2:
        raise ValueError(f"values must be [U] or [U, M] with at least 2 users, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite; leave out users that a metric says nothing about")


def _grouped(values: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Sums of each group's values, [G, M], and its users, [G]; up to ``GROUPS`` users each is their own group."""
    users = len(values)
    if users <= GROUPS:
        return values, np.ones(users)
    starts = np.arange(GROUPS) * users // GROUPS
    sums = np.add.reduceat(values[rng.permutation(users)], starts)
    return np.asarray(sums, dtype=np.float64), np.diff(starts, append=users).astype(np.float64)


def _draws(rng: np.random.Generator, resamples: int, groups: int) -> Iterator[FloatArray]:
    """How often each group is drawn: parts of a float64 [resamples, G]."""
    for rows in _parts(resamples, groups):
        drawn = rng.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(np.float64)


def _coins(rng: np.random.Generator, resamples: int, groups: int) -> Iterator[FloatArray]:
    """Heads or tails for each group: parts of a float64 [resamples, G] of 1 and 0."""
    for rows in _parts(resamples, groups):
        bits = np.unpackbits(rng.integers(256, size=(rows, -(-groups // 8)), dtype=np.uint8), axis=1, count=groups)
        yield bits.astype(np.float64)


def _parts(resamples: int, groups: int) -> Iterator[int]:
    step = max(1, _DRAWS // max(groups, 1))
    return (min(step, resamples - start) for start in range(0, resamples, step))
