"""Gorse's REST API under `/api`, so that its client libraries work unchanged.

What is done is what `/v1` does; how it is said is in `rayrec.serving.gorse`. https://gorse.io/docs/api/restful-api.html
"""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from rayrec.serving.engine import Engine
from rayrec.serving.envelope import Backend, StatusError, live, stored
from rayrec.serving.gorse import (
    Affected,
    FeedbackIn,
    ItemIn,
    ItemPatch,
    UserIn,
    UserPatch,
    after,
    cursor_of,
    feedback,
    item_view,
    user_view,
)
from rayrec.serving.routes_gorse_recommend import add_recommending
from rayrec.serving.routes_state import apart, kept
from rayrec.serving.schemas import MAX_COUNT, MAX_KEY, MAX_OFFSET, MAX_TOGETHER
from rayrec.serving.state import Item, User
from rayrec.serving.store.store import Store

Count = Annotated[int, Query(ge=1, le=MAX_COUNT)]
Offset = Annotated[int, Query(ge=0, le=MAX_OFFSET)]
Cursor = Annotated[str, Query(max_length=10 * MAX_KEY)]
Several = Annotated[list[FeedbackIn], Field(max_length=MAX_TOGETHER)]
Searched = Annotated[str, Query(max_length=MAX_KEY)]


def add_gorse(app: FastAPI, backend: Backend) -> None:
    """Add the routes."""
    _addfeedback(app, backend)
    add_recommending(app, backend)
    _add_items(app, backend)
    _add_users(app, backend)
    _add_health(app, backend)


def _addfeedback(app: FastAPI, backend: Backend) -> None:
    async def insert(body: list[FeedbackIn], replaces: bool) -> Response:
        now = int(time.time() * 1000)
        # As Gorse does: an item that feedback is on is one.
        await kept(stored(backend).append, [told.event(now, replaces) for told in body], with_items=True)
        return _affected(len(body))

    @app.post("/api/feedback", response_model=Affected, tags=["gorse"])
    async def post_feedback(body: Several) -> Response:
        """Add feedback; the values of what is there already are summed up."""
        return await insert(body, replaces=False)

    @app.put("/api/feedback", response_model=Affected, tags=["gorse"])
    async def put_feedback(body: Several) -> Response:
        """Add feedback in place of what is there already."""
        return await insert(body, replaces=True)

    async def page(n: int, cursor: str, kind: str | None) -> Response:
        found = await apart(stored(backend).events.feedback_page, after(cursor), n, kind)
        following = cursor_of(found[-1].key) if len(found) == n else ""
        return JSONResponse({"Cursor": following, "Feedback": [feedback(told) for told in found]})

    @app.get("/api/feedback", tags=["gorse"])
    async def get_feedback(n: Count = 10, cursor: Cursor = "") -> Response:
        """All feedback, page by page."""
        return await page(n, cursor, None)

    @app.get("/api/feedback/{kind:part}", tags=["gorse"])
    async def get_typed_feedback(kind: str, n: Count = 10, cursor: Cursor = "") -> Response:
        """All feedback of a type, page by page."""
        return await page(n, cursor, kind)

    @app.get("/api/feedback/{user:part}/{item:part}", tags=["gorse"])
    async def get_pair(user: str, item: str) -> Response:
        """A user's feedback on an item."""
        return await listed(user=user, item=item)

    @app.delete("/api/feedback/{user:part}/{item:part}", response_model=Affected, tags=["gorse"])
    async def delete_pair(user: str, item: str) -> Response:
        """Forget a user's feedback on an item."""
        return _affected(await kept(stored(backend).remove_feedback, user, item))

    @app.get("/api/feedback/{kind:part}/{user:part}/{item:part}", tags=["gorse"])
    async def get_one(kind: str, user: str, item: str) -> Response:
        """A user's feedback of a type on an item."""
        found = await apart(stored(backend).events.feedback, user=user, item=item, type=kind)
        if not found:
            raise StatusError(404, "feedback not found")
        return JSONResponse(feedback(found[0]))

    @app.delete("/api/feedback/{kind:part}/{user:part}/{item:part}", response_model=Affected, tags=["gorse"])
    async def delete_one(kind: str, user: str, item: str) -> Response:
        """Forget a user's feedback of a type on an item."""
        return _affected(await kept(stored(backend).remove_feedback, user, item, kind))

    async def listed(**keys: str | None) -> Response:
        found = await apart(stored(backend).events.feedback, **keys)
        return JSONResponse([feedback(told) for told in found])

    @app.get("/api/user/{user:part}/feedback/", tags=["gorse"], include_in_schema=False)
    @app.get("/api/user/{user:part}/feedback", tags=["gorse"])
    async def of_user(user: str) -> Response:
        """A user's feedback."""
        return await listed(user=user)

    @app.get("/api/user/{user:part}/feedback/{kind:part}", tags=["gorse"])
    async def typed_of_user(user: str, kind: str) -> Response:
        """A user's feedback of a type."""
        return await listed(user=user, type=kind)

    @app.get("/api/item/{item:part}/feedback/", tags=["gorse"], include_in_schema=False)
    @app.get("/api/item/{item:part}/feedback", tags=["gorse"])
    async def of_item(item: str) -> Response:
        """The feedback on an item."""
        return await listed(item=item)

    @app.get("/api/item/{item:part}/feedback/{kind:part}", tags=["gorse"])
    async def typed_of_item(item: str, kind: str) -> Response:
        """The feedback of a type on an item."""
        return await listed(item=item, type=kind)


