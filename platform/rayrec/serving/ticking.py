"""What a replica does every second, beside answering."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_LOG = logging.getLogger("rayrec.serving")

EVERY_SECONDS = 1.0


class Ticker:
    """A thread that calls some functions every second, and once more at the end.

    Args:
        works: They are called in this order.
    """

    def __init__(self, *works: Callable[[], None]) -> None:
        self._works = works
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="ticker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._ended.set()
        self._thread.join()

    def _tick(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(EVERY_SECONDS)
            for work in self._works:
                try:
                    work()
                except Exception:
                    # A replica answers whether or not anybody watches.
                    _LOG.exception("what is done every second failed")
