"""What an endpoint knows besides its models: histories of users and the catalogue of items.

The protocols are what the endpoint sees. The implementations here are read-only and filled from the Dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rayrec.data.dataset import Dataset
from rayrec.data.event_log import UserHistories
from rayrec.models.interactions import SparseRows


@dataclass(frozen=True)
class History:
    """What a user did, oldest first.

    Attributes:
        items: ``[n]`` int64 item rows.
        times: ``[n]`` int64 seconds since the epoch; None where the log has no times.
        features: ``[F]`` float32, of the user, as the model reads them; None where it reads none.
    """

    items: np.ndarray
    times: np.ndarray | None
    features: np.ndarray | None = None


class HistoryStore(Protocol):
    """The events of users, as item rows of the model that is served, and their features."""

    def history(self, user: str) -> History | None:
        """All events of a user, oldest first. None for a user nobody has seen."""


@dataclass(frozen=True)
class Item:
    """An item of the catalogue; ``title`` and ``categories`` where the item table has them."""

    item: str
    title: str | None
    categories: tuple[str, ...]


class Catalog(Protocol):
    """The items by their keys."""

    def item(self, key: str) -> Item | None:
        """The item, or None when there is none with this key."""


@dataclass(frozen=True)
class DatasetHistories:
    """Histories held in memory.

    Attributes:
        users: The histories.
        features: A row for each of them; None where the model reads no features of users.
    """

    users: UserHistories
    features: SparseRows | None = None

    def history(self, user: str) -> History | None:
        """See `HistoryStore`."""
        place = self.users.users.get(user)
        return None if place is None else self.at(place)

    def at(self, place: int) -> History:
        """The events of the user at a position."""
        histories = self.users.histories
        events = slice(int(histories.offsets[place]), int(histories.offsets[place + 1]))
        times = None if histories.times is None else histories.times[events]
        features = None if self.features is None else self.features.dense(np.array([place]))[0]
        return History(histories.items[events], times, features)


@dataclass(frozen=True)
class DatasetCatalog:
    """The catalogue held in memory."""

    items: Mapping[str, Item]

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetCatalog:
        """The items of a Dataset."""
        columns = dataset.catalogue().to_pydict()
        rows = zip(columns["key"], columns["title"], columns["categories"], strict=True)
        return cls({key: Item(key, title, tuple(categories or ())) for key, title, categories in rows})

    def item(self, key: str) -> Item | None:
        """See `Catalog`."""
        return self.items.get(key)
