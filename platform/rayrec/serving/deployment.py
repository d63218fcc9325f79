"""The Ray Serve side: one deployment whose replicas hold the scorer, swapped in place when the Release changes."""

from __future__ import annotations

import gc
from typing import Any, cast

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig

from rayrec.artifacts import Storage
from rayrec.errors import RecipeError
from rayrec.recipe_serving import Serving
from rayrec.serving import logs, metrics, tracing
from rayrec.serving.app import build_app
from rayrec.serving.engine import Engine
from rayrec.serving.exporting import Exporter
from rayrec.serving.queries import Answer, Query
from rayrec.serving.rollout import Rollout
from rayrec.serving.store.store import Store, state_url
from rayrec.serving.ticking import Ticker
from rayrec.serving.user_config import UserConfig

APP_NAME = "rayrec"
GRACEFUL_SECONDS = 10
HEALTH_SECONDS = 4
"""A Release that fails is taken back within ten."""
METRICS_SECONDS = 2
COLLECT_AFTER = 20_000, 20, 20
"""Objects, as `gc.set_threshold` takes them: what Python looks for by default after 700 took a twelfth of a request."""
SLACK = 100


@serve.deployment(name="endpoint")
@serve.ingress()
class Endpoint:
    """A replica: HTTP in, batches, scores, HTTP out, all in one process."""

    tells_request_id = True

    def __init__(self) -> None:
        self._stores: dict[str, Store] = {}
        gc.set_threshold(*COLLECT_AFTER)
        replica = serve.get_replica_context().replica_tag
        logs.join_serve(replica)
        self._rollout = Rollout(self._store_of, replica)
        self._ticker = Ticker(Exporter(metrics.REGISTRY).hand_over, logs.flush)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self)

    @property
    def engine(self) -> Engine | None:
        """See `rayrec.serving.envelope.Backend`."""
        return self._rollout.lineup.main.engine if self._rollout.lineup else None

    def engine_of(self, user: str | None) -> Engine | None:
        """See `rayrec.serving.envelope.Backend`."""
        return self._rollout.lineup.arm_of(user).served.engine if self._rollout.lineup else None

    @property
    def deadline(self) -> float:
        """See `rayrec.serving.envelope.Backend`."""
        return self._rollout.lineup.main.deadline if self._rollout.lineup else 1.0

    @property
    def store(self) -> Store | None:
        """See `rayrec.serving.envelope.Backend`."""
        return self._rollout.lineup.main.store if self._rollout.lineup else None

    @property
    def refused(self) -> str | None:
        """See `rayrec.serving.envelope.Backend`."""
        return self._rollout.refused

    async def answer(self, engine: Engine, query: Query) -> Answer:
        """See `rayrec.serving.envelope.Backend`."""
        return await self._rollout.answer(engine, query)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Called by Serve with what the replica is to serve, see `Rollout.configure`."""
        await self._rollout.configure(config)

    async def check_health(self) -> None:
        """Called by Serve: a replica that cannot answer, or gives other answers than its models did, is replaced."""
        self._rollout.follow()
        await self._rollout.check()

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
        self._ticker.stop()
        tracing.end()


def build_application(storage: Storage, release: str, settings: Serving, follow: str | None = None) -> Any:
    """The Serve application for a Release.

    Args:
        storage: Where the Release lives; every node must reach it.
        release: Its digest.
        settings: The recipe's `serving` section.
        follow: NAME or NAME@ALIAS, when it is that which is served, whatever Release it leads to.
    """
    shared = settings.model_dump(include={*UserConfig.model_fields})
    config = UserConfig(storage=storage.uri, release=release, follow=follow, **shared)
    return _with_options(settings).options(user_config=config.model_dump()).bind()


def application(_arguments: dict[str, str]) -> Any:
    """The Serve application for `serve deploy`, whose file says which Release (deployments/local.yaml)."""
    return _with_options(Serving()).bind()


def _with_options(settings: Serving) -> Any:
    # Serve's decorator replaces the class, which type checkers do not see.
    return cast("Any", Endpoint).options(
        ray_actor_options={"num_cpus": settings.replica_cpus},
        # The replica's own queue sheds load, with an answer like all others; Serve's bounds are only behind it.
        max_ongoing_requests=2 * (settings.max_batch_size + settings.queue) + SLACK,
        max_queued_requests=2 * settings.queue + SLACK,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing_requests,
            "upscale_delay_s": settings.upscale_seconds,
            "downscale_delay_s": settings.downscale_seconds,
            # Ray Serve looks at the last half minute by default: a crowd would have left again.
            "metrics_interval_s": METRICS_SECONDS,
            "look_back_period_s": 3 * METRICS_SECONDS,
        },
        graceful_shutdown_timeout_s=GRACEFUL_SECONDS,
        health_check_period_s=HEALTH_SECONDS,
    )
