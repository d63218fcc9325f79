"""The HTTP surface: `/v1`, and Gorse's REST API under `/api` as an adapter over the same functions."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from rayrec import __version__
from rayrec.serving.direct import Direct
from rayrec.serving.document import add_document
from rayrec.serving.envelope import Backend, Envelope, StatusError, add_errors, live
from rayrec.serving.routes_bulk import add_bulk
from rayrec.serving.routes_gorse import add_gorse
from rayrec.serving.routes_lists import add_lists
from rayrec.serving.routes_recommend import add_recommendations
from rayrec.serving.routes_records import add_records
from rayrec.serving.routes_state import add_state
from rayrec.serving.schemas import ErrorAnswer, Health
from rayrec.serving.watching import Watch


def build_app(backend: Backend) -> FastAPI:
    """The ASGI application around a backend."""
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 411, 413, 422, 429, 500, 503)
    }
    # A redirect would have lost what tells slashes of keys from others.
    app = _Application(title="rayrec", version=__version__, responses=errors, redirect_slashes=False)
    app.envelope = Watch(Envelope(app.routed, Direct(backend), backend), backend)
    app.router.route_class = _Route
    add_errors(app)
    # An item's key may have slashes: what ends with another word comes first.
    add_recommendations(app, backend)
    add_lists(app, backend)
    add_state(app, backend)
    add_records(app, backend)
    add_bulk(app, backend)
    add_gorse(app, backend)
    _add_health(app, backend)
    app.state.parameters = {
        (method.upper(), path): {one["name"] for one in operation.get("parameters", []) if one["in"] == "query"}
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    }
    add_document(app, backend)
    return app


class _Application(FastAPI):
    """All routes in an envelope, which is around FastAPI's own middleware, too.

    Attributes:
        envelope: The envelope.
    """

    envelope: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `FastAPI`."""
        await (self.envelope if scope["type"] == "http" else self.routed)(scope, receive, send)

    async def routed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Without the envelope."""
        await super().__call__(scope, receive, send)


class _Route(APIRoute):
    """Refuses a misspelt parameter, which would be passed over otherwise. Clients of Gorse may send what they like.

    Not a dependency: FastAPI takes longer to find one than this takes.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `APIRoute`."""
        is_ours = scope["method"] in (self.methods or ()) and self.path.startswith("/v1/")
        if scope["query_string"] and is_ours:
            known = scope["app"].state.parameters.get((scope["method"], self.path_format), frozenset())
            unknown = sorted({*Request(scope).query_params} - known)
            if unknown:
                names = ", ".join(sorted(known)) or "none"
                raise StatusError(422, f"unknown parameter '{unknown[0][:100]}'. Known: {names}.")
        await super().handle(scope, receive, send)


def _add_health(app: FastAPI, backend: Backend) -> None:
    @app.head("/v1/health", include_in_schema=False)
    @app.get("/v1/health", response_model=Health, tags=["health"])
    async def health() -> Response:
        """Whether the process answers."""
        return JSONResponse({"status": "ok"})

    @app.head("/v1/ready", include_in_schema=False)
    @app.get("/v1/ready", response_model=Health, tags=["health"])
    async def ready() -> Response:
        """Whether a Release is loaded, has given its golden answers, and can be asked."""
        refused = {"refused": backend.refused} if backend.refused else {}
        return JSONResponse({"status": "ready", "release": live(backend).release.digest, **refused})
