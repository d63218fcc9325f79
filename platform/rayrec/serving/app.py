"""The HTTP surface: `/v1`, and Gorse's REST API under `/api` as an adapter over the same functions."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import JsonValue, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from rayrec import __version__
from rayrec.serving.batching import OverloadedError
from rayrec.serving.engine import Answer, Engine, UnknownItemError
from rayrec.serving.engine import Query as EngineQuery
from rayrec.serving.features import FeatureError, Said
from rayrec.serving.schemas import (
    MAX_COUNT,
    MAX_OFFSET,
    ErrorAnswer,
    Health,
    ItemAnswer,
    Recommendations,
    Session,
    SimilarItems,
    UserRecommendations,
    Values,
)

logger = logging.getLogger("rayrec.serving")

REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
MAX_BODY = 1 << 20
MAX_CONTEXT = 4096
VALUES: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(Values)
RETRY_AFTER_SECONDS = "1"

Count = Annotated[int, Query(ge=1, le=MAX_COUNT, description="How many items.")]
Moment = Annotated[
    str,
    Query(max_length=MAX_CONTEXT, description="What the model reads of the moment: a JSON object, by column."),
]
Offset = Annotated[int, Query(ge=0, le=MAX_OFFSET, description="How many of the best to pass over.")]


class Backend(Protocol):
    """What the routes ask: the engine of the Release that is live, and answers computed in batches."""

    @property
    def engine(self) -> Engine | None:
        """The live engine; None while the first one loads."""

    @property
    def refused(self) -> str | None:
        """Why the Release that was asked for last is not the live one; None when it is."""

    async def answer(self, engine: Engine, query: EngineQuery) -> Answer:
        """Answer one query together with others that wait. OverloadedError when too many do."""


class _StatusError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def build_app(backend: Backend) -> FastAPI:
    """The ASGI application around a backend."""
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer} for status in (400, 404, 413, 422, 429, 500, 503)
    }
    app = FastAPI(title="rayrec", version=__version__, responses=errors)
    _add_envelope(app)
    _add_recommendations(app, backend)
    _add_items(app, backend)
    _add_gorse(app, backend)
    _add_health(app, backend)
    return app


def _add_recommendations(app: FastAPI, backend: Backend) -> None:
    @app.get("/v1/recommend/{user:path}", response_model=UserRecommendations, tags=["recommend"])
    async def recommend(
        request: Request, user: str, n: Count = 10, offset: Offset = 0, context: Moment = "{}"
    ) -> Response:
        """Items for a user. A user nobody has seen gets popular items, marked so."""
        engine = _live(backend)
        said = _values("context", context)
        query = engine.user_query(user, n, offset, said)
        answer = await backend.answer(engine, query or engine.session_query([], n, offset, context=said))
        return _reply(request, engine, user=user, known=query is not None, **answer.to_json())

    @app.post("/v1/session/recommend", response_model=Recommendations, tags=["recommend"])
    async def session(request: Request, body: Session) -> Response:
        """Items for somebody without an account, from what the session has seen so far."""
        engine = _live(backend)
        query = engine.session_query(body.items, body.n, body.offset, body.times, body.user, body.context)
        answer = await backend.answer(engine, query)
        return _reply(request, engine, **answer.to_json())


def _add_items(app: FastAPI, backend: Backend) -> None:
    @app.get("/v1/items/{item:path}/similar", response_model=SimilarItems, tags=["items"])
    async def similar(request: Request, item: str, n: Count = 10) -> Response:
        """Items like this one."""
        engine = _live(backend)
        return _reply(request, engine, item=item, **engine.similar(item, n).to_json())

    @app.get("/v1/items/{item:path}", response_model=ItemAnswer, tags=["items"])
    async def item(request: Request, item: str) -> Response:
        """An item of the catalogue."""
        engine = _live(backend)
        found = engine.item(item)
        return _reply(request, engine, item=found.item, title=found.title, categories=list(found.categories))


def _add_gorse(app: FastAPI, backend: Backend) -> None:
    @app.get("/api/recommend/{user:path}", response_model=list[str], tags=["gorse"])
    async def gorse_recommend(user: str, n: Count = 10, offset: Offset = 0) -> Response:
        """Gorse's `GET /api/recommend/{user-id}`: the keys of the items."""
        engine = _live(backend)
        # Gorse's clients end the path with a slash.
        query = engine.user_query(user, n, offset) or engine.user_query(user.removesuffix("/"), n, offset)
        answer = await backend.answer(engine, query or engine.session_query([], n, offset))
        return JSONResponse([scored.item.item for scored in answer.items])


