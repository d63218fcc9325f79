"""What is recommended, whoever likes it: how much of the catalogue, and how popular.

Both take ``recommended`` (int64 [U, k]: the item rows recommended to each user, 1..num_items, 0 = padding).
"""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


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
    is_item = recommended > 0
    lengths = is_item.sum(axis=1)
    catalogue_mean = popularity[1:].mean()
    if not lengths.any() or catalogue_mean == 0:
        msg = "popularity bias needs at least one recommended item and one interaction in the popularity counts"
        raise ValueError(msg)
    totals = np.where(is_item, popularity[recommended], 0).sum(axis=1)
    user_means = totals[lengths > 0] / lengths[lengths > 0]
    return float(user_means.mean() / catalogue_mean)


def _check_rows(recommended: IntArray, num_items: int) -> None:
    if num_items < 1:
        msg = f"the catalogue needs at least one item, got {num_items}"
        raise ValueError(msg)
    if ((recommended < 0) | (recommended > num_items)).any():
        msg = f"recommended holds item rows outside 0..{num_items}"
        raise ValueError(msg)
