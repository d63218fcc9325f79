"""What others have written: each replica looks again and again, and forgets what is no longer so."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from rayrec.serving.store.database import Database, UnavailableError
from rayrec.serving.store.tables import CHANGES, EVENTS

_LOG = logging.getLogger("rayrec.serving")

POLL_SECONDS = 0.25
LATE_SECONDS = 300
"""Whoever could not look for so long reads everything anew."""
FORGET_SECONDS = 600
MOST_AT_ONCE = 10_000


@dataclass(frozen=True)
class Changed:
    """What is no longer as it was read; None stands for everything.

    Attributes:
        users: Keys of users who have other events now.
        items: Keys of items.
        api_keys: Whether those who may ask are others now.
    """

    users: set[str] | None = field(default_factory=set)
    items: set[str] | None = field(default_factory=set)
    api_keys: bool = False


class Follower:
    """A thread that tells of what is written into a database from now on, by whomever.

    Args:
        database: The database.
        tell: Called with what has changed. When it fails for want of the database it is told the same again.
    """

    def __init__(self, database: Database, tell: Callable[[Changed], None]) -> None:
        self._database = database
        self._tell = tell
        self._seen = database.read(_newest)
        self._looking = threading.Lock()
        self._looked = self._tidied = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def catch_up(self) -> None:
        """Tell of everything until now, before this returns."""
        self._look()

    def stop(self) -> None:
        """End."""
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            try:
                self._look()
                self._tidy()
            except UnavailableError:
                # It is asked again; what was written meanwhile is told then.
                continue
            except Exception:
                _LOG.exception("changes in the database could not be read; tried again")

    def _look(self) -> None:
        with self._looking:
            if time.monotonic() > self._looked + LATE_SECONDS:
                newest = self._database.read(_newest)
                self._tell(Changed(None, None, True))
                self._seen = newest
            while self._tell_some():
                pass
            self._looked = time.monotonic()

    def _tidy(self) -> None:
        """Now and then, remove what everybody has heard of or is too late for."""
        if time.monotonic() < self._tidied + LATE_SECONDS:
            return
        old = CHANGES.c.at < (time.time() - FORGET_SECONDS) * 1000
        self._database.write(lambda connection: connection.execute(sa.delete(CHANGES).where(old)))
        self._tidied = time.monotonic()
        self._database.empty_log()

    def _tell_some(self) -> bool:
        """Tell of what has changed. Returns whether there may be more."""
        events, changes = self._database.read(self._since)
        if not events and not changes:
            return False
        everything = {row.kind for row in changes if row.key is None}
        users = {row.user for row in events} | {row.key for row in changes if row.kind == "user"}
        items = {row.key for row in changes if row.kind == "item"}
        api_keys = any(row.kind == "key" for row in changes)
        self._tell(Changed(None if "user" in everything else users, None if "item" in everything else items, api_keys))
        event, change = self._seen
        self._seen = events[-1].position if events else event, changes[-1].position if changes else change
        return max(len(events), len(changes)) == MOST_AT_ONCE

    def _since(self, connection: sa.Connection) -> tuple[Any, Any]:
        event, change = self._seen
        told = sa.select(EVENTS.c.position, EVENTS.c.user).where(EVENTS.c.position > event)
        noted = sa.select(CHANGES).where(CHANGES.c.position > change)
        return (
            connection.execute(told.order_by(EVENTS.c.position).limit(MOST_AT_ONCE)).all(),
            connection.execute(noted.order_by(CHANGES.c.position).limit(MOST_AT_ONCE)).all(),
        )


def _newest(connection: sa.Connection) -> tuple[int, int]:
    event, change = (sa.select(sa.func.max(table.c.position)) for table in (EVENTS, CHANGES))
    return connection.execute(event).scalar() or 0, connection.execute(change).scalar() or 0