def _add_health(app: FastAPI, backend: Backend) -> None:
    @app.get("/v1/health", response_model=Health, tags=["health"])
    async def health() -> Response:
        """Whether the process answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/v1/ready", response_model=Health, tags=["health"])
    async def ready() -> Response:
        """Whether a Release is loaded, has given its golden answers, and can be asked."""
        refused = {"refused": backend.refused} if backend.refused else {}
        return JSONResponse({"status": "ready", "release": _live(backend).release.digest, **refused})


def _live(backend: Backend) -> Engine:
    if backend.engine is None:
        raise _StatusError(503, "no Release is loaded yet; try again in a moment.")
    return backend.engine


def _values(name: str, text: str) -> Said:
    """A parameter that holds JSON; FastAPI has none that are objects."""
    try:
        return VALUES.validate_json(text)
    except ValidationError as error:
        raise FeatureError(f"{name}: {error.errors()[0]['msg']}") from error


def _reply(request: Request, engine: Engine, **content: Any) -> Response:
    """A plain response: what it holds was made here and needs no second validation."""
    release = engine.release
    envelope = {"request_id": request.state.request_id, "release": release.digest}
    return JSONResponse({**envelope, "simulated": release.content["simulated"], **content})


# ---- what every request passes through


def _add_envelope(app: FastAPI) -> None:
    """Request ids, bounded bodies, and errors as JSON."""

    @app.middleware("http")
    async def identify(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get("x-request-id", "")
        request.state.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        response = _too_large(request) or await call_next(request)
        response.headers["x-request-id"] = request.state.request_id
        return response

    @app.exception_handler(_StatusError)
    async def failed(request: Request, error: _StatusError) -> Response:
        return _problem(request, error.status, str(error))

    @app.exception_handler(UnknownItemError)
    async def unknown_item(request: Request, error: UnknownItemError) -> Response:
        return _problem(request, 404, str(error))

    @app.exception_handler(FeatureError)
    async def unread(request: Request, error: FeatureError) -> Response:
        return _problem(request, 422, str(error))

    @app.exception_handler(OverloadedError)
    async def overloaded(request: Request, error: OverloadedError) -> Response:
        return _problem(request, 429, "too many requests are waiting; try again in a moment.")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        problems = [
            f"{'.'.join(part for part in p['loc'][1:] if isinstance(part, str)) or 'body'}: {p['msg']}"
            for p in error.errors()
        ]
        return _problem(request, 422, "; ".join(problems)[:1000])

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return _problem(request, error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        logger.error("request %s failed", request.state.request_id, exc_info=error)
        return _problem(request, 500, "something went wrong here; the log has it under this request id.")


def _too_large(request: Request) -> Response | None:
    """Refuse a body that says it is too large, or does not say how large it is."""
    if request.method in {"GET", "HEAD", "OPTIONS", "DELETE"}:
        return None
    length = request.headers.get("content-length", "")
    if not length.isdigit():
        return _problem(request, 411, "a request with a body needs a Content-Length.")
    return _problem(request, 413, f"the body is larger than {MAX_BODY:,} bytes.") if int(length) > MAX_BODY else None


def _problem(request: Request, status: int, message: str) -> Response:
    headers = {"Retry-After": RETRY_AFTER_SECONDS} if status in {429, 503} else {}
    content = {"request_id": request.state.request_id, "error": {"status": status, "message": message}}
    return JSONResponse(content, status_code=status, headers=headers)
