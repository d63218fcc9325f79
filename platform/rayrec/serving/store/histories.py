"""Histories of users by the item rows of a model, made from their events when they are asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from rayrec.models.interactions import SparseRows
from rayrec.serving.state import History
from rayrec.serving.store.recent import MOST_USERS, Names, RecentEvents, UserEvents


class _Numbers:
    """What each of the numbers of some names stands for, worked out as names come.

    Args:
        names: The names.
        meaning: What one of them stands for.
    """

    def __init__(self, names: Names, meaning: Callable[[str], int]) -> None:
        self._names = names
        self._meaning = meaning
        self._known = np.zeros(0, np.int64)

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """``[n]`` int32 numbers to ``[n]`` int64."""
        known = self._known
        new = self._names.known[len(known) :]
        if new:
            known = self._known = np.concatenate([known, np.array([self._meaning(name) for name in new], np.int64)])
        found: np.ndarray = known[numbers]
        return found


class StoredHistories:
    """See `rayrec.serving.state.HistoryStore`.

    Args:
        events: The events of users.
        rows: The item row of each item key of the model.
        event_types: Only events of these types; by default all.
        timed: Whether the model's log has times.
        features: A row of features of each user, with the place of each user; None where the model reads none.
        most_users: How many histories are kept in memory.
    """

    def __init__(
        self,
        events: RecentEvents,
        rows: Mapping[str, int],
        event_types: Sequence[str] = (),
        timed: bool = True,
        features: tuple[Mapping[str, int], SparseRows] | None = None,
        most_users: int = MOST_USERS,
    ) -> None:
        self._events = events
        self._rows = _Numbers(events.items, lambda key: rows.get(key, 0))
        self._types = _Numbers(events.types, lambda kind: kind in event_types) if event_types else None
        self._timed = timed
        self._features = features
        self._most = most_users
        self._made: OrderedDict[str, tuple[UserEvents, History]] = OrderedDict()
        self._lock = threading.Lock()

    def history(self, user: str) -> History | None:
        """See `HistoryStore`.

        Raises:
            UnavailableError: It is not in memory, and the database does not answer.
        """
        events = self._events.of(user)
        if events is None:
            return None
        with self._lock:
            before, made = self._made.get(user, (None, None))
            if before is events and made is not None:
                self._made.move_to_end(user)
                return made
        made = self._of(user, events)
        with self._lock:
            self._made[user] = events, made
            if len(self._made) > self._most:
                self._made.popitem(last=False)
        return made

    def remembered(self, user: str) -> bool:
        """See `HistoryStore`."""
        return self._events.remembered(user)

    def forget(self, users: Iterable[str] | None) -> None:
        """Keep nothing of some users in memory; None: of anybody."""
        with self._lock:
            for user in [*self._made] if users is None else users:
                self._made.pop(user, None)

    def _of(self, user: str, events: UserEvents) -> History:
        rows = self._rows[events.items]
        read = rows > 0
        others = [self._events.items.known[number] for number in events.items[~read]]
        if self._types is not None:
            read &= self._types[events.types] > 0
        times = events.timestamps[read] // 1000 if self._timed else None
        return History(rows[read], times, self._features_of(user), others)

    def _features_of(self, user: str) -> np.ndarray | None:
        if self._features is None:
            return None
        places, features = self._features
        place = places.get(user)
        # Nobody's row stands for a user of whom nothing is known.
        return np.zeros(features.width, np.float32) if place is None else features.dense(np.array([place]))[0]
