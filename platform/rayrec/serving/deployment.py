"""The Ray Serve side: one deployment whose replicas hold the scorer, swapped in place when the Release changes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast

from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig

from rayrec.artifacts import Storage
from rayrec.recipe import Serving
from rayrec.serving.app import build_app
from rayrec.serving.batching import Batcher
from rayrec.serving.engine import Answer, Engine, Query

APP_NAME = "rayrec"
GRACEFUL_SECONDS = 10
HEALTH_SECONDS = 10
SLACK = 100


class UserConfig(TypedDict):
    """What can change while replicas run: which Release is live, and how it batches."""

    storage: str
    release: str
    max_batch_size: int
    max_queued_requests: int


@dataclass(frozen=True)
class _Live:
    """An engine and its queue, swapped together."""

    engine: Engine
    batcher: Batcher[Query, Answer]


@serve.deployment(name="endpoint")
@serve.ingress()
class Endpoint:
    """A replica: HTTP in, batches, scores, HTTP out, all in one process."""

    def __init__(self) -> None:
        self._live: _Live | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self)

    @property
    def engine(self) -> Engine | None:
        """See `rayrec.serving.app.Backend`."""
        return self._live.engine if self._live else None

    async def answer(self, engine: Engine, query: Query) -> Answer:
        """See `rayrec.serving.app.Backend`. A request begun on one Release ends on it."""
        live = self._live
        if live is None or live.engine is not engine:
            return engine.answer([query])[0]
        return await live.batcher.submit(query)

    async def reconfigure(self, config: UserConfig) -> None:
        """Load, check and warm the Release beside the live one, then put it in its place by one assignment."""
        storage = Storage.open(config["storage"])
        engine = await asyncio.to_thread(Engine.load, storage, config["release"])

        def compute(queries: Sequence[Query]) -> Sequence[Answer]:
            return engine.answer(queries)

        self._live = _Live(engine, Batcher(compute, config["max_batch_size"], config["max_queued_requests"]))

    async def check_health(self) -> None:
        """Called by Serve: a replica that cannot answer is replaced."""
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
    config: UserConfig = {
        "storage": storage.uri,
        "release": release,
        "max_batch_size": settings.max_batch_size,
        "max_queued_requests": settings.max_queued_requests,
    }
    # Serve's decorator replaces the class, which type checkers do not see.
    deployment = cast("Any", Endpoint).options(
        user_config=config,
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
    return deployment.bind()
