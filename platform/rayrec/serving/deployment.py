"""The Ray Serve side: one deployment whose replicas hold the scorer, swapped in place when the Release changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve.config import BackpressureConfig

from rayrec.artifacts import Storage
from rayrec.data.dataset import open_dataset
from rayrec.errors import RecipeError
from rayrec.inference.release import open_release
from rayrec.recipe_serving import Serving
from rayrec.serving.app import build_app
from rayrec.serving.batching import Batcher
from rayrec.serving.cache import AnswerCache, Remembering
from rayrec.serving.engine import Engine
from rayrec.serving.queries import Answer, Query
from rayrec.serving.store.store import Store, state_url
from rayrec.tracking import find_release

_LOG = logging.getLogger("ray.serve")

APP_NAME = "rayrec"
GRACEFUL_SECONDS = 10
HEALTH_SECONDS = 10
SLACK = 100


class UserConfig(BaseModel):
    """What can change while replicas run: Serve's ``user_config``.

    Attributes:
        release: NAME, NAME@ALIAS or NAME/VERSION, looked up in MLflow by each replica; with ``storage``, a digest. A
            replica that starts later looks an alias up anew, so NAME/VERSION is what keeps all replicas alike.
        storage: Where the Release lives, when ``release`` is a digest.
        max_batch_size: See the recipe's `serving`; by default what the Release says. So are the others.
    """

    model_config = ConfigDict(extra="forbid")

    release: str
    storage: str | None = None
    max_batch_size: int | None = Field(None, ge=1)
    max_queued_requests: int | None = Field(None, ge=1)
    cache_answers: int | None = Field(None, ge=0)
    cache_seconds: float | None = Field(None, ge=0)
    coalesce: bool | None = None
    impressions_days: int | None = Field(None, ge=0)
    state: str | None = None

    def settings(self) -> dict[str, Any]:
        """What it says of the recipe's `serving`."""
        return self.model_dump(exclude={"release", "storage"}, exclude_none=True)

    def find(self) -> tuple[Storage, str]:
        """The storage and the digest of the Release.

        Raises:
            ModelError: It is not registered.
        """
        if self.storage is not None:
            return Storage.open(self.storage), self.release
        found = find_release(self.release)
        return Storage.open(found.storage), found.digest


@dataclass(frozen=True)
class _Live:
    """An engine with what it remembers, its queue behind that, and its store, swapped together."""

    engine: Engine
    cache: AnswerCache
    store: Store


@serve.deployment(name="endpoint")
@serve.ingress()
class Endpoint:
    """A replica: HTTP in, batches, scores, HTTP out, all in one process."""

    tells_request_id = True

    def __init__(self) -> None:
        self._live: _Live | None = None
        self._refused: str | None = None
        self._wanted: dict[str, Any] = {}
        self._stores: dict[str, Store] = {}

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self)

    @property
    def engine(self) -> Engine | None:
        """See `rayrec.serving.app.Backend`."""
        return self._live.engine if self._live else None

    @property
    def store(self) -> Store | None:
        """See `rayrec.serving.app.Backend`."""
        return self._live.store if self._live else None

    @property
    def refused(self) -> str | None:
        """See `rayrec.serving.app.Backend`."""
        return self._refused

    async def answer(self, engine: Engine, query: Query) -> Answer:
        """See `rayrec.serving.app.Backend`. A request begun on one Release ends on it."""
        live = self._live
        if live is None or live.engine is not engine:
            return engine.answer([query])[0]
        return await live.cache.answer(query)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Load, check and warm the Release beside the live one, then put it in its place by one assignment.

        Raises:
            RayrecError: There is no such Release, or it is damaged, and none is live. With one live, that stays: Serve
                would end a replica that raises here, and answers from the Release before are better than none. It is
                tried again with every check of health.
        """
        self._wanted = config
        try:
            self._live = await asyncio.to_thread(self._load, config)
        except Exception as error:
            # Whatever it is, down to a Release of a newer rayrec.
            if self._live is None:
                raise
            self._refused = str(error)
            _LOG.error("Release %s stays live. Refused: %s", self._live.engine.release.digest, error)
        else:
            self._refused = None

    def _load(self, config: dict[str, Any]) -> _Live:
        try:
            given = UserConfig.model_validate(config)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise RecipeError(f"user_config: {problems}. Known keys: {', '.join(UserConfig.model_fields)}.") from error
        storage, digest = given.find()
        content = open_release(storage, digest).content
        settings = Serving(**{**content["serving"], **given.settings()})
        store = self._store_of(settings.state, content["name"])
        engine = Engine.load(storage, digest, known=store.histories_of, catalog=store.catalog, trending=store.trending)
        # Only of a Release that can be asked.
        store.fill(open_dataset(storage, content["dataset"]["name"], content["dataset"]["manifest"]))
        engine.warm()
        store.impressions.days = settings.impressions_days

        def compute(queries: Sequence[Query]) -> Sequence[Answer]:
            return engine.answer(queries)

        batcher = Batcher(compute, settings.max_batch_size, settings.max_queued_requests)
        remembering = Remembering(settings.cache_answers, settings.cache_seconds, settings.coalesce)
        cache = AnswerCache(batcher.submit, store.catalog, remembering)
        store.tell(cache)
        return _Live(engine, cache, store)

    def _store_of(self, url: str | None, name: str) -> Store:
        """The store at a URL, which stays open for as long as replicas live: Releases come and go."""
        place = state_url(url, name)
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        if place.startswith("sqlite") and len(nodes) > 1:
            raise RecipeError(
                "serving.state: replicas on several nodes share no SQLite file. Give the URL of a PostgreSQL."
            )
        if place not in self._stores:
            self._stores[place] = Store(place)
        return self._stores[place]

    def __del__(self) -> None:
        """Called by Serve when a replica has answered what it was asked: what waits is written."""
        for store in self._stores.values():
            store.close()

    async def check_health(self) -> None:
        """Called by Serve: a replica that cannot answer is replaced."""
        if self._refused is not None:
            # The storage or MLflow may answer by now.
            await self.reconfigure(self._wanted)
        if self._live is not None:
            engine = self._live.engine
            await asyncio.to_thread(engine.answer, [engine.session_query([], 1, 0)])


def build_application(storage: Storage, release: str, settings: Serving) -> Any:
    """The Serve application for a Release.

    Args:
        storage: Where the Release lives; every node must reach it.
        release: Its digest.
        settings: The recipe's `serving` section.
    """
    config = UserConfig(
        storage=storage.uri,
        release=release,
        **{name: getattr(settings, name) for name in UserConfig.model_fields if name not in {"release", "storage"}},
    )
    return _with_options(settings).options(user_config=config.model_dump()).bind()


def application(_arguments: dict[str, str]) -> Any:
    """The Serve application for `serve deploy`, whose file says which Release (deployments/local.yaml)."""
    return _with_options(Serving()).bind()


def _with_options(settings: Serving) -> Any:
    # Serve's decorator replaces the class, which type checkers do not see.
    return cast("Any", Endpoint).options(
        ray_actor_options={"num_cpus": settings.replica_cpus},
        # The replica's own queue sheds load, with an answer like all others; Serve's bounds are only behind it.
        max_ongoing_requests=2 * (settings.max_batch_size + settings.max_queued_requests) + SLACK,
        max_queued_requests=2 * settings.max_queued_requests + SLACK,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing_requests,
        },
        graceful_shutdown_timeout_s=GRACEFUL_SECONDS,
        health_check_period_s=HEALTH_SECONDS,
    )
