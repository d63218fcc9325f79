"""Releases come and go in a replica: loaded beside those that answer, checked, put in their place, and taken back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rayrec.artifacts import Storage
from rayrec.data.dataset import open_dataset
from rayrec.inference.release import open_release
from rayrec.recipe_serving import Serving
from rayrec.serving import logs, metrics, tracing
from rayrec.serving.engine import Engine
from rayrec.serving.lineup import Arm, Lineup, Shadowed
from rayrec.serving.queries import ANYTHING, Answer, Query
from rayrec.serving.served import Served
from rayrec.serving.store.store import Store
from rayrec.serving.user_config import MAIN, UserConfig
from rayrec.tracking import find_release

_LOG = logging.getLogger("ray.serve")

PROBATION_SECONDS = 600
"""How long the Releases before stay in memory, to go back to."""
RETRY_SECONDS, MOST_RETRY_SECONDS = 5.0, 300.0
NOW = 0.0, RETRY_SECONDS
"""When what was refused is tried again, and how long after that."""
StoreOf = Callable[[str | None, str], Store]
"""Gives the store at a URL, or a recommender's own."""


@dataclass(frozen=True)
class Pinned:
    """A Release, wherever references lead tomorrow."""

    storage: str
    digest: str


@dataclass(frozen=True)
class Plan:
    """What is to be served: a configuration whose references have been looked up.

    Attributes:
        main: The main Release.
        arms: Those of the arms, by name.
        shadow: That of the shadow.
        config: The configuration.
    """

    main: Pinned
    arms: Mapping[str, Pinned]
    shadow: Pinned | None
    config: UserConfig

    @classmethod
    def of(cls, config: UserConfig, following: bool) -> Plan:
        """Look the references up.

        Args:
            config: The configuration.
            following: Whether it is asked where the alias leads by now that ``config`` follows.

        Raises:
            ModelError: One is not registered.
        """

        def find(release: str) -> Pinned:
            if config.is_digest(release):
                return Pinned(config.storage or "", release)
            found = find_release(release)
            return Pinned(found.storage, found.digest)

        main = find(config.follow if following and config.follow else config.release)
        arms = {name: find(arm.release) for name, arm in sorted(config.arms.items())}
        return cls(main, arms, find(config.shadow.release) if config.shadow else None, config)

    def without(self, digests: set[str]) -> Plan | None:
        """The same without some Releases in arms or as the shadow; None where the main one is among them."""
        if self.main.digest in digests:
            return None
        arms = {name: one for name, one in self.arms.items() if one.digest not in digests}
        shadow = None if self.shadow and self.shadow.digest in digests else self.shadow
        return replace(self, arms=arms, shadow=shadow)


