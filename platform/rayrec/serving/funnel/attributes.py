"""What the catalogue says of a model's items, by their rows."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from rayrec.inference.scorer import ItemKeys
from rayrec.serving.state import Catalog, Item

STALE_SECONDS = 1.0
"""How long they are used after the catalogue has changed: with many changes a second, each would cost a copy."""
MOST_CATEGORIES = 16
"""Of an item that count."""

Cold = tuple[tuple[float, str], ...]
"""When items came, in seconds since the epoch times -1, and their keys, in order."""


@dataclass(frozen=True)
class Attributes:
    """Of all items of a model.

    Attributes:
        version: Of the catalogue.
        read: When, by `time.monotonic`.
        numbers: Of the categories, from 1 on.
        categories: ``[V + 1, M]`` int32, their numbers, padded with 0.
        came: ``[V + 1]`` float64: when each came, in seconds since the epoch; minus infinity where nobody knows.
        cold: Items that the model does not know and that may be shown, the newest first.
    """

    version: int
    read: float
    numbers: dict[str, int]
    categories: np.ndarray
    came: np.ndarray
    cold: Cold

    @classmethod
    def of(cls, catalog: Catalog, model: ItemKeys, keys: ItemKeys) -> Attributes:
        """Read them.

        Args:
            catalog: The items.
            model: The keys that the model knows.
            keys: The keys by whose rows they are: the model's own, or those of who has no history.
        """
        begun = cls(
            catalog.version,
            time.monotonic(),
            {},
            np.zeros((len(keys) + 1, 1), np.int32),
            np.full(len(keys) + 1, -np.inf),
            tuple(sorted(_cold(catalog, catalog.keys - model.rows.keys()))),
        )
        return begun._with(np.arange(1, len(keys) + 1), [catalog.item(key) for key in keys])

    def updated(self, catalog: Catalog, model: ItemKeys, keys: ItemKeys) -> Attributes:
        """The same with what has changed since."""
        version, read = catalog.version, time.monotonic()
        changed = catalog.changed_after(self.version)
        if changed is None:
            return Attributes.of(catalog, model, keys)
        cold = self.cold
        unknown = changed - model.rows.keys()
        if unknown:
            kept = [one for one in cold if one[1] not in unknown]
            cold = tuple(sorted([*kept, *_cold(catalog, unknown)]))
        known = [key for key in changed if key in keys.rows]
        rows = np.array([keys.rows[key] for key in known], np.int64)
        copy = Attributes(version, read, {**self.numbers}, self.categories, self.came.copy(), cold)
        return copy._with(rows, [catalog.item(key) for key in known])

    def _with(self, rows: np.ndarray, items: list[Item | None]) -> Attributes:
        """With some items read into `came` and `numbers`, which change, and into a copy of `categories`."""
        numbers, named = self.numbers, []
        for item in items:
            names = item.categories[:MOST_CATEGORIES] if item else ()
            named.append([numbers.setdefault(name, len(numbers) + 1) for name in names])
        width = max([self.categories.shape[1], *map(len, named)])
        categories = np.pad(self.categories, ((0, 0), (0, width - self.categories.shape[1])))
        for row, mine in zip(rows.tolist(), named, strict=True):
            categories[row, : len(mine)] = mine
            categories[row, len(mine) :] = 0
        self.came[rows] = [_came(item) for item in items]
        return Attributes(self.version, self.read, numbers, categories, self.came, self.cold)

    def are_stale(self, catalog: Catalog) -> bool:
        """Whether they are to be read again."""
        return self.version != catalog.version and time.monotonic() > self.read + STALE_SECONDS


def _cold(catalog: Catalog, keys: Collection[str]) -> Iterable[tuple[float, str]]:
    """When items came that the model does not know and that may be shown."""
    items = (catalog.item(key) for key in keys)
    return [(-_came(item), item.item) for item in items if item is not None and not item.hidden]


def _came(item: Item | None) -> float:
    return -np.inf if item is None or item.timestamp is None else item.timestamp / 1000
