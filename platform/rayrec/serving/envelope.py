"""What every request passes through: request ids, keys, bounded bodies, and errors as JSON."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import unquote

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.convertors import Convertor, register_url_convertor
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayrec.serving.access import OPEN, Gate, path_of
from rayrec.serving.batching import OverloadedError
from rayrec.serving.engine import Engine, UnknownItemError
from rayrec.serving.features import FeatureError
from rayrec.serving.queries import Answer, Query
from rayrec.serving.schemas import MAX_KEY
from rayrec.serving.store.database import BusyError, UnavailableError
from rayrec.serving.store.store import Store

logger = logging.getLogger("rayrec.serving")

REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
ENCODED_SLASH = re.compile("%2f", re.IGNORECASE)
KIND = re.compile(r"^[A-Z]\w*(In|Patch)$|^(list|dict|nullable|tagged-union|json-or-python|function-\w+)\[")
MAX_BODY = 1 << 20
LOADING = "no Release is loaded yet; try again in a moment."
STREAMED = "/v1/bulk/"
"""Bodies that are never held whole."""
RETRY_AFTER_SECONDS = "1"
SLASH = "\0"
"""Stands in a path for ``%2F``, a slash of a key; U+0000 itself is refused."""
STATUSES: dict[type[Exception], int] = {UnknownItemError: 404, FeatureError: 422, BusyError: 429, UnavailableError: 503}
"""Of errors whose message is for the client."""


class Backend(Protocol):
    """What the routes ask: the engine of the Release that is live, its store, and answers computed in batches.

    Attributes:
        tells_request_id: Whether what is around the application sends a request's id back in the header.
        deadline: Seconds after which nobody waits for an answer.
    """

    tells_request_id: bool

    @property
    def deadline(self) -> float:
        """See the attributes."""

    @property
    def engine(self) -> Engine | None:
        """The live engine; None while the first one loads."""

    def engine_of(self, user: str | None) -> Engine | None:
        """The one that answers a user: `engine`, or that of an arm."""

    @property
    def store(self) -> Store | None:
        """Events, items and users; None while the first Release loads."""

    @property
    def refused(self) -> str | None:
        """Why the Release that was asked for last is not the live one; None when it is."""

    async def answer(self, engine: Engine, query: Query) -> Answer:
        """Answer one query together with others that wait. OverloadedError when too many do."""


class StatusError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def live(backend: Backend, user: str | None = None) -> Engine:
    """The live engine, or that of a user's arm.

    Raises:
        StatusError: None is live yet.
    """
    engine = backend.engine_of(user)
    if engine is None:
        raise StatusError(503, LOADING)
    return engine


def stored(backend: Backend) -> Store:
    """The live store.

    Raises:
        StatusError: None is live yet.
    """
    if backend.store is None:
        raise StatusError(503, LOADING)
    return backend.store


def reply(request: Request, engine: Engine, **content: Any) -> Response:
    """A plain response: what it holds was made here and needs no second validation."""
    release = engine.release
    envelope = {"request_id": request.state.request_id, "release": release.digest}
    return as_json({**envelope, "simulated": release.content["simulated"], **content})


def as_json(content: Any) -> Response:
    """A response with a body that is JSON already in all but form."""
    try:
        body = orjson.dumps(content)
    except TypeError:
        # Labels may have integers of more than 64 bits.
        return JSONResponse(content)
    return Response(body, media_type="application/json")


class KeyPath(Convertor[str]):
    """A key at the end of a path, which may have slashes as they are."""

    regex = "(?s:.+)"

    def convert(self, value: str) -> str:
        """The key."""
        return value.replace(SLASH, "/")

    def to_string(self, value: str) -> str:
        """As it stands in the path that routes are found by."""
        return value.replace("/", SLASH)


class EntityPath(KeyPath):
    """The same where ``/similar`` at the end asks for something else."""

    regex = r"(?s:(?!.*/similar\Z).+)"


class KeyPart(KeyPath):
    """A key within a path, whose slashes are written as ``%2F``."""

    regex = "[^/]+"


register_url_convertor("key", KeyPath())
register_url_convertor("entity", EntityPath())
register_url_convertor("part", KeyPart())


class Envelope:
    """An ASGI application around others. Starlette's own kind of middleware would cost as much as all routes.

    Args:
        app: All routes.
        direct: Answers some requests in its place, each of which it gives an application for, or None.
        backend: What the routes ask.
    """

    def __init__(self, app: ASGIApp, direct: Callable[[Request], ASGIApp | None], backend: Backend) -> None:
        self._app = app
        self._direct = direct
        self._backend = backend
        self._gate = Gate()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        request = Request(scope)
        given = request.headers.get("x-request-id", "")
        request.state.began = int(time.time() * 1000)
        request_id = request.state.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        answer = _odd(request) or self._refused(request) or _too_large(request) or self._direct(request) or self._app
        await answer(scope, receive, send if self._backend.tells_request_id else telling)

    def _refused(self, request: Request) -> Response | None:
        if self._backend.engine is None and path_of(request) not in OPEN:
            # Which keys there are is not known yet, either.
            return _problem(request, 503, LOADING)
        store = self._backend.store
        refusal = self._gate.refusal(request, store.keyring) if store else None
        if refusal is None:
            return None
        again = {} if refusal.again is None else {"Retry-After": str(refusal.again)}
        return _problem(request, refusal.status, refusal.message, again)


def add_errors(app: FastAPI) -> None:
    """Have errors answered as JSON."""

    async def told(request: Request, error: Exception) -> Response:
        return failure(request, error)

    for kind in (StatusError, OverloadedError, *STATUSES):
        app.add_exception_handler(kind, told)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        kind = request.headers.get("content-type", "")
        if request.method in {"POST", "PUT", "PATCH"} and "json" not in kind:
            return _problem(
                request, 422, f"the body is not sent as JSON: Content-Type is '{kind}', not application/json."
            )
        problems = [f"{_place(p['loc'][1:])}: {_what(p)}" for p in _of_one_kind(error.errors())]
        return _problem(request, 422, "; ".join(dict.fromkeys(problems))[:1000])

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        # Starlette names the methods of one of the routes only.
        allow = {"Allow": ", ".join(_methods(app, path_of(request)))} if error.status_code == 405 else None
        return _problem(request, error.status_code, str(error.detail), allow)

    app.add_exception_handler(Exception, told)


def failure(request: Request, error: Exception) -> Response:
    """The answer to a request that met an error."""
    if isinstance(error, StatusError):
        return _problem(request, error.status, str(error))
    if isinstance(error, OverloadedError):
        return _problem(request, 429, "too many requests are waiting; try again in a moment.")
    if type(error) in STATUSES:
        return _problem(request, STATUSES[type(error)], str(error))
    request_id = request.state.request_id
    logger.error("request %s failed", request_id, exc_info=error, extra={"request_id": request_id})
    return _problem(request, 500, "something went wrong here; the log has it under this request id.")


def _of_one_kind(problems: Sequence[Any]) -> Sequence[Any]:
    """Of a body that may be one or a list of them, the problems of what it is."""
    lists = [problem for problem in problems if str(problem["loc"][1:2]).startswith("('list[")]
    whole = any(problem["type"] == "list_type" for problem in lists)
    return [problem for problem in problems if (problem in lists) != whole] if lists else problems


def _place(location: Sequence[object]) -> str:
    """Where something is wrong, without the names that stand for the kinds of what a body may be."""
    parts = [f"[{part}]" if isinstance(part, int) else str(part) for part in location]
    return ".".join(part for part in parts if not KIND.search(part)).replace(".[", "[") or "body"


def _what(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "is not known here"
    return str(problem["msg"]).removeprefix("Value error, ")


def _methods(app: FastAPI, path: str) -> list[str]:
    """The methods that a path knows."""
    matching = [route for route in app.routes if isinstance(route, Route) and route.path_regex.match(path)]
    return sorted({method for route in matching for method in route.methods or ()})


def _odd(request: Request) -> Response | None:
    """Refuse an address with what no key has: a character that databases cannot keep, or too many of them.

    From here on the path that routes are found by tells slashes of keys from those between its parts.
    """
    scope = request.scope
    if "\0" in scope["path"] or b"%00" in scope["query_string"]:
        return _problem(request, 422, "the address must not have the character U+0000.")
    if b"%2" in scope.get("raw_path", b""):
        scope["path"] = unquote(ENCODED_SLASH.sub(SLASH, scope["raw_path"].decode("latin-1")))
    path = path_of(request)
    if any(len(part.encode(errors="replace")) > MAX_KEY for part in path.split("/")):
        return _problem(request, 422, f"a part of the path is longer than {MAX_KEY:,} bytes.")
    return None


def _too_large(request: Request) -> Response | None:
    """Refuse a body that says it is too large, or does not say how large it is."""
    if request.method in {"GET", "HEAD", "OPTIONS", "DELETE"} or path_of(request).startswith(STREAMED):
        return None
    length = request.headers.get("content-length", "" if "transfer-encoding" in request.headers else "0")
    if not length.isdigit():
        return _problem(request, 411, "a request with a body needs a Content-Length.")
    return _problem(request, 413, f"the body is larger than {MAX_BODY:,} bytes.") if int(length) > MAX_BODY else None


def _problem(request: Request, status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    again = {"Retry-After": RETRY_AFTER_SECONDS}
    usual = {401: {"WWW-Authenticate": "Bearer"}, 429: again, 503: again}.get(status, {})
    headers = {**usual, **(headers or {})}
    content = {"request_id": request.state.request_id, "error": {"status": status, "message": message}}
    return JSONResponse(content, status_code=status, headers=headers)
