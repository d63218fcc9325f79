"""The request that is made thousands of times a second: what a user is recommended, and nothing else said.

FastAPI's routing and validation take longer than all of the answer but the model's pass. What is asked in any other way
goes through them, to the same function.
"""

from __future__ import annotations

import re
from types import SimpleNamespace

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from rayrec.serving.envelope import Backend, failure
from rayrec.serving.routes_recommend import recommend
from rayrec.serving.schemas import MAX_COUNT, MAX_OFFSET

PREFIX = "/v1/recommend/"
USER = re.compile(rb"[\w.:@~-]+", re.ASCII)
"""A key as it stands in an address when nothing of it has to be decoded."""
QUERY = re.compile(rb"(?:n=([0-9]{1,9}))?(?:&offset=([0-9]{1,9}))?")
USUAL = 10
ROUTE = SimpleNamespace(path_format="/v1/recommend/{user}")
"""What FastAPI would have noted of the route."""


class Direct:
    """Answers ``GET /v1/recommend/{user}`` with nothing but ``n`` and ``offset``.

    Args:
        backend: What the routes ask.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __call__(self, request: Request) -> ASGIApp | None:
        """What answers a request; None where it is not such a one, or is to be refused."""
        scope = request.scope
        if scope["method"] != "GET" or not scope["path"].startswith(PREFIX) or scope.get("root_path"):
            return None
        asked = QUERY.fullmatch(scope["query_string"])
        user = scope["path"][len(PREFIX) :]
        if asked is None or not USER.fullmatch(scope.get("raw_path", b"")[len(PREFIX) :]):
            return None
        n, offset = int(asked[1] or USUAL), int(asked[2] or 0)
        if not (1 <= n <= MAX_COUNT and offset <= MAX_OFFSET):
            return None

        scope["route"] = ROUTE

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                found = await recommend(self._backend, request, user, n, offset)
            except Exception as error:
                found = failure(request, error)
            await found(scope, receive, send)

        return answer
