"""Which items may not be recommended: those that are hidden or gone, and those outside what a request asks for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection

import numpy as np

from rayrec.inference.scorer import Scorer
from rayrec.serving.queries import Wanted
from rayrec.serving.state import Catalog

MOST_ROWS = 8_000_000
"""Kept in memory, of all sets of categories and labels together: 64 MB."""

Name = tuple[str, tuple[str, ...], tuple[tuple[str, str], ...]]


class Outside:
    """Item rows that are not within what is wanted, those of the sets that are asked for often in memory.

    Args:
        catalog: The items.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._version = -1
        self._kept: OrderedDict[Name, np.ndarray] = OrderedDict()
        self._rows = 0
        self._lock = threading.Lock()

    def rows(self, scorer: Scorer, wanted: Wanted) -> np.ndarray:
        """By the rows of a scorer: ``[n]`` int64, some of them twice."""
        more = [scorer.rows_of(wanted.exclude)] if wanted.exclude else []
        if wanted.only is not None:
            more.append(_others(scorer, wanted.only))
        within = self._within(scorer, (scorer.kind, wanted.categories, wanted.labels))
        return np.concatenate([within, *more]) if more else within

    def _within(self, scorer: Scorer, name: Name) -> np.ndarray:
        with self._lock:
            version = self._catalog.version
            if self._version != version:
                self._kept.clear()
                self._version, self._rows = version, 0
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        found = self._computed(scorer, name)
        with self._lock:
            if self._version == version and name not in self._kept:
                self._kept[name] = found
                self._rows += len(found)
                while self._rows > MOST_ROWS and len(self._kept) > 1:
                    self._rows -= len(self._kept.popitem(last=False)[1])
        return found

    def _computed(self, scorer: Scorer, name: Name) -> np.ndarray:
        _, categories, labels = name
        chosen = self._catalog.within(categories, labels)
        if chosen is not None:
            return np.union1d(self._within(scorer, (scorer.kind, (), ())), _others(scorer, chosen))
        # What is not in the catalogue any more is not recommended, though the model knows it.
        no_longer = self._catalog.hidden | (scorer.rows.keys() - self._catalog.keys)
        return np.unique(scorer.rows_of([*no_longer]))


def _others(scorer: Scorer, chosen: Collection[str]) -> np.ndarray:
    """Item rows that are not among the chosen keys: ``[n]`` int64."""
    within = np.zeros(len(scorer.item_keys) + 1, bool)
    within[scorer.rows_of([*chosen])] = True
    # Row 0 is padding.
    return np.flatnonzero(~within[1:]) + 1
