"""Histories of users: read from the log, and kept in memory while nothing new is heard of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa

from rayrec.models.interactions import SparseRows
from rayrec.serving.state import History
from rayrec.serving.store.database import Database
from rayrec.serving.store.tables import EVENTS, USERS

MOST_EVENTS = 10_000
"""Of a history: the latest."""
MOST_USERS = 100_000
"""Whose histories are kept in memory: those asked for last."""


class StoredHistories:
    """See `rayrec.serving.state.HistoryStore`.

    Args:
        database: Where the events are.
        rows: The item row of each item key of the model.
        event_types: Only events of these types; by default all.
        timed: Whether the model's log has times.
        features: A row of features of each user, with the place of each user; None where the model reads none.
        most_users: How many histories are kept in memory.
    """

    def __init__(
        self,
        database: Database,
        rows: Mapping[str, int],
        event_types: Sequence[str] = (),
        timed: bool = True,
        features: tuple[Mapping[str, int], SparseRows] | None = None,
        most_users: int = MOST_USERS,
    ) -> None:
        self._database = database
        self._rows = rows
        self._types = tuple(event_types)
        self._timed = timed
        self._features = features
        self._most = most_users
        self._known: OrderedDict[str, History | None] = OrderedDict()
        self._reading: dict[str, object] = {}
        self._lock = threading.Lock()

    def history(self, user: str) -> History | None:
        """See `HistoryStore`.

        Raises:
            UnavailableError: It is not in memory, and the database does not answer.
        """
        with self._lock:
            if user in self._known:
                self._known.move_to_end(user)
                return self._known[user]
            # Whoever forgets the user meanwhile takes this away: what is read then may be old already.
            mine = self._reading.setdefault(user, object())
        try:
            found = self._read(user)
            with self._lock:
                if self._reading.get(user) is mine:
                    self._known[user] = found
                    if len(self._known) > self._most:
                        self._known.popitem(last=False)
        finally:
            with self._lock:
                if self._reading.get(user) is mine:
                    del self._reading[user]
        return found

    def remembered(self, user: str) -> bool:
        """See `HistoryStore`."""
        return user in self._known

    def forget(self, users: Iterable[str] | None) -> None:
        """Read the histories of some users anew when they are asked for; None: of all."""
        with self._lock:
            for kept in (self._known, self._reading):
                for user in [*kept] if users is None else users:
                    kept.pop(user, None)

    def _read(self, user: str) -> History | None:
        newest = sa.select(EVENTS.c.item, EVENTS.c.type, EVENTS.c.timestamp).where(EVENTS.c.user == user)
        newest = newest.order_by(EVENTS.c.timestamp.desc(), EVENTS.c.position.desc()).limit(MOST_EVENTS)
        told = sa.select(sa.literal(1)).where(USERS.c.user == user)

        def read(connection: sa.Connection) -> tuple[Sequence[Any], bool]:
            events = connection.execute(newest).all()
            return events, bool(events) or connection.execute(told).first() is not None

        events, known = self._database.read(read)
        return self._of(user, events[::-1]) if known else None

    def _of(self, user: str, events: Sequence[Any]) -> History:
        found = [
            (row, timestamp)
            for item, kind, timestamp in events
            if (row := self._rows.get(item)) and (not self._types or kind in self._types)
        ]
        items = np.array([row for row, _ in found], np.int64)
        times = np.array([timestamp // 1000 for _, timestamp in found], np.int64) if self._timed else None
        others = [item for item, _, _ in events if item not in self._rows]
        return History(items, times, self._features_of(user), others)

    def _features_of(self, user: str) -> np.ndarray | None:
        if self._features is None:
            return None
        places, features = self._features
        place = places.get(user)
        # Nobody's row stands for a user of whom nothing is known.
        return np.zeros(features.width, np.float32) if place is None else features.dense(np.array([place]))[0]
