"""What is recommended, whoever likes it: how much of the catalogue, how evenly, how popular, how novel, how diverse.

All take ``recommended`` (int64 [U, k]: the item rows recommended to each user, 1..num_items, 0 = padding).
"""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_GATHERED = 2**22  # numbers gathered from item vectors at a time: 32 MB of float64


def coverage(recommended: IntArray, num_items: int) -> float:
    """Catalogue coverage: the share of all items that is recommended to at least one user, from 0 to 1.

    ``#distinct items in recommended / num_items`` for ``recommended`` int64 [U, k] (Ge, Delgado-Battenfeld & Jannach,
    RecSys 2010). It grows with U and k, so compare models at the same users and cut-off only.

    >>> coverage(np.array([[1, 2], [2, 0]]), num_items=4)
    0.5
    """
    _check_rows(recommended, num_items)
    is_recommended = np.zeros(num_items + 1, dtype=np.bool_)
    is_recommended[recommended] = True
    return float(is_recommended[1:].mean())


def popularity_bias(recommended: IntArray, popularity: IntArray) -> float:
    """Average recommendation popularity relative to the catalogue's: 1 = no bias, above 1 = popular items preferred.

    ARP is the mean over users of the mean popularity of the items in their list (Yin et al., PVLDB 2012; Abdollahpouri
    et al., FLAIRS 2019). Here it is divided by the mean popularity of a catalogue item, so that it does not depend on
    the size of the log. Users with an empty list (a row of padding) are left out.

    Args:
        recommended: int64 [U, k].
        popularity: int64 [num_items + 1], interactions of each item row in training; entry 0 (padding) is ignored.

    Raises:
        ValueError: nothing is recommended, no item was ever interacted with, or a row is outside the catalogue.

    >>> popularity_bias(np.array([[1, 2]]), popularity=np.array([0, 6, 2, 1, 1]))
    1.6
    """
    _check_rows(recommended, num_items=len(popularity) - 1)
    _check_something(recommended, popularity)
    return _mean_of_lists(recommended, popularity) / float(popularity[1:].mean())


def novelty(recommended: IntArray, popularity: IntArray) -> float:
    """Mean self-information in bits: 1 more says that the recommended items are half as well known.

    An item tells ``-log2(its share of all training events)``, averaged over a list and then over users, as
    ``popularity_bias`` is (Zhou et al., PNAS 2010, with shares of users; Vargas & Castells, RecSys 2011, with shares of
    events, as here). An item without events counts as one with a single event, so that it is finite.

    Args:
        recommended: int64 [U, k].
        popularity: int64 [num_items + 1], interactions of each item row in training; entry 0 (padding) is ignored.

    Raises:
        ValueError: nothing is recommended, no item was ever interacted with, or a row is outside the catalogue.

    >>> novelty(np.array([[1, 2]]), popularity=np.array([0, 4, 2, 1, 1]))
    1.5
    """
    _check_rows(recommended, num_items=len(popularity) - 1)
    _check_something(recommended, popularity)
    return _mean_of_lists(recommended, -np.log2(np.maximum(popularity, 1) / popularity[1:].sum()))


def gini(recommended: IntArray, num_items: int) -> float:
    """Gini index of how often each item is recommended: 0 = all alike, 1 = one item takes all.

    ``sum of (2 i - V - 1) n_i / ((V - 1) * sum of n_i)`` over the V items of the catalogue, where n_1 <= n_2 <= ...
    (Castells, Hurley & Vargas, Recommender Systems Handbook 2022). Items recommended to nobody count, with n_i = 0.

    Raises:
        ValueError: nothing is recommended, fewer than 2 items, or a row is outside the catalogue.

    >>> gini(np.array([[1, 2], [1, 2]]), num_items=3)
    0.5
    """
    _check_rows(recommended, num_items)
    counts = np.sort(np.bincount(recommended.ravel(), minlength=num_items + 1)[1:])
    if num_items < 2 or not counts.any():
        msg = "gini compares items, so it needs at least two, and one of them recommended"
        raise ValueError(msg)
    order = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float(order @ counts / ((num_items - 1) * counts.sum()))


def intra_list_diversity(recommended: IntArray, vectors: npt.NDArray[np.floating]) -> float:
    """How unlike each other the items of a list are: 1 - cosine, averaged over its pairs and then over users.

    From 0, all items point the same way, over 1, nothing in common, to at most 2 (Ziegler et al., WWW 2005, as a
    distance). Lists of fewer than 2 items have no pairs and are left out. An item whose vector is zero is like nothing.

    Args:
        recommended: int64 [U, k].
        vectors: float [num_items + 1, F], features of each item row; row 0 (padding) is ignored.

    Raises:
        ValueError: no list has 2 items, or a row is outside the catalogue.

    >>> intra_list_diversity(np.array([[1, 2, 3]]), np.array([[0, 0], [1, 0], [2, 0], [0, 3]]))
    0.6666666666666667
    """
    _check_rows(recommended, num_items=len(vectors) - 1)
    lengths = (recommended > 0).sum(axis=1)
    lists, lengths = recommended[lengths > 1], lengths[lengths > 1]
    if not len(lists):
        msg = "diversity compares items of one list, and no list has two"
        raise ValueError(msg)
    step = max(1, _GATHERED // (lists.shape[1] * vectors.shape[1] + 1))
    starts = range(0, len(lists), step)
    cosines = np.concatenate([_sum_of_cosines(lists[start : start + step], vectors) for start in starts])
    return float(1 - (cosines / (lengths * (lengths - 1))).mean())


def _sum_of_cosines(lists: IntArray, vectors: npt.NDArray[np.floating]) -> FloatArray:
    """Over all ordered pairs of different places, [U, k] -> [U], without the [U, k, k] of them.

    The squared length of a sum holds the product of every pair, and of each vector with itself, which is taken off.
    """
    directions = vectors[lists].astype(np.float64)
    norms = np.linalg.norm(directions, axis=2, keepdims=True)
    directions /= np.where(norms > 0, norms, 1)
    directions[lists == 0] = 0
    total = directions.sum(axis=1)
    return np.asarray((total**2).sum(axis=1) - (directions**2).sum(axis=(1, 2)), dtype=np.float64)


def _mean_of_lists(recommended: IntArray, values: npt.NDArray[np.number]) -> float:
    """The mean over users of the mean value ([num_items + 1]) of their items; empty lists are left out."""
    is_item = recommended > 0
    lengths = is_item.sum(axis=1)
    totals = np.where(is_item, values[recommended], 0).sum(axis=1)
    return float((totals[lengths > 0] / lengths[lengths > 0]).mean())


def _check_something(recommended: IntArray, popularity: IntArray) -> None:
    if not recommended.any() or not popularity[1:].any():
        msg = "popularity needs at least one recommended item and one interaction in the popularity counts"
        raise ValueError(msg)


def _check_rows(recommended: IntArray, num_items: int) -> None:
    if num_items < 1:
        msg = f"the catalogue needs at least one item, got {num_items}"
        raise ValueError(msg)
    if ((recommended < 0) | (recommended > num_items)).any():
        msg = f"recommended holds item rows outside 0..{num_items}"
        raise ValueError(msg)
