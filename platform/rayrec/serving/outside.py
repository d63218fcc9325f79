"""Which items may be recommended: those that are there and not hidden, within what a request asks for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from rayrec.inference.offered import Offered
from rayrec.inference.scorer import ItemKeys, Scorer
from rayrec.serving.queries import ANYTHING, Wanted
from rayrec.serving.state import Catalog

MOST_BYTES = 64_000_000
"""Kept in memory, of all sets of categories and labels together."""


@dataclass(frozen=True)
class Name:
    """Of a set of items: whose rows they have, and what they have in common."""

    keys: int
    categories: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]


class Outside:
    """What is offered: sets that are asked for often are in memory, and brought up to date when the catalogue changes.

    Args:
        catalog: The items.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._kept: OrderedDict[Name, tuple[int, Offered]] = OrderedDict()
        self._lock = threading.Lock()

    def offered(self, scorer: Scorer, wanted: Wanted = ANYTHING) -> Offered:
        """By the rows of a scorer; without what ``wanted`` excludes, which `excluded` gives."""
        within = self._within(scorer.item_keys, Name(id(scorer.item_keys), wanted.categories, wanted.labels))
        if wanted.only is None:
            return within
        return within.also(Offered(_mask(scorer.item_keys, wanted.only)))

    def _within(self, keys: ItemKeys, name: Name) -> Offered:
        version = self._catalog.version
        with self._lock:
            before, found = self._kept.get(name, (None, None))
        if before is not None and found is not None and before != version:
            changed = self._catalog.changed_after(before)
            found = None if changed is None else self._updated(keys, name, found, changed)
        if found is None:
            found = self._computed(keys, name)
        with self._lock:
            self._kept[name] = version, found
            self._kept.move_to_end(name)
            while len(self._kept) * len(found.allowed) > MOST_BYTES and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return found

    def _computed(self, keys: ItemKeys, name: Name) -> Offered:
        chosen = self._catalog.within(name.categories, name.labels)
        if chosen is not None:
            return self._within(keys, Name(name.keys, (), ())).also(Offered(_mask(keys, chosen)))
        there, hidden = self._catalog.keys, self._catalog.hidden
        # What is not in the catalogue any more is not recommended, though the model knows it.
        allowed = (key in there and key not in hidden for key in keys)
        return Offered(np.concatenate([[False], np.fromiter(allowed, bool, len(keys))]))

    def _updated(self, keys: ItemKeys, name: Name, before: Offered, changed: Collection[str]) -> Offered:
        known = [key for key in changed if key in keys.rows]
        if not known:
            return before
        items = [self._catalog.item(key) for key in known]
        allowed = [
            item is not None and not item.hidden and item.is_within(name.categories, name.labels) for item in items
        ]
        return before.changed(np.array([keys.rows[key] for key in known]), np.array(allowed))


def _mask(keys: ItemKeys, chosen: Iterable[str]) -> np.ndarray:
    """Which items are among the chosen keys: ``[V + 1]`` bool."""
    mask = np.zeros(len(keys) + 1, bool)
    mask[[keys.rows[key] for key in chosen if key in keys.rows]] = True
    return mask
