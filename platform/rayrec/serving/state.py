"""What an endpoint knows besides its models: what happened, histories of users and the catalogue of items.

The protocols are what the endpoint sees. `DatasetHistories` is read-only and filled from the Dataset, as
`rayrec.serving.catalog.Items` can be; what is in `rayrec.serving.store` is kept in a database.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from pydantic import JsonValue

from rayrec.artifacts import Json
from rayrec.data.event_log import UserHistories
from rayrec.models.interactions import SparseRows


@dataclass(frozen=True)
class Event:
    """Something a user did with an item.

    Attributes:
        event_id: Names the event: one that comes twice is kept once.
        user: Key of the user.
        item: Key of the item.
        type: Such as ``view``; empty in logs that have one kind.
        timestamp: Milliseconds since the epoch.
        value: Such as a rating.
        context: What else was known of the moment, by column of the log.
        comment: A note.
        replaces: It takes the place of the user's events of this type on this item, instead of being added to them,
            wherever they are taken together.
    """

    event_id: str
    user: str
    item: str
    type: str
    timestamp: int
    value: float | None = None
    context: Json | None = None
    comment: str = ""
    replaces: bool = False


class EventLog(Protocol):
    """What happened, in the order in which it was told. Repeats are kept."""

    def append(self, events: Sequence[Event]) -> int:
        """Keep events, but for those whose id is there already. Returns how many are new, when they are on disk."""

    def page(self, after: int, count: int, *, user: str | None, item: str | None) -> list[tuple[int, Event]]:
        """Up to ``count`` events with their positions, from the one after a position; of one user or item, if given."""

    def remove(self, event_ids: Collection[str]) -> int:
        """Forget events. Returns how many there were."""


@dataclass(frozen=True)
class History:
    """What a user did, oldest first.

    Attributes:
        items: ``[n]`` int64 item rows.
        times: ``[n]`` int64 seconds since the epoch; None where the log has no times.
        features: ``[F]`` float32, of the user, as the model reads them; None where it reads none.
        others: Keys of items that the model does not know.
    """

    items: np.ndarray
    times: np.ndarray | None
    features: np.ndarray | None = None
    others: Sequence[str] = ()


@dataclass(frozen=True)
class Impression:
    """What was recommended in one answer.

    Attributes:
        request_id: Of the request.
        user: Key of the user; None of a session.
        at: Milliseconds since the epoch.
        release: The digest of the Release that answered.
        source: As in the answer.
        first: The place of the first item, from 1.
        items: Keys, best first.
        scores: One an item.
        propensities: The chance that each item had to stand in its place; 1 where nothing was left to chance.
    """

    request_id: str
    user: str | None
    at: int
    release: str
    source: str
    first: int
    items: Sequence[str]
    scores: Sequence[float]
    propensities: Sequence[float]


class HistoryStore(Protocol):
    """The events of users, as item rows of the model that is served, and their features."""

    def history(self, user: str) -> History | None:
        """All events of a user, oldest first. None for a user nobody has seen."""

    def remembered(self, user: str) -> bool:
        """Whether it is in memory, so that nothing has to be waited for."""


@dataclass(frozen=True)
class Item:
    """An item of the catalogue.

    Attributes:
        item: Its key.
        title: What people call it, where known.
        categories: What it belongs to.
        labels: What else is known of it; any JSON.
        timestamp: When it came, in milliseconds since the epoch.
        hidden: Whether it is kept back: no answer recommends it.
        comment: A note.
    """

    item: str
    title: str | None = None
    categories: tuple[str, ...] = ()
    labels: Json | list[JsonValue] | None = None
    timestamp: int | None = None
    hidden: bool = False
    comment: str = ""

    def is_within(self, categories: Collection[str], labels: Collection[tuple[str, str]]) -> bool:
        """Whether it is of at least one of these categories, if any are given, and has all of these labels."""
        if categories and not any(name in categories for name in self.categories):
            return False
        return not labels or self.named().issuperset(labels)

    def named(self) -> set[tuple[str, str]]:
        """Its labels by name, each with its value, or with each of several."""
        known = self.labels if isinstance(self.labels, dict) else {}
        several = {name: value if isinstance(value, list) else [value] for name, value in known.items()}
        return {(name, _text(value)) for name, values in several.items() for value in values}


def _text(value: JsonValue) -> str:
    """As it stands in the address of a request."""
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class User:
    """What is told of a user.

    Attributes:
        user: Their key.
        labels: What is known of them; any JSON.
        comment: A note.
    """

    user: str
    labels: Json | list[JsonValue] | None = None
    comment: str = ""


class Catalog(Protocol):
    """The items by their keys."""

    version: int
    """Another one whenever something has changed."""

    @property
    def keys(self) -> Set[str]:
        """Of all items."""

    @property
    def hidden(self) -> Set[str]:
        """Keys of items that are kept back."""

    def item(self, key: str) -> Item | None:
        """The item, or None when there is none with this key."""

    def within(self, categories: Collection[str], labels: Collection[tuple[str, str]] = ()) -> Set[str] | None:
        """Keys of the items of at least one of these categories and with all of these labels; None stands for all."""

    def changed_after(self, version: int) -> Set[str] | None:
        """Keys of items that changed since a version, those that are gone included; None where they are not known."""

    def newest(self) -> Sequence[Item]:
        """Items of which it is known when they came, and that are not hidden, the newest first."""


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

    def remembered(self, user: str) -> bool:
        """See `HistoryStore`: all are."""
        return True

    def at(self, place: int) -> History:
        """The events of the user at a position."""
        histories = self.users.histories
        events = slice(int(histories.offsets[place]), int(histories.offsets[place + 1]))
        times = None if histories.times is None else histories.times[events]
        features = None if self.features is None else self.features.dense(np.array([place]))[0]
        return History(histories.items[events], times, features)