def _add_items(app: FastAPI, backend: Backend) -> None:
    async def insert(items: list[ItemIn]) -> Response:
        # Gorse's items have no titles: those that are there stay.
        await kept(stored(backend).put_items, [item.stored() for item in items], keep=("title",))
        return _affected(len(items))

    @app.post("/api/item", response_model=Affected, tags=["gorse"])
    async def post_item(body: ItemIn) -> Response:
        """Keep an item, in place of the one with its key."""
        return await insert([body])

    @app.post("/api/items", response_model=Affected, tags=["gorse"])
    async def post_items(body: Annotated[list[ItemIn], Field(max_length=MAX_TOGETHER)]) -> Response:
        """Keep items, in place of those with their keys."""
        return await insert(body)

    @app.get("/api/items", tags=["gorse"])
    async def get_items(n: Count = 10, cursor: Cursor = "", q: Searched = "") -> Response:
        """The catalogue, page by page, or what a search for `q` finds."""
        items = stored(backend).items
        found = await apart(items.search, q, n) if q else await apart(items.page, cursor or None, n)
        following = found[-1].item if len(found) == n and not q else ""
        return JSONResponse({"Cursor": following, "Items": [item_view(item) for item in found]})

    @app.get("/api/item/{item:part}", tags=["gorse"])
    async def get_item(item: str) -> Response:
        """An item."""
        return JSONResponse(item_view(_known(live(backend), item)))

    @app.patch("/api/item/{item:part}", response_model=Affected, tags=["gorse"])
    async def patch_item(item: str, body: ItemPatch) -> Response:
        """Change some attributes of an item."""
        return _affected(int(await kept(stored(backend).change_item, item, body.changes())), item)

    @app.delete("/api/item/{item:part}", response_model=Affected, tags=["gorse"])
    async def delete_item(request: Request, item: str) -> Response:
        """Remove an item and all feedback on it."""
        actor = request.state.actor
        return _affected(int(await kept(stored(backend).remove_item, item, actor, with_events=True)))

    @app.put("/api/item/{item:part}/category/{category:part}", response_model=Affected, tags=["gorse"])
    async def put_category(item: str, category: str) -> Response:
        """Add a category to an item."""
        return _affected(int(await kept(stored(backend).categorise, item, more=[category])), item)

    @app.delete("/api/item/{item:part}/category/{category:part}", response_model=Affected, tags=["gorse"])
    async def delete_category(item: str, category: str) -> Response:
        """Take a category from an item."""
        return _affected(int(await kept(stored(backend).categorise, item, fewer=[category])), item)


def _add_users(app: FastAPI, backend: Backend) -> None:
    async def insert(users: list[UserIn]) -> Response:
        told = [User(user.UserId, user.Labels, user.Comment or "") for user in users]
        await kept(stored(backend).put_users, told)
        return _affected(len(users))

    @app.post("/api/user", response_model=Affected, tags=["gorse"])
    async def post_user(body: UserIn) -> Response:
        """Keep a user, in place of the one with this key."""
        return await insert([body])

    @app.post("/api/users", response_model=Affected, tags=["gorse"])
    async def post_users(body: Annotated[list[UserIn], Field(max_length=MAX_TOGETHER)]) -> Response:
        """Keep users, in place of those with their keys."""
        return await insert(body)

    @app.get("/api/users", tags=["gorse"])
    async def get_users(n: Count = 10, cursor: Cursor = "") -> Response:
        """The users, page by page."""
        found = await apart(stored(backend).users.page, cursor or None, n)
        following = found[-1].user if len(found) == n else ""
        return JSONResponse({"Cursor": following, "Users": [user_view(user) for user in found]})

    @app.get("/api/user/{user:part}", tags=["gorse"])
    async def get_user(user: str) -> Response:
        """A user."""
        found = await apart(stored(backend).users.get, user)
        if found is None:
            raise StatusError(404, "user not found")
        return JSONResponse(user_view(found))

    @app.patch("/api/user/{user:part}", response_model=Affected, tags=["gorse"])
    async def patch_user(user: str, body: UserPatch) -> Response:
        """Change some of what is told of a user."""
        changes = {name.lower(): given for name, given in body.model_dump().items() if given is not None}
        return _affected(int(await kept(stored(backend).users.change, user, changes)), user)

    @app.delete("/api/user/{user:part}", response_model=Affected, tags=["gorse"])
    async def delete_user(request: Request, user: str) -> Response:
        """Forget a user and all their feedback."""
        erasure = await kept(stored(backend).erase_user, user, request.state.actor)
        return _affected(int(erasure is not None))


def _add_health(app: FastAPI, backend: Backend) -> None:
    async def health(must_answer: bool) -> Response:
        answers = backend.engine is not None and await apart(_answers, stored(backend))
        state = {"DataStoreConnected": answers, "CacheStoreConnected": answers, "Ready": answers}
        errors = {"DataStoreError": None, "CacheStoreError": None}
        return JSONResponse({**state, **errors}, status_code=503 if must_answer and not answers else 200)

    @app.get("/api/health/live", tags=["gorse"])
    async def live_probe() -> Response:
        """Whether the process answers."""
        return await health(must_answer=False)

    @app.get("/api/health/ready", tags=["gorse"])
    async def ready_probe() -> Response:
        """Whether it can be asked."""
        return await health(must_answer=True)


def _answers(store: Store) -> bool:
    return store.database.answers()


def _known(engine: Engine, key: str) -> Item:
    found = engine.catalog.item(key)
    if found is None:
        raise StatusError(404, "item not found")
    return found


def _affected(rows: int, named: str | None = None) -> Response:
    if named is not None and not rows:
        raise StatusError(404, f"'{named}' not found")
    return JSONResponse({"RowAffected": rows})
