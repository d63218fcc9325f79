"""Routes of what is kept: events, items and users."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import FastAPI, Query, Request, Response
from pydantic import Field

from rayrec.serving.envelope import Backend, StatusError, live, reply, stored
from rayrec.serving.schemas import MAX_KEY, MAX_TOGETHER
from rayrec.serving.schemas_state import (
    Erased,
    EventIn,
    Events,
    EventsKept,
    ItemAnswer,
    ItemIn,
    ItemPatch,
    ItemsFound,
    ItemsPage,
    Kept,
    Removed,
    UserAnswer,
    UserIn,
    UserPatch,
    UsersPage,
)
from rayrec.serving.state import Event, Item

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

WRITING = ThreadPoolExecutor(64, "writing")
MAX_PAGE = 1000
Page = Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many.")]
Cursor = Annotated[str | None, Query(max_length=MAX_KEY, description="Where the page before said that it ended.")]
Position = Annotated[int, Query(ge=0, lt=1 << 63, description="Where the page before said that it ended.")]
Text = Annotated[str, Query(min_length=1, max_length=MAX_KEY, description="What to look for, whatever its case.")]
OnlyOf = Annotated[str | None, Query(max_length=MAX_KEY, description="Only of this one.")]
Many = Annotated[list[Any], Field(max_length=MAX_TOGETHER)]


async def apart(work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Call what reads from the database in a thread, while others are answered."""
    return await asyncio.to_thread(work, *args, **kwargs)


