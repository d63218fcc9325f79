"""What Gorse recommends: items for users, sessions and everybody, and neighbours."""

from __future__ import annotations

import time
import uuid
from typing import Annotated

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from rayrec.serving.envelope import Backend, StatusError, live, stored
from rayrec.serving.gorse import DELAY, FeedbackIn, SessionIn, scores, seconds
from rayrec.serving.parameters import MAX_NAMED, NO_NAMES, Name
from rayrec.serving.queries import Answer, Wanted
from rayrec.serving.routes_recommend import asked, shown
from rayrec.serving.routes_state import apart, kept
from rayrec.serving.schemas import MAX_COUNT, MAX_KEY, MAX_OFFSET, MAX_TOGETHER
from rayrec.serving.state import Event

LISTS = ("popular", "latest")
Count = Annotated[int, Query(ge=1, le=MAX_COUNT)]
Offset = Annotated[int, Query(ge=0, le=MAX_OFFSET)]
Category = Annotated[list[Name], Query(max_length=MAX_NAMED)]
UserId = Annotated[str, Query(alias="user-id", max_length=MAX_KEY)]
Version = Annotated[str, Header(alias="X-API-Version")]


def add_recommending(app: FastAPI, backend: Backend) -> None:
    """Add the routes."""
    _add_lists(app, backend)
    _add_neighbours(app, backend)


def _add_lists(app: FastAPI, backend: Backend) -> None:
    @app.get("/api/recommend/{user:part}/{category:part}", tags=["gorse"])
    @app.get("/api/recommend/{user:part}/", tags=["gorse"], include_in_schema=False)
    @app.get("/api/recommend/{user:part}", tags=["gorse"])
    async def recommend(
        request: Request,
        user: str,
        within: Annotated[list[Name], Query(alias="category", max_length=MAX_NAMED)] = NO_NAMES,
        category: str = "",
        n: Count = 10,
        offset: Offset = 0,
        write_back_type: Annotated[str, Query(alias="write-back-type", max_length=MAX_KEY)] = "",
        write_back_delay: Annotated[
            str, Query(alias="write-back-delay", pattern=f"^{DELAY}$", max_length=MAX_KEY)
        ] = "",
        version: Version = "1",
    ) -> Response:
        """Items for a user: their keys, or with `X-API-Version: 2` their scores too."""
        engine, delay = live(backend, user), seconds(write_back_delay)
        wanted = Wanted(tuple(filter(None, [category, *within])))
        found = await asked(backend, engine, user, n, offset, wanted=wanted)
        answer = await backend.answer(engine, found.query)
        shown(backend, request, engine, answer, user, offset)
        if write_back_type:
            at = int((time.time() + delay) * 1000)
            keys = [scored.item.item for scored in answer.items]
            read = [Event(uuid.uuid4().hex, user, key, write_back_type, at) for key in keys]
            await kept(stored(backend).append, read)
        return JSONResponse(scores(answer) if version == "2" else [scored.item.item for scored in answer.items])

    @app.post("/api/session/recommend/{category:part}", tags=["gorse"])
    @app.post("/api/session/recommend", tags=["gorse"])
    async def session(
        request: Request,
        body: Annotated[list[FeedbackIn | SessionIn], Field(max_length=MAX_TOGETHER)],
        category: str = "",
        n: Count = 10,
        offset: Offset = 0,
    ) -> Response:
        """Items for somebody without an account, with their scores."""
        engine = live(backend)
        told = sorted(body, key=lambda feedback: feedback.Timestamp or 0)
        wanted = Wanted(tuple(filter(None, [category])))
        query = engine.session_query([feedback.ItemId for feedback in told], n, offset, wanted=wanted)
        answer = await backend.answer(engine, query)
        shown(backend, request, engine, answer, None, offset)
        return JSONResponse(scores(answer))

    async def listing(name: str, n: int, offset: int, category: list[str], user: str) -> Response:
        engine = live(backend)
        seen = await apart(stored(backend).events.feedback, user=user) if user else []
        wanted = Wanted(tuple(filter(None, category)), exclude=tuple({told.item for told in seen}))
        if name == "latest":
            return JSONResponse(scores(engine.latest(n, offset, wanted)))
        return JSONResponse(scores(await backend.answer(engine, engine.session_query([], n, offset, wanted=wanted))))

    @app.get("/api/popular/{within:part}", tags=["gorse"])
    @app.get("/api/popular", tags=["gorse"])
    async def popular(
        category: Category = NO_NAMES,
        within: str = "",
        n: Count = 10,
        offset: Offset = 0,
        user_id: UserId = "",
    ) -> Response:
        """Popular items."""
        return await listing("popular", n, offset, [within, *category], user_id)

    @app.get("/api/latest/{within:part}", tags=["gorse"])
    @app.get("/api/latest", tags=["gorse"])
    async def latest(
        category: Category = NO_NAMES,
        within: str = "",
        n: Count = 10,
        offset: Offset = 0,
        user_id: UserId = "",
    ) -> Response:
        """The newest items."""
        return await listing("latest", n, offset, [within, *category], user_id)

    @app.get("/api/non-personalized/{name:part}", tags=["gorse"])
    async def non_personalized(
        name: str,
        category: Category = NO_NAMES,
        n: Count = 10,
        offset: Offset = 0,
        user_id: UserId = "",
    ) -> Response:
        """One of the lists that are the same for everybody."""
        if name not in LISTS:
            raise StatusError(404, f"no list is called '{name}'. There are {' and '.join(LISTS)}.")
        return await listing(name, n, offset, category, user_id)


