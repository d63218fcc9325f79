"""Many rows at once, as JSON lines: read as they come and written in parts, so that neither side holds them all."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ValidationError

from rayrec.serving.envelope import STATUSES, Backend, StatusError, live, reply, stored
from rayrec.serving.routes_state import apart, kept, told_event, view
from rayrec.serving.schemas_state import EventIn, Imported, ItemIn, UserIn
from rayrec.serving.store.database import BusyError, UnavailableError
from rayrec.serving.store.store import Store

ROWS_AT_ONCE = 5_000
BYTES_AT_ONCE = 4 << 20
MAX_LINE = 1 << 20
LINES = "application/x-ndjson"
GIVEN: dict[int | str, dict[str, Any]] = {200: {"content": {LINES: {"schema": {"type": "string"}}}}}
BODY = {"requestBody": {"content": {LINES: {"schema": {"type": "string"}}}}}


def add_bulk(app: FastAPI, backend: Backend) -> None:
    """Add the routes."""

    async def take(request: Request, kind: type[BaseModel], keep: Callable[[Sequence[Any]], int | None]) -> Response:
        rows: list[Any] = []
        done = number = size = 0
        new: list[int | None] = []
        try:
            async for line in _lines(request):
                number += 1
                if line.strip():
                    rows.append(kind.model_validate_json(line))
                    size += len(line)
                if len(rows) == ROWS_AT_ONCE or size > BYTES_AT_ONCE:
                    new.append(await kept(keep, rows))
                    done, rows, size = done + len(rows), [], 0
            new.append(await kept(keep, rows))
        except ValidationError as error:
            (problem, *_) = error.errors()
            what = ": ".join(filter(None, [".".join(map(str, problem["loc"])), problem["msg"]]))
            raise StatusError(422, f"line {number}: {what}; {_so_far(done)}") from error
        except _TooLongError as error:
            raise StatusError(413, f"line {number + 1} is longer than {MAX_LINE:,} bytes; {_so_far(done)}") from error
        except (BusyError, UnavailableError) as error:
            raise StatusError(STATUSES[type(error)], f"{error} {_so_far(done).capitalize()}") from error
        added = None if None in new else sum(filter(None, new))
        return reply(request, live(backend), rows=done + len(rows), new=added)

    @app.post("/v1/bulk/events", response_model=Imported, tags=["bulk"], openapi_extra=BODY)
    async def import_events(request: Request) -> Response:
        """Keep events, one a line as `POST /v1/events` takes them. Parts of 5,000 before a wrong line are kept."""
        store, now = stored(backend), int(time.time() * 1000)
        return await take(request, EventIn, lambda rows: store.append([row.event(now) for row in rows]))

    @app.post("/v1/bulk/items", response_model=Imported, tags=["bulk"], openapi_extra=BODY)
    async def import_items(request: Request) -> Response:
        """Keep items, one a line as `POST /v1/items` takes them. Parts of 5,000 before a wrong line are kept."""
        store = stored(backend)
        return await take(request, ItemIn, lambda rows: store.put_items([row.stored() for row in rows]))

    @app.post("/v1/bulk/users", response_model=Imported, tags=["bulk"], openapi_extra=BODY)
    async def import_users(request: Request) -> Response:
        """Keep users, one a line as `POST /v1/users` takes them. Parts of 5,000 before a wrong line are kept."""
        store = stored(backend)
        return await take(request, UserIn, lambda rows: store.put_users([row.stored() for row in rows]))

    for kind in PAGES:
        # Each a route of its own: methods of a path are told by its routes.
        app.add_api_route(f"/v1/bulk/{kind}", _exporting(backend, kind), tags=["bulk"], responses=GIVEN)


def _exporting(backend: Backend, kind: str) -> Callable[[], Awaitable[Response]]:
    async def export() -> Response:
        pages = PAGES[kind](stored(backend))
        # While nothing has been sent yet an error can still be told.
        first = await apart(next, pages, "")
        return StreamingResponse(chain([first], pages), media_type=LINES)

    export.__name__ = f"export_{kind}"
    export.__doc__ = f"All {kind} there are, one a line."
    return export


class _TooLongError(Exception):
    """A line without an end."""


async def _lines(request: Request) -> AsyncIterator[bytes]:
    """The lines of a body, as they come."""
    rest = b""
    async for chunk in request.stream():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
        if len(rest) > MAX_LINE:
            raise _TooLongError
    if rest:
        yield rest


def _so_far(done: int) -> str:
    if not done:
        return "none of the rows is kept."
    return f"the first {done:,} rows are kept, those after them are not."


def _events(store: Store) -> Iterator[str]:
    after = 0
    while found := store.events.page(after, ROWS_AT_ONCE):
        after = found[-1][0]
        yield "".join(json.dumps(told_event(event)) + "\n" for _, event in found)


def _items(store: Store) -> Iterator[str]:
    after = None
    while found := store.items.page(after, ROWS_AT_ONCE):
        after = found[-1].item
        yield "".join(json.dumps(view(item)) + "\n" for item in found)


def _users(store: Store) -> Iterator[str]:
    after = None
    while found := store.users.page(after, ROWS_AT_ONCE):
        after = found[-1].user
        yield "".join(json.dumps(asdict(user)) + "\n" for user in found)


def _impressions(store: Store) -> Iterator[str]:
    after = 0
    while found := store.impressions.page(after, ROWS_AT_ONCE):
        after = found[-1][0]
        yield "".join(json.dumps(asdict(impression)) + "\n" for _, impression in found)


PAGES = {"events": _events, "items": _items, "users": _users, "impressions": _impressions}
"""Gives what there is, in parts."""