async def kept(work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Call what writes to the database in a thread of its kind: where writers wait, readers do not."""
    return await asyncio.get_running_loop().run_in_executor(WRITING, partial(work, *args, **kwargs))


def add_state(app: FastAPI, backend: Backend) -> None:
    """Add the routes."""
    _add_events(app, backend)
    _add_items(app, backend)
    _add_users(app, backend)


def _add_events(app: FastAPI, backend: Backend) -> None:
    @app.post("/v1/events", response_model=EventsKept, tags=["events"])
    async def post_events(
        request: Request, body: EventIn | Annotated[list[EventIn], Field(max_length=MAX_TOGETHER)]
    ) -> Response:
        """Tell of an event, or of several. They are on disk when this answers; an id that is there is passed over."""
        now = int(time.time() * 1000)
        events = [told.event(now) for told in _several(body)]
        new = await kept(stored(backend).append, events)
        return reply(request, live(backend), event_ids=[event.event_id for event in events], new=new)

    @app.get("/v1/events", response_model=Events, tags=["events"])
    async def get_events(
        request: Request, n: Page = 100, cursor: Position = 0, user: OnlyOf = None, item: OnlyOf = None
    ) -> Response:
        """The log, in the order in which events came."""
        found = await apart(stored(backend).events.page, cursor, n, user=user, item=item)
        events = [told_event(event) for _, event in found]
        return reply(request, live(backend), events=events, cursor=str(found[-1][0]) if len(found) == n else None)

    @app.delete("/v1/events/{event_id:key}", response_model=Removed, tags=["events"])
    async def delete_event(request: Request, event_id: str) -> Response:
        """Forget an event."""
        gone = await kept(stored(backend).remove_event, event_id)
        _require(gone, f"no event '{event_id}' is in the log.")
        return reply(request, live(backend), removed={"events": gone})


def _add_items(app: FastAPI, backend: Backend) -> None:
    @app.post("/v1/items", response_model=Kept, tags=["items"])
    async def post_items(
        request: Request, body: ItemIn | Annotated[list[ItemIn], Field(max_length=MAX_TOGETHER)]
    ) -> Response:
        """Keep an item, or several, in place of those with their keys."""
        items = [told.stored() for told in _several(body)]
        await kept(stored(backend).put_items, items)
        return reply(request, live(backend), kept=len(items))

    @app.get("/v1/items", response_model=ItemsPage, tags=["items"])
    async def get_items(request: Request, n: Page = 100, cursor: Cursor = None) -> Response:
        """The catalogue, by key; hidden items too."""
        items = await apart(stored(backend).items.page, cursor, n)
        following = items[-1].item if len(items) == n else None
        return reply(request, live(backend), items=[view(item) for item in items], cursor=following)

    @app.get("/v1/search", response_model=ItemsFound, tags=["items"])
    async def search(request: Request, q: Text, n: Page = 10) -> Response:
        """Items whose title, key or comment has a text in it; hidden ones too."""
        items = await apart(stored(backend).items.search, q, n)
        return reply(request, live(backend), items=[view(item) for item in items])

    @app.get("/v1/items/{item:entity}", response_model=ItemAnswer, tags=["items"])
    async def get_item(request: Request, item: str) -> Response:
        """An item of the catalogue."""
        engine = live(backend)
        return reply(request, engine, **view(engine.item(item)))

    @app.patch("/v1/items/{item:entity}", response_model=ItemAnswer, tags=["items"])
    async def patch_item(request: Request, item: str, body: ItemPatch) -> Response:
        """Change some attributes of an item."""
        changed = await kept(stored(backend).change_item, item, body.model_dump(exclude_unset=True))
        _require(changed, f"no item '{item}' is in the catalogue.")
        engine = live(backend)
        return reply(request, engine, **view(engine.item(item)))

    @app.delete("/v1/items/{item:entity}", response_model=Removed, tags=["items"])
    async def delete_item(request: Request, item: str) -> Response:
        """Take an item out of the catalogue, so that nobody is recommended it. Events on it stay."""
        gone = await kept(stored(backend).remove_item, item, request.state.actor)
        _require(gone, f"no item '{item}' is in the catalogue.")
        return reply(request, live(backend), removed={"items": int(gone)})


def _add_users(app: FastAPI, backend: Backend) -> None:
    @app.post("/v1/users", response_model=Kept, tags=["users"])
    async def post_users(
        request: Request, body: UserIn | Annotated[list[UserIn], Field(max_length=MAX_TOGETHER)]
    ) -> Response:
        """Keep what is told of a user, or of several, in place of what was."""
        users = [told.stored() for told in _several(body)]
        await kept(stored(backend).put_users, users)
        return reply(request, live(backend), kept=len(users))

    @app.get("/v1/users", response_model=UsersPage, tags=["users"])
    async def get_users(request: Request, n: Page = 100, cursor: Cursor = None) -> Response:
        """The users, by key."""
        users = await apart(stored(backend).users.page, cursor, n)
        following = users[-1].user if len(users) == n else None
        return reply(request, live(backend), users=[asdict(user) for user in users], cursor=following)

    @app.get("/v1/users/{user:entity}", response_model=UserAnswer, tags=["users"])
    async def get_user(request: Request, user: str) -> Response:
        """What is told of a user."""
        found = await apart(stored(backend).users.get, user)
        if found is None:
            raise StatusError(404, f"no user '{user}' is known.")
        return reply(request, live(backend), **asdict(found))

    @app.patch("/v1/users/{user:entity}", response_model=UserAnswer, tags=["users"])
    async def patch_user(request: Request, user: str, body: UserPatch) -> Response:
        """Change some of what is told of a user."""
        changed = await kept(stored(backend).users.change, user, body.model_dump(exclude_unset=True))
        _require(changed, f"no user '{user}' is known.")
        return await get_user(request, user)

    @app.delete("/v1/users/{user:entity}", response_model=Erased, tags=["users"])
    async def delete_user(request: Request, user: str) -> Response:
        """Forget a user and everything they did, and have the Datasets do so."""
        erasure = await kept(stored(backend).erase_user, user, request.state.actor)
        if erasure is None:
            raise StatusError(404, f"no user '{user}' is known.")
        return reply(request, live(backend), removed=erasure.removed, erasure_id=erasure.erasure_id)


def told_event(event: Event) -> dict[str, Any]:
    """An event as it goes over HTTP."""
    return asdict(event)


def view(item: Item) -> dict[str, Any]:
    """An item as it goes over HTTP."""
    return {**asdict(item), "categories": list(item.categories)}


def _several(body: Any) -> Sequence[Any]:
    return body if isinstance(body, list) else [body]


def _require(there: object, message: str) -> None:
    if not there:
        raise StatusError(404, message)
