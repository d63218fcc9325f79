"""What trends, in memory: counting a day's events takes longer than an answer may."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from rayrec.serving.store.database import UnavailableError
from rayrec.serving.store.events import StoredEvents

HOURS = 24
MOST = 1000
STALE_SECONDS = 10


class Trending:
    """The keys of items that most users did something with in the last day, counted again every ten seconds.

    Args:
        events: The log.
    """

    def __init__(self, events: StoredEvents) -> None:
        self._events = events
        self._keys: Sequence[str] = ()
        self._counted = float("-inf")
        self._counting = threading.Lock()

    def __call__(self) -> Sequence[str]:
        """The item that trends most first; those of before while they are counted again, or cannot be."""
        if time.monotonic() > self._counted + STALE_SECONDS and self._counting.acquire(blocking=False):
            # Whoever holds the lock counts; the others go on.
            threading.Thread(target=self._count, name="trending", daemon=True).start()
        return self._keys

    def count(self) -> None:
        """Count now, before this returns."""
        with self._counting:
            self._read()

    def _count(self) -> None:
        try:
            self._read()
        finally:
            self._counting.release()

    def _read(self) -> None:
        try:
            since = int((time.time() - 3600 * HOURS) * 1000)
            self._keys = [key for key, _ in self._events.most_users(since, MOST)]
        except UnavailableError:
            # What trended before is as good as anything.
            pass
        self._counted = time.monotonic()
