"""Which of several Releases answers whom: a main one, arms for shares of the users, and a shadow that nobody hears."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rayrec.serving import metrics
from rayrec.serving.queries import Answer
from rayrec.serving.served import Served
from rayrec.serving.user_config import MAIN, SHADOW

_LOG = logging.getLogger("ray.serve")

MOST_SHADOWED = 16
"""Requests that a shadow answers at a time; what comes meanwhile it is not asked."""


@dataclass(frozen=True)
class Arm:
    """A Release for a share of the users."""

    name: str
    share: float
    served: Served


def place_of(user: str, experiment: str) -> float:
    """Where a user stands among all, from 0 to 1: the same in every replica, and after every start."""
    known = hashlib.blake2b(f"{experiment}\0{user}".encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(known) / (1 << 64)


@dataclass(frozen=True)
class Lineup:
    """The Releases of a replica, swapped together.

    Attributes:
        main: Answers whoever is in no arm, and who gives no name.
        arms: The others, which begin at 0 one after the other.
        experiment: What users are divided by, besides their keys.
        shadow: Asked the same, if there is one.
    """

    main: Served
    arms: Sequence[Arm] = ()
    experiment: str = ""
    shadow: Shadowed | None = None

    def arm_of(self, user: str | None) -> Arm:
        """The arm of a user."""
        if self.arms and user is not None:
            place, end = place_of(user, self.experiment), 0.0
            for arm in self.arms:
                end += arm.share
                if place < end:
                    return arm
        return Arm(MAIN, 1.0, self.main)

    def named(self) -> Iterator[tuple[str, Served]]:
        """Every Release with the name of its arm."""
        yield MAIN, self.main
        yield from ((arm.name, arm.served) for arm in self.arms)
        if self.shadow:
            yield SHADOW, self.shadow.served

    def all(self) -> list[Served]:
        """Every Release."""
        return [served for _, served in self.named()]

    def without(self, served: Served) -> Lineup:
        """The same without an arm or a shadow, whose users the main Release answers."""
        shadow = None if self.shadow and self.shadow.served is served else self.shadow
        return replace(self, arms=[arm for arm in self.arms if arm.served is not served], shadow=shadow)


class Shadowed:
    """A Release that is asked what another one was, after that has answered.

    Args:
        served: The Release.
        share: Of the requests.
    """

    def __init__(self, served: Served, share: float) -> None:
        self.served = served
        self._share = share
        self._under_way: set[asyncio.Task[None]] = set()

    def ask(self, user: str, count: int, given: Answer) -> None:
        """Ask for a user, unless it has enough to do; nobody waits for it."""
        if len(self._under_way) < MOST_SHADOWED and random.random() < self._share:
            task = asyncio.get_running_loop().create_task(self._answer(user, count, given))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _answer(self, user: str, count: int, given: Answer) -> None:
        began = time.monotonic()
        try:
            query = await asyncio.to_thread(self.served.engine.user_query, user, count, 0)
            found = await self.served.answer(query) if query else None
        except Exception as error:
            # Whatever a Release on trial does, those who are answered by another do not notice.
            metrics.answered(SHADOW, time.monotonic() - began, True)
            _LOG.warning("the shadow Release %s failed: %r", self.served.digest, error)
            return
        if found is None:
            return
        metrics.answered(SHADOW, time.monotonic() - began, found.degraded)
        both = {one.item.item for one in found.items} & {one.item.item for one in given.items}
        metrics.SHADOW_AGREEMENT.observe(len(both) / max(1, len(given.items)))
