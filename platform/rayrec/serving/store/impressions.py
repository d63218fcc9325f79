"""What was recommended, in the database: written behind the answers, which do not wait for it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from functools import partial
from typing import Any

import sqlalchemy as sa

from rayrec.serving.metrics import IMPRESSIONS_LOST
from rayrec.serving.state import Impression
from rayrec.serving.store.database import BusyError, Database, UnavailableError
from rayrec.serving.store.fingerprints import fingerprint, salt_of
from rayrec.serving.store.tables import ERASURES, IMPRESSIONS

_LOG = logging.getLogger("rayrec.serving")

WRITE_SECONDS = 0.5
MOST_WAITING = 20_000
"""Answers that wait to be written; the oldest of more are not kept."""
MOST_TOGETHER = 2_000
TIDY_SECONDS = 60
DAY = 24 * 3600 * 1000
CLOCKS = 2_000
"""Milliseconds for which another replica may still answer by the history of a user who has just been erased."""
COLUMNS = [column for column in IMPRESSIONS.c if column.name != "position"]


class StoredImpressions:
    """The log of impressions, and the thread that writes it.

    A crash loses what was answered in the last half second, and while the database does not answer what is more than
    `MOST_WAITING`: unlike events, nobody was told that they are kept.

    Args:
        database: Where they are.

    Attributes:
        days: How long they are kept; with 0 none are. None until it is known: none are written, and none removed.
    """

    def __init__(self, database: Database) -> None:
        self.days: int | None = None
        self._database = database
        self._waiting: deque[Impression] = deque(maxlen=MOST_WAITING)
        self._writing = threading.Lock()
        self._lost = 0
        self._tidied = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_behind, name="impressions", daemon=True)
        self._thread.start()

    def log(self, impression: Impression) -> None:
        """Have an answer written soon."""
        if self.days:
            self._lose(len(self._waiting) == MOST_WAITING)
            self._waiting.append(impression)

    def page(
        self, after: int, count: int, *, user: str | None = None, request_id: str | None = None
    ) -> list[tuple[int, Impression]]:
        """Up to ``count`` with their positions, from the one after a position; of one user or request, if given."""
        query = sa.select(IMPRESSIONS).where(IMPRESSIONS.c.position > after).order_by(IMPRESSIONS.c.position)
        for column, key in ((IMPRESSIONS.c.user, user), (IMPRESSIONS.c.request_id, request_id)):
            query = query if key is None else query.where(column == key)
        query = query.limit(count)
        return self._database.read(lambda connection: [_impression(row) for row in connection.execute(query)])

    def flush(self) -> None:
        """Write what waits, before this returns.

        Raises:
            UnavailableError: The database does not answer; what waited still does.
        """
        with self._writing:
            while self._waiting:
                some = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_TOGETHER))]
                try:
                    self._database.write(partial(_insert, some))
                except (UnavailableError, BusyError):
                    room = MOST_WAITING - len(self._waiting)
                    self._lose(max(len(some) - room, 0))
                    # The oldest go first.
                    self._waiting.extendleft(reversed(some[len(some) - room :] if room < len(some) else some))
                    raise
                except Exception:
                    self._lose(len(some))
                    raise

    def stop(self) -> None:
        """Write what waits, and end."""
        self._ended.set()
        self._thread.join()

    def _write_behind(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(WRITE_SECONDS)
            try:
                self.flush()
                self._tell_lost()
                self._tidy()
            except (UnavailableError, BusyError):
                # What waits is written when it answers again.
                continue
            except Exception:
                _LOG.exception("impressions could not be written")

    def _lose(self, count: int) -> None:
        if count:
            self._lost += count
            IMPRESSIONS_LOST.inc(count)

    def _tell_lost(self) -> None:
        if self._lost:
            _LOG.warning("%d impressions were not kept: the database did not take them in time", self._lost)
            self._lost = 0

    def _tidy(self) -> None:
        """Remove those that are older than they are to be, some at a time: writers wait for no longer."""
        if self.days is None or time.monotonic() < self._tidied + TIDY_SECONDS:
            return
        cutoff = int(time.time() * 1000) - self.days * DAY
        oldest = sa.select(IMPRESSIONS.c.position, IMPRESSIONS.c.at).order_by(IMPRESSIONS.c.position)
        while True:
            rows = self._database.read(lambda connection: connection.execute(oldest.limit(MOST_TOGETHER)).all())
            old = [row.position for row in rows if row.at < cutoff]
            if old:
                self._database.write(partial(_remove_until, old[-1]))
            if len(old) < MOST_TOGETHER:
                break
        self._tidied = time.monotonic()


def _remove_until(position: int, connection: sa.Connection) -> None:
    connection.execute(sa.delete(IMPRESSIONS).where(IMPRESSIONS.c.position <= position))


def _insert(impressions: list[Impression], connection: sa.Connection) -> None:
    """Write them, but for those of users who were erased since."""
    since = min(impression.at for impression in impressions) - CLOCKS
    recent = sa.select(ERASURES.c.fingerprint, ERASURES.c.asked).where(ERASURES.c.asked >= since)
    erased = {row.fingerprint: row.asked for row in connection.execute(recent)}
    salt = salt_of(connection) if erased else b""

    def is_gone(impression: Impression) -> bool:
        if not erased or impression.user is None:
            return False
        return impression.at <= erased.get(fingerprint(salt, impression.user), -CLOCKS) + CLOCKS

    rows = [{**vars(impression)} for impression in impressions if not is_gone(impression)]
    if rows:
        connection.execute(sa.insert(IMPRESSIONS), rows)


def _impression(row: sa.Row[Any]) -> tuple[int, Impression]:
    values = row._mapping
    return values[IMPRESSIONS.c.position], Impression(**{column.name: values[column] for column in COLUMNS})