class Rollout:
    """The Releases of a replica.

    Args:
        store_of: Gives the store of a Release.
        replica: The replica's name, for its log and its spans.

    Attributes:
        lineup: What answers; None while the first ones load.
        refused: Why what was asked for last is not what answers; None when it is.
    """

    def __init__(self, store_of: StoreOf, replica: str = "") -> None:
        self.lineup: Lineup | None = None
        self.refused: str | None = None
        self._store_of = store_of
        self._replica = replica
        self._config: UserConfig | None = None
        self._plan: Plan | None = None
        self._before: tuple[Lineup, Plan, float] | None = None
        self._given_up: set[str] = set()
        self._retry = NOW
        self._swapping = asyncio.Lock()
        self._following: asyncio.Task[None] | None = None

    async def configure(self, config: dict[str, Any]) -> None:
        """Load, check and warm Releases beside those that answer, then put them in their place by one assignment.

        Raises:
            RayrecError: There is no such Release, or it is damaged, and none answers. When some do, they go on: Serve
                would end a replica that raises here, and answers from the Release before are better than none. It is
                tried again by `follow`.
        """
        # Whoever asks for one again may have mended it.
        self._given_up.clear()
        self._retry, self._config = NOW, None
        try:
            self._config = UserConfig.of(config)
            plan = await asyncio.to_thread(Plan.of, self._config, False)
        except Exception as error:
            self._refuse(error)
            return
        await self._swap(plan)

    def follow(self) -> None:
        """Begin to load what is to be served by now, if that is something else: an alias has moved, or a load failed.

        Not waited for: Serve takes a check of health that lasts long for a replica that hangs.
        """
        if self._before is not None and time.monotonic() > self._before[2]:
            self._before = None
        is_idle = self._following is None or self._following.done()
        if is_idle and self._config is not None and (self._config.follows or self.refused):
            self._following = asyncio.get_running_loop().create_task(self._follow(self._config))

    async def _follow(self, config: UserConfig) -> None:
        try:
            found = await asyncio.to_thread(Plan.of, config, True)
        except Exception as error:
            # Where references lead cannot be told now: what is served stays.
            _LOG.warning("Releases could not be looked up: %s", error)
            return
        plan = found.without(self._given_up)
        if plan is None or config is not self._config:
            return
        if plan != self._plan:
            if time.monotonic() > self._retry[0]:
                await self._swap(plan)
        elif plan == found:
            self.refused = None

    async def answer(self, engine: Engine, query: Query) -> Answer:
        """The answer to a query that was made for an engine: a request that was begun on one Release ends on it."""
        lineup = self.lineup
        served = next((one for one in self._in_memory() if one.engine is engine), None)
        if served is None:
            return await asyncio.to_thread(_last_answer, engine, query)
        began = time.monotonic()
        answer = await served.answer(query)
        arm = next((name for name, one in lineup.named() if one is served), MAIN) if lineup else MAIN
        metrics.answered(arm, time.monotonic() - began, answer.degraded)
        if lineup and lineup.shadow and served is lineup.main and query.who and query.wanted == ANYTHING:
            lineup.shadow.ask(query.who, query.count, answer)
        return answer

    async def check(self) -> None:
        """Compare every Release with its golden answers, and go back where one gives others.

        Raises:
            Exception: The main one does, and there is none to go back to.
        """
        for served in self.lineup.all() if self.lineup else []:
            try:
                await asyncio.to_thread(served.check)
            except Exception as error:
                if not self.roll_back(served, error):
                    raise

    def roll_back(self, served: Served, error: Exception) -> bool:
        """Serve without a Release from now on: an arm's users go to the main one, a main one's to the one before.

        Returns:
            Whether there was something to go back to.
        """
        lineup = self.lineup
        if lineup is None or served not in lineup.all():
            return True
        if served is not lineup.main:
            self.lineup = lineup.without(served)
        elif self._before is not None and self._before[0].main is not served:
            self.lineup, self._plan, _ = self._before
            self._before = None
        else:
            return False
        self._given_up.add(served.digest)
        self._plan = self._plan and self._plan.without(self._given_up)
        self.refused = f"Release {served.digest} was rolled back: {error}"
        metrics.RELEASES_ROLLED_BACK.inc()
        self._show()
        _LOG.error("%s", self.refused)
        return True

    async def _swap(self, plan: Plan) -> None:
        async with self._swapping:
            try:
                lineup = await asyncio.to_thread(self._load, plan)
            except Exception as error:
                # Whatever it is, down to a Release of a newer rayrec.
                self._refuse(error)
                return
            if self.lineup is not None and self._plan is not None and self._plan.main != plan.main:
                self._before = self.lineup, self._plan, time.monotonic() + PROBATION_SECONDS
            for served in lineup.all():
                served.failing = self.roll_back
            self.lineup, self._plan = lineup, plan
            self.refused, self._retry = None, NOW
            self._show()

    def _refuse(self, error: Exception) -> None:
        if self.lineup is None:
            raise error
        self.refused = str(error)
        metrics.RELEASES_REFUSED.inc()
        _, seconds = self._retry
        self._retry = time.monotonic() + seconds, min(2 * seconds, MOST_RETRY_SECONDS)
        _LOG.error("Release %s stays live. Refused: %s", self.lineup.main.digest, error)

    def _show(self) -> None:
        if self.lineup is not None:
            metrics.show_live({arm: served.engine.release for arm, served in self.lineup.named()})

    def _load(self, plan: Plan) -> Lineup:
        """Everything of a plan, ready to answer. Settings of a Release that answers already may be others now."""
        config = plan.config
        main = self._served(plan.main, config, None)
        loaded = {plan.main: main}
        for one in (*plan.arms.values(), *filter(None, [plan.shadow])):
            if one not in loaded:
                # What happens is told to one store, whoever recommended it.
                loaded[one] = self._served(one, config, main.store)
        arms = [Arm(name, config.arms[name].share, loaded[one]) for name, one in plan.arms.items()]
        shadow = Shadowed(loaded[plan.shadow], config.shadow.share) if plan.shadow and config.shadow else None
        return Lineup(loaded[plan.main], arms, config.experiment, shadow)

    def _served(self, one: Pinned, config: UserConfig, store: Store | None) -> Served:
        storage = Storage.open(one.storage)
        content = open_release(storage, one.digest).content
        settings = Serving(**{**content["serving"], **config.settings()})
        is_main, store = store is None, store or self._store_of(settings.state, content["name"])
        engine = self._engine(one.digest, store) or Engine.load(
            storage, one.digest, known=store.histories_of, catalog=store.catalog, trending=store.trending
        )
        # Only of a Release that can be asked.
        store.fill(open_dataset(storage, content["dataset"]["name"], content["dataset"]["manifest"]))
        engine.warm()
        store.impressions.days = settings.impressions_days
        if is_main:
            tracing.switch(settings.tracing, self._replica)
            logs.log_access(settings.access_log)
        served = Served(engine, store, settings)
        served.check()
        return served

    def _engine(self, digest: str, store: Store) -> Engine | None:
        """One that is in memory already."""
        known = self._in_memory()
        return next((served.engine for served in known if (served.digest, served.store) == (digest, store)), None)

    def _in_memory(self) -> Iterator[Served]:
        if self.lineup is not None:
            yield from self.lineup.all()
        if self._before is not None:
            yield from self._before[0].all()


def _last_answer(engine: Engine, query: Query) -> Answer:
    """Of an engine that is gone since the question was made for it."""
    try:
        return engine.answer([query])[0]
    except Exception:
        _LOG.exception("Release %s, which is no longer live, failed to answer", engine.release.digest)
        return engine.fallback(query)
