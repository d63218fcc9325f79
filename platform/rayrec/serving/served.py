"""A Release at work in a replica: its queue, what it remembers, and how it does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from rayrec.recipe_serving import Serving
from rayrec.serving.batching import Batcher, LateError, OverloadedError
from rayrec.serving.cache import AnswerCache, Remembering
from rayrec.serving.engine import Engine
from rayrec.serving.metrics import FAILED, FALLBACKS, LATE
from rayrec.serving.queries import Answer, Query
from rayrec.serving.store.store import Store

_LOG = logging.getLogger("ray.serve")

WINDOW_SECONDS = 10.0
MOST_FAILURES = 5
MOST_SHARE = 0.02


class Failures:
    """Whether the latest answers of too many users failed: of at least so many, and of more than a share of all.

    A user counts once: somebody whose history is too much for the model takes no Release from the others.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._failed: set[str] = set()
        self._since = time.monotonic()

    def count(self, who: str | None = None) -> bool:
        """Count an answer, one that failed by whom it was for. Returns whether they are too many now."""
        if time.monotonic() > self._since + WINDOW_SECONDS:
            self._asked, self._since = 0, time.monotonic()
            self._failed.clear()
        self._asked += 1
        if who is None:
            return False
        # Sessions have no key.
        self._failed.add(who or f"\0{self._asked}")
        return len(self._failed) >= MOST_FAILURES and len(self._failed) > MOST_SHARE * self._asked


class Served:
    """An engine with its queue, what it remembers, and its store.

    Args:
        engine: The engine.
        store: Its events, items and users.
        settings: The recipe's `serving` section, with what has been changed since.

    Attributes:
        digest: The Release's.
        deadline: Seconds after which nobody waits for an answer.
        failing: Called with the last error when too many answers fail.
    """

    def __init__(self, engine: Engine, store: Store, settings: Serving) -> None:
        self.engine = engine
        self.store = store
        self.digest = engine.release.digest
        self.failing: Callable[[Served, Exception], object] | None = None
        self.deadline = settings.deadline_ms / 1000
        self._failures = Failures()

        def compute(queries: Sequence[Query]) -> Sequence[Answer]:
            return engine.answer(queries)

        batcher = Batcher(compute, settings.max_batch_size, settings.queue, self.deadline)
        remembering = Remembering(settings.cache_answers, settings.cache_seconds, settings.coalesce)
        self._cache = AnswerCache(batcher.submit, store.catalog, remembering)
        store.tell(self._cache)

    async def answer(self, query: Query) -> Answer:
        """The answer to a query; popular items, marked, where it comes too late or cannot be computed.

        Raises:
            OverloadedError: Too many requests are waiting.
        """
        try:
            found = await self._cache.answer(query)
        except OverloadedError:
            raise
        except LateError:
            FALLBACKS.labels(LATE).inc()
            return self.engine.fallback(query)
        except Exception as error:
            _LOG.error("Release %s failed to answer: %r", self.digest, error, exc_info=error)
            if self._failures.count(query.who) and self.failing is not None:
                self.failing(self, error)
            FALLBACKS.labels(FAILED).inc()
            return self.engine.fallback(query)
        self._failures.count()
        return found

    def check(self) -> None:
        """Answer, and compare the models' scores with their golden ones.

        Raises:
            Exception: It cannot answer, or gives other scores.
        """
        self.engine.check()
        self.engine.answer([self.engine.session_query([], 1, 0)])
