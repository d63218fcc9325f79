"""What users did, in memory: read from the log once, whatever models come, until something new is heard of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import sqlalchemy as sa

from rayrec.serving.store.database import Database
from rayrec.serving.store.tables import EVENTS, USERS

MOST_EVENTS = 10_000
"""Of a user: the latest."""
MOST_USERS = 100_000
"""Whose events are kept in memory: those asked for last."""
MOST_WARMED = 1_000_000
"""Events that are read before anybody asks."""
USERS_AT_ONCE, ROWS_AT_ONCE = 200, 200_000
COLUMNS = (EVENTS.c.user, EVENTS.c.item, EVENTS.c.type, EVENTS.c.timestamp)


@dataclass(frozen=True)
class UserEvents:
    """Events of a user, oldest first.

    Attributes:
        items: ``[n]`` int32, by `RecentEvents.items`.
        types: ``[n]`` int32, by `RecentEvents.types`.
        timestamps: ``[n]`` int64 milliseconds since the epoch.
    """

    items: np.ndarray
    types: np.ndarray
    timestamps: np.ndarray


Read = Callable[[sa.Connection, Sequence[str]], Mapping[str, UserEvents | None]]


class Names:
    """Numbers from 0 on for texts, in the order in which they come."""

    def __init__(self) -> None:
        self.known: list[str] = []
        self._numbers: dict[str, int] = {}
        self._lock = threading.Lock()

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """Of several: ``[n]`` int32."""
        try:
            return np.fromiter(map(self._numbers.__getitem__, names), np.int32, len(names))
        except KeyError:
            with self._lock:
                for name in names:
                    if name not in self._numbers:
                        self.known.append(name)
                        self._numbers[name] = len(self.known) - 1
            return self.numbers(names)


class RecentEvents:
    """Events of users, those of who was asked for last in memory.

    Args:
        database: Where the events are.
        most_users: Of how many users they are kept.

    Attributes:
        items: Keys of items.
        types: Of events.
    """

    def __init__(self, database: Database, most_users: int = MOST_USERS) -> None:
        self.items = Names()
        self.types = Names()
        self._database = database
        self._most = most_users
        self._known: OrderedDict[str, UserEvents | None] = OrderedDict()
        self._reading: dict[str, object] = {}
        self._lock = threading.Lock()

    def of(self, user: str) -> UserEvents | None:
        """What a user did; None for one nobody has seen. The same object until something new is heard of them.

        Raises:
            UnavailableError: It is not in memory, and the database does not answer.
        """
        with self._lock:
            if user in self._known:
                self._known.move_to_end(user)
                return self._known[user]
        return self._read([user], self._of_one)[user]

    def remembered(self, user: str) -> bool:
        """Whether it is in memory, so that nothing has to be waited for."""
        return user in self._known

    def forget(self, users: Iterable[str] | None) -> None:
        """Read the events of some users anew when they are asked for; None: of all."""
        with self._lock:
            for kept in (self._known, self._reading):
                for user in [*kept] if users is None else users:
                    kept.pop(user, None)

    def warm(self) -> None:
        """Read the events of who did something last, before they ask."""
        latest = self._database.read(_active)[: self._most]
        left, active = MOST_WARMED, [user for user in latest if user not in self._known]
        for first in range(0, len(active), USERS_AT_ONCE):
            found = self._read(active[first : first + USERS_AT_ONCE], self._of_several)
            left -= sum(len(events.items) for events in found.values() if events)
            if left <= 0:
                break

    def _read(self, users: Sequence[str], read: Read) -> Mapping[str, UserEvents | None]:
        """Read the events of some users, and keep those of each of whom nothing is heard meanwhile."""
        with self._lock:
            # Whoever forgets a user meanwhile takes this away: what is read then may be old already.
            mine = {user: self._reading.setdefault(user, object()) for user in users}
        try:
            found = self._database.read(lambda connection: read(connection, users))
            with self._lock:
                for user, events in found.items():
                    if self._reading.get(user) is mine[user]:
                        self._known[user] = events
                while len(self._known) > self._most:
                    self._known.popitem(last=False)
        finally:
            with self._lock:
                for user in users:
                    if self._reading.get(user) is mine[user]:
                        del self._reading[user]
        return found

    def _of_one(self, connection: sa.Connection, users: Sequence[str]) -> Mapping[str, UserEvents | None]:
        newest = sa.select(*COLUMNS).where(EVENTS.c.user == users[0])
        newest = newest.order_by(EVENTS.c.timestamp.desc(), EVENTS.c.position.desc()).limit(MOST_EVENTS)
        rows = connection.execute(newest).all()[::-1]
        told = sa.select(sa.literal(1)).where(USERS.c.user == users[0])
        known = bool(rows) or connection.execute(told).first() is not None
        return {users[0]: self._made(rows) if known else None}

    def _of_several(self, connection: sa.Connection, users: Sequence[str]) -> Mapping[str, UserEvents | None]:
        """Of those for whom there is room: some log has a user with millions."""
        theirs = sa.select(*COLUMNS).where(EVENTS.c.user.in_(users))
        theirs = theirs.order_by(EVENTS.c.user, EVENTS.c.timestamp, EVENTS.c.position).limit(ROWS_AT_ONCE)
        rows = connection.execute(theirs).all()
        found = {user: self._made([*events][-MOST_EVENTS:]) for user, events in groupby(rows, itemgetter(0))}
        if len(rows) == ROWS_AT_ONCE:
            # Whose are the last ones may have more.
            del found[rows[-1].user]
        return found

    def _made(self, rows: Sequence[Any]) -> UserEvents:
        items, types, timestamps = ([row[at] for row in rows] for at in (1, 2, 3))
        return UserEvents(self.items.numbers(items), self.types.numbers(types), np.array(timestamps, np.int64))


def _active(connection: sa.Connection) -> Sequence[str]:
    """Who did the latest that came into the log."""
    latest = sa.select(EVENTS.c.user, EVENTS.c.position).order_by(EVENTS.c.position.desc()).limit(MOST_WARMED)
    of = latest.subquery().c
    users = sa.select(of.user).group_by(of.user).order_by(sa.func.max(of.position).desc())
    return connection.execute(users).scalars().all()