def _add_neighbours(app: FastAPI, backend: Backend) -> None:
    def of_item(item: str, n: int, offset: int, categories: list[str]) -> Response:
        wanted = Wanted(tuple(filter(None, categories)))
        answer = live(backend).similar([item], min(n + offset, MAX_COUNT), wanted)
        return JSONResponse(scores(Answer(answer.items[offset:], answer.source)))

    async def of_user(user: str, n: int, offset: int) -> Response:
        found = await apart(stored(backend).events.neighbours, user, n + offset)
        return JSONResponse([{"Id": other, "Score": score} for other, score in found[offset:]])

    @app.get("/api/item/{item:part}/neighbors/{within:part}", tags=["gorse"])
    @app.get("/api/item/{item:part}/neighbors/", tags=["gorse"], include_in_schema=False)
    @app.get("/api/item/{item:part}/neighbors", tags=["gorse"])
    async def item_neighbours(
        item: str, category: Category = NO_NAMES, within: str = "", n: Count = 10, offset: Offset = 0
    ) -> Response:
        """Items like this one."""
        return of_item(item, n, offset, [within, *category])

    @app.get("/api/item-to-item/{name:part}/{item:part}", tags=["gorse"])
    async def item_to_item(
        name: str, item: str, category: Category = NO_NAMES, n: Count = 10, offset: Offset = 0
    ) -> Response:
        """Items like this one; there is one way to find them, whatever it is called."""
        return of_item(item, n, offset, category)

    @app.get("/api/user/{user:part}/neighbors/", tags=["gorse"], include_in_schema=False)
    @app.get("/api/user/{user:part}/neighbors", tags=["gorse"])
    async def user_neighbours(user: str, n: Count = 10, offset: Offset = 0) -> Response:
        """Users who had the same items."""
        return await of_user(user, n, offset)

    @app.get("/api/user-to-user/{name:part}/{user:part}", tags=["gorse"])
    async def user_to_user(name: str, user: str, n: Count = 10, offset: Offset = 0) -> Response:
        """Users who had the same items; there is one way to find them, whatever it is called."""
        return await of_user(user, n, offset)

    @app.get("/api/collaborative-filtering/{user:part}", tags=["gorse"])
    async def collaborative(
        request: Request, user: str, category: Category = NO_NAMES, n: Count = 10, offset: Offset = 0
    ) -> Response:
        """Items for a user, with their scores."""
        engine = live(backend)
        found = await asked(backend, engine, user, n, offset, wanted=Wanted(tuple(filter(None, category))))
        answer = await backend.answer(engine, found.query)
        shown(backend, request, engine, answer, user, offset)
        return JSONResponse(scores(answer))
