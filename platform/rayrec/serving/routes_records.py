"""Routes of what the endpoint recorded itself: what it recommended, and whom it was to forget."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request, Response

from rayrec.serving.envelope import Backend, StatusError, live, reply, stored
from rayrec.serving.routes_state import OnlyOf, Page, Position, apart
from rayrec.serving.schemas_state import ErasureAnswer, Erasures, Impressions
from rayrec.serving.store.erasures import Erasure


def add_records(app: FastAPI, backend: Backend) -> None:
    """Add the routes."""

    @app.get("/v1/impressions", response_model=Impressions, tags=["impressions"])
    async def impressions(
        request: Request, n: Page = 100, cursor: Position = 0, user: OnlyOf = None, request_id: OnlyOf = None
    ) -> Response:
        """What was recommended, in the order in which it was written: half a second after the answer."""
        found = await apart(stored(backend).impressions.page, cursor, n, user=user, request_id=request_id)
        following = str(found[-1][0]) if len(found) == n else None
        return reply(request, live(backend), impressions=[asdict(one) for _, one in found], cursor=following)

    @app.get("/v1/erasures", response_model=Erasures, tags=["users"])
    async def erasures(request: Request, n: Page = 100, cursor: Position = 0) -> Response:
        """The receipts of users who were erased, the oldest first."""
        found = await apart(stored(backend).erasures.page, cursor, n)
        following = str(found[-1][0]) if len(found) == n else None
        return reply(request, live(backend), erasures=[_receipt(one) for _, one in found], cursor=following)

    @app.get("/v1/erasures/{erasure_id:part}", response_model=ErasureAnswer, tags=["users"])
    async def erasure(request: Request, erasure_id: str) -> Response:
        """The receipt of one."""
        found = await apart(stored(backend).erasures.get, erasure_id)
        if found is None:
            raise StatusError(404, f"no erasure '{erasure_id}' is known.")
        return reply(request, live(backend), **_receipt(found))


def _receipt(erasure: Erasure) -> dict[str, Any]:
    """As it goes over HTTP."""
    return {**asdict(erasure), "state": "done" if erasure.done else "queued"}
