"""Answers that are given again: the same question by the same user, who has done nothing since."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from rayrec.serving.metrics import CACHE_HITS, CACHE_MISSES, CACHE_SHARED
from rayrec.serving.queries import Answer, Query
from rayrec.serving.state import Catalog

MOST_OF_A_USER = 16
NONE: Mapping[Hashable, _Kept] = {}


@dataclass(frozen=True)
class Remembering:
    """What is remembered.

    Attributes:
        answers: Of how many users, at most; 0 remembers none.
        seconds: For how long.
        coalesce: Whether those who ask the same at once share one answer.
    """

    answers: int
    seconds: float
    coalesce: bool


@dataclass(frozen=True)
class _Kept:
    """An answer, or who computes it, and what it holds for.

    Attributes:
        history: The very array that it was computed from: whoever does something gets another one.
        version: Of the catalogue.
        until: By `time.monotonic`.
        answer: The answer.
    """

    history: np.ndarray
    version: int
    until: float
    answer: asyncio.Future[Answer]

    def holds(self, query: Query, version: int) -> bool:
        """Whether it answers a query now."""
        return self.history is query.history and self.version == version and time.monotonic() < self.until


class AnswerCache:
    """Answers of one engine.

    Args:
        compute: Answers a query.
        catalog: The items: with a change of any of them everything is asked anew.
        remembering: What is remembered.
    """

    def __init__(
        self, compute: Callable[[Query], Awaitable[Answer]], catalog: Catalog, remembering: Remembering
    ) -> None:
        self._compute = compute
        self._catalog = catalog
        self._remembering = remembering
        self._kept: OrderedDict[str, Mapping[Hashable, _Kept]] = OrderedDict()
        self._under_way: dict[Hashable, _Kept] = {}
        self.hits = self.shared = 0

    async def answer(self, query: Query) -> Answer:
        """The answer to a query, computed or given again. Sessions, and whoever asks how it came, get their own."""
        is_kept = self._remembering.answers or self._remembering.coalesce
        if not is_kept or not query.who or not len(query.history) or query.debug:
            return await self._compute(query)
        name, version = self._name(query), self._catalog.version
        kept = self._kept.get(query.who, NONE).get(name)
        if kept is not None and kept.holds(query, version):
            self.hits += 1
            CACHE_HITS.inc()
            return kept.answer.result()
        waiting = self._under_way.get(name)
        if waiting is not None and waiting.holds(query, version):
            self.shared += 1
            CACHE_SHARED.inc()
            # Whoever leaves must not take the answer with them.
            return await asyncio.shield(waiting.answer)
        CACHE_MISSES.inc()
        return await self._computed(name, query, version)

    async def _computed(self, name: Hashable, query: Query, version: int) -> Answer:
        future = asyncio.ensure_future(self._compute(query))
        mine = _Kept(query.history, version, time.monotonic() + self._remembering.seconds, future)
        if self._remembering.coalesce:
            self._under_way[name] = mine
        try:
            answer = await asyncio.shield(future)
        finally:
            if self._under_way.get(name) is mine:
                del self._under_way[name]
        if self._remembering.answers:
            self._keep(query.who, name, mine)
        return answer

    def forget(self, users: Iterable[str] | None) -> None:
        """Remember no answer of some users, who have done something or are to be forgotten; None: of nobody."""
        for user in [*self._kept] if users is None else users:
            self._kept.pop(user, None)

    def _keep(self, user: str, name: Hashable, mine: _Kept) -> None:
        others = {other: kept for other, kept in self._kept.get(user, NONE).items() if kept.until > time.monotonic()}
        several = {} if len(others) >= MOST_OF_A_USER else others
        self._kept[user] = {**several, name: mine}
        self._kept.move_to_end(user)
        # Those that are too old are not kept waiting for their room to be needed.
        while self._kept and (len(self._kept) > self._remembering.answers or self._is_first_old()):
            self._kept.popitem(last=False)

    def _is_first_old(self) -> bool:
        return all(kept.until <= time.monotonic() for kept in next(iter(self._kept.values())).values())

    def _name(self, query: Query) -> Hashable:
        """What is asked, but for the history. Of the moment only about when: models that read it change slowly."""
        about_when = int(query.at / max(self._remembering.seconds, 1))
        said = tuple(repr(sorted(given.items())) for given in (query.user, query.moment))
        return query.who, query.count, query.offset, query.wanted, about_when, said
