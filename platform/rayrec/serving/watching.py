"""Every request is counted and timed, and if that is asked for logged and traced; none by who it is about."""

from __future__ import annotations

import logging
import time
from functools import cache
from typing import Any

from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayrec.serving import tracing
from rayrec.serving.envelope import Backend
from rayrec.serving.metrics import REQUEST_SECONDS, REQUESTS

ACCESS = logging.getLogger("rayrec.serving.access")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
"""Of a method or a route that there is not: clients choose those."""
LEFT = 499
"""The client did not wait for an answer, in nginx's numbers."""
FAILED = 500


class Watch:
    """An ASGI application around another, whose requests are counted, timed, logged and traced.

    Args:
        app: The application.
        backend: What the routes ask.
    """

    def __init__(self, app: ASGIApp, backend: Backend) -> None:
        self._app = app
        self._backend = backend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and note how it went."""
        if tracing.is_on():
            await self._traced(scope, receive, send)
        else:
            await self._watched(scope, receive, send)

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.perf_counter(), LEFT

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            status = FAILED
            raise
        finally:
            scope.setdefault("state", {})["status"] = status
            self._note(scope, status, time.perf_counter() - began)

    async def _traced(self, scope: Scope, receive: Receive, send: Send) -> None:
        with tracing.request_span(Headers(scope=scope)) as span:
            scope.setdefault("state", {})["trace_id"] = f"{span.get_span_context().trace_id:032x}"
            try:
                await self._watched(scope, receive, send)
            finally:
                status, route, method = scope["state"]["status"], route_of(scope), method_of(scope)
                known = {f"rayrec.{name}": value for name, value in about(scope, self._backend).items()}
                http = {"http.request.method": method, "http.route": route, "http.response.status_code": status}
                tracing.describe(span, f"{method} {route}", {**http, **known}, status >= FAILED)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route, method = route_of(scope), method_of(scope)
        _answered(route, method, status // 100).inc()
        _seconds(route).observe(seconds)
        if ACCESS.isEnabledFor(logging.INFO):
            line = f"{method} {route} {status} {seconds * 1000:.1f}ms"
            told = {"method": method, "route": route, "status": status, "milliseconds": round(seconds * 1000, 3)}
            # Ray Serve's filters would look up all of theirs for each line.
            ACCESS.info(line, extra={"skip_context_filter": True, **told, **about(scope, self._backend)})


@cache
def _answered(route: str, method: str, status_class: int) -> Counter:
    # `labels` takes longer than to count.
    return REQUESTS.labels(route, method, f"{status_class}xx")


@cache
def _seconds(route: str) -> Histogram:
    return REQUEST_SECONDS.labels(route)


def about(scope: Scope, backend: Backend) -> dict[str, Any]:
    """What the application has noted of a request, and the Release that is live."""
    state, engine = scope.get("state", {}), backend.engine
    noted = {name: state[name] for name in ("request_id", "source", "trace_id") if name in state}
    return {**noted, **({} if engine is None else {"release": engine.release.digest})}


def route_of(scope: Scope) -> str:
    """The template of the route that answered, such as ``/v1/recommend/{user}``."""
    return getattr(scope.get("route"), "path_format", OTHER)


def method_of(scope: Scope) -> str:
    """The method, if there is one of that name."""
    method = str(scope["method"])
    return method if method in METHODS else OTHER
