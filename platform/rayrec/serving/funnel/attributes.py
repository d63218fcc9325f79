"""What the catalogue says of a model's items, by their rows."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from rayrec.inference.scorer import Scorer
from rayrec.serving.state import Catalog, Item

STALE_SECONDS = 1.0
"""How long they are used after the catalogue has changed: reading all items anew takes a moment."""
MOST_CATEGORIES = 16
"""Of an item that count."""


@dataclass(frozen=True)
class Attributes:
    """Of all items of a model.

    Attributes:
        version: Of the catalogue.
        read: When, by `time.monotonic`.
        categories: ``[V + 1, M]`` int32, numbers from 1 on, padded with 0.
        came: ``[V + 1]`` float64: when each came, in seconds since the epoch; minus infinity where nobody knows.
        cold: Items that the model does not know and that may be shown, the newest first: the key, and when it came.
    """

    version: int
    read: float
    categories: np.ndarray
    came: np.ndarray
    cold: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, catalog: Catalog, model: Scorer, scorer: Scorer) -> Attributes:
        """Read them, by the rows of a scorer: the model's own, or that of who has no history."""
        version, read = catalog.version, time.monotonic()
        items = [catalog.item(key) for key in scorer.item_keys]
        numbers: dict[str, int] = {}
        named = [
            [numbers.setdefault(name, len(numbers) + 1) for name in item.categories[:MOST_CATEGORIES]] if item else []
            for item in items
        ]
        categories = np.zeros((len(items) + 1, max(1, *map(len, named))), np.int32)
        for row, mine in enumerate(named, start=1):
            categories[row, : len(mine)] = mine
        came = np.array([-np.inf, *map(_came, items)])
        unknown = [(key, _came(catalog.item(key))) for key in catalog.keys - model.rows.keys() - catalog.hidden]
        unknown.sort(key=lambda one: (-one[1], one[0]))
        return cls(version, read, categories, came, tuple(unknown))

    def are_stale(self, catalog: Catalog) -> bool:
        """Whether they are to be read again."""
        return self.version != catalog.version and time.monotonic() > self.read + STALE_SECONDS


def _came(item: Item | None) -> float:
    return -np.inf if item is None or item.timestamp is None else item.timestamp / 1000
