"""The store of a replica: the database, and what of it is kept in memory."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

from rayrec.artifacts import home
from rayrec.data.dataset import Dataset, open_dataset
from rayrec.data.user_features import everyones_features
from rayrec.data.variables import expanded
from rayrec.inference.release import Release
from rayrec.inference.scorer import Scorer
from rayrec.serving.catalog import Items
from rayrec.serving.metrics import EVENTS_WRITTEN
from rayrec.serving.state import Event, Item, User
from rayrec.serving.store.database import Database
from rayrec.serving.store.erasures import Erasure, StoredErasures
from rayrec.serving.store.events import StoredEvents
from rayrec.serving.store.fill import fill
from rayrec.serving.store.follower import Changed, Follower
from rayrec.serving.store.histories import StoredHistories
from rayrec.serving.store.impressions import StoredImpressions
from rayrec.serving.store.items import StoredItems
from rayrec.serving.store.keys import StoredKeys
from rayrec.serving.store.recent import RecentEvents
from rayrec.serving.store.trending import Trending
from rayrec.serving.store.users import StoredUsers


def state_url(given: str | None, name: str) -> str:
    """Of the database of a recommender's endpoint: what `serving.state` says, or a file on this machine."""
    return expanded(given) if given else f"sqlite:///{Path(home()).absolute()}/state/{name}.db"


class Forgetful(Protocol):
    """Whoever remembers something of users."""

    def forget(self, users: Iterable[str] | None) -> None:
        """Read it anew of some users; None: of all."""


class Store:
    """Events, items and users of an endpoint. What is written here counts in this process at once, in others soon.

    Args:
        url: Of the database, see `Database`.

    Attributes:
        catalog: Every item, in memory.
        keyring: The keys of those who may ask, in memory.
        recent: Events of users, in memory.
        trending: Gives the keys of items that trend, in memory.
    """

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.events = StoredEvents(self.database)
        self.items = StoredItems(self.database)
        self.users = StoredUsers(self.database)
        self.keys = StoredKeys(self.database)
        self.trending = Trending(self.events)
        self.erasures = StoredErasures(self.database)
        self.impressions = StoredImpressions(self.database)
        self.recent = RecentEvents(self.database)
        self._forgetful: WeakSet[Forgetful] = WeakSet([self.recent])
        self._changing = threading.Lock()
        # First: what is written while the catalogue is read is told of afterwards.
        self._follower = Follower(self.database, self._heard)
        self.catalog = Items(self.items.all())
        self.keyring = self.keys.ring()
        self._follower.start()

    def histories_of(self, release: Release, scorer: Scorer) -> StoredHistories:
        """Histories as a model reads them, for as long as somebody holds them."""
        content = release.content
        dataset = open_dataset(release.storage, content["dataset"]["name"], content["dataset"]["manifest"])
        features = None
        found = everyones_features(dataset, content["dataset"]["view"]) if "user" in scorer.widths else None
        if found is not None:
            features = {key: at for at, key in enumerate(dataset.vocabulary("user")["key"].to_pylist())}, found
        timed = dataset.manifest["order"] == "timestamp"
        histories = StoredHistories(self.recent, scorer.rows, content["event_types"], timed, features)
        self.tell(histories)
        return histories

    def tell(self, forgetful: Forgetful) -> None:
        """Tell somebody, for as long as they live, which users have done something or are to be forgotten."""
        self._forgetful.add(forgetful)

    def fill(self, dataset: Dataset) -> None:
        """Take in what a Dataset knows, unless it has been; and have in memory who did something last."""
        fill(self.database, dataset)
        self._follower.catch_up()
        self.recent.warm()

    def append(self, events: Sequence[Event], with_items: bool = False) -> int:
        """See `EventLog`. Items that are not in the catalogue come into it only if so asked."""
        new = self.events.append(events, with_items)
        EVENTS_WRITTEN.inc(new)
        unknown = {event.item for event in events if with_items and self.catalog.item(event.item) is None}
        self._heard(Changed({event.user for event in events}, unknown))
        return new

    def remove_event(self, event_id: str) -> int:
        """Forget an event. Returns how many there were with this id."""
        users = self.events.users_without([event_id])
        self._heard(Changed({*users}))
        return len(users)

    def remove_feedback(self, user: str, item: str, type: str | None = None) -> int:
        """Forget a user's events on an item, of all types or of one. Returns how many feedbacks they were."""
        feedback = self.events.feedback(user=user, item=item, type=type)
        self.events.remove_pair(user, item, type)
        self._heard(Changed({user}))
        return len(feedback)

    def put_items(self, items: Sequence[Item], keep: Collection[str] = ()) -> None:
        """Keep items, in place of those with their keys, but for the attributes to ``keep`` of these."""
        self.items.put(items, keep)
        self._heard(Changed(items={item.item for item in items}))

    def categorise(self, key: str, more: Sequence[str] = (), fewer: Collection[str] = ()) -> bool:
        """Add categories to an item, and take others away. Returns whether there is one."""
        there = self.items.categorise(key, more, fewer)
        self._heard(Changed(items={key}))
        return there

    def change_item(self, key: str, values: Mapping[str, Any]) -> bool:
        """Change some attributes of an item. Returns whether there is one."""
        there = self.items.change(key, values)
        self._heard(Changed(items={key}))
        return there

    def remove_item(self, key: str, actor: str, with_events: bool = False) -> bool:
        """Take an item out of the catalogue, and if so asked out of the log. Returns whether there was one."""
        users: set[str] = set()
        if with_events:
            there, users = self.items.remove_with_events(key, actor)
        else:
            there = self.items.remove(key, actor)
        self._heard(Changed(users, {key}))
        return there

    def put_users(self, users: Sequence[User]) -> None:
        """Keep users, in place of those with their keys."""
        self.users.put(users)
        self._heard(Changed({user.user for user in users}))

    def erase_user(self, key: str, actor: str) -> Erasure | None:
        """Forget a user, at the request of ``actor``, see `StoredErasures.erase`."""
        # What this replica has just shown them is known by then, too.
        self.impressions.flush()
        erasure = self.erasures.erase(key, actor)
        self._heard(Changed({key}))
        return erasure

    def close(self) -> None:
        """End."""
        self.impressions.stop()
        self._follower.stop()
        self.database.close()

    def _heard(self, changed: Changed) -> None:
        """Forget what is no longer so."""
        for forgetful in [*self._forgetful]:
            forgetful.forget(changed.users)
        if changed.items is None or changed.items:
            self._read_items(changed.items)
        if changed.api_keys:
            self.keyring = self.keys.ring()

    def _read_items(self, keys: Collection[str] | None) -> None:
        """Read items anew: None reads all."""
        # In turn: what was read first must not be put in place last.
        with self._changing:
            if keys is None:
                found: Iterable[Item] = self.items.all()
                keys = {item.item for item in self.catalog.all()}
            else:
                found = self.items.get([*keys])
            there = {item.item: item for item in found}
            self.catalog.put(there.values(), gone=[key for key in keys if key not in there])
