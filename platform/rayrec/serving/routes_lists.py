"""Routes of lists that are the same for everybody, and of neighbours."""

from __future__ import annotations

import asyncio
import time

from fastapi import FastAPI, Request, Response

from rayrec.serving.envelope import Backend, live, reply, stored
from rayrec.serving.parameters import Count, Hours, Offset, Which
from rayrec.serving.queries import Answer, ScoredItem
from rayrec.serving.schemas_recommend import Recommendations, SimilarItems, SimilarUsers


def add_lists(app: FastAPI, backend: Backend) -> None:
    """Add the routes."""

    @app.get("/v1/trending", response_model=Recommendations, tags=["recommend"])
    async def trending(request: Request, n: Count = 10, hours: Hours = 24) -> Response:
        """What most users did something with lately."""
        engine, since = live(backend), int((time.time() - 3600 * hours) * 1000)
        found = await asyncio.to_thread(stored(backend).events.most_users, since, n)
        # The copy in memory may be a moment behind.
        items = [ScoredItem(item, users) for key, users in found if (item := engine.catalog.item(key))]
        return reply(request, engine, **Answer(items, "trending").to_json())

    @app.get("/v1/users/{user:key}/similar", response_model=SimilarUsers, tags=["recommend"])
    async def similar_users(request: Request, user: str, n: Count = 10) -> Response:
        """Users who had most of the items that this one had last."""
        found = await asyncio.to_thread(stored(backend).events.neighbours, user, n)
        users = [{"user": other, "score": share} for other, share in found]
        return reply(request, live(backend), user=user, users=users)

    @app.get("/v1/popular", response_model=Recommendations, tags=["recommend"])
    async def popular(request: Request, which: Which, n: Count = 10, offset: Offset = 0) -> Response:
        """The items that most users had."""
        engine = live(backend)
        answer = await backend.answer(engine, engine.session_query([], n, offset, wanted=which))
        return reply(request, engine, **answer.to_json())

    @app.get("/v1/latest", response_model=Recommendations, tags=["recommend"])
    async def latest(request: Request, which: Which, n: Count = 10, offset: Offset = 0) -> Response:
        """The newest items of which it is known when they came."""
        engine = live(backend)
        return reply(request, engine, **engine.latest(n, offset, which).to_json())

    @app.get("/v1/items/{item:key}/similar", response_model=SimilarItems, tags=["recommend"])
    async def similar(request: Request, item: str, which: Which, n: Count = 10) -> Response:
        """Items like this one."""
        engine = live(backend)
        return reply(request, engine, item=item, **engine.similar([item], n, which).to_json())
