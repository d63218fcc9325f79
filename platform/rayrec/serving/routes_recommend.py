"""Routes that recommend."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI, Query, Request, Response
from pydantic import JsonValue, TypeAdapter, ValidationError

from rayrec.serving.engine import Engine, Wanted
from rayrec.serving.engine import Query as EngineQuery
from rayrec.serving.envelope import Backend, live, reply
from rayrec.serving.features import FeatureError, Said
from rayrec.serving.schemas import (
    MAX_COUNT,
    MAX_KEY,
    MAX_OFFSET,
    Recommendations,
    Session,
    SimilarItems,
    UserRecommendations,
    Values,
)
from rayrec.serving.store.database import UnavailableError

MAX_CONTEXT = 4096
MAX_NAMED = 100
VALUES: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(Values)

Count = Annotated[int, Query(ge=1, le=MAX_COUNT, description="How many items.")]
Moment = Annotated[
    str,
    Query(max_length=MAX_CONTEXT, description="What the model reads of the moment: a JSON object, by column."),
]
Offset = Annotated[int, Query(ge=0, le=MAX_OFFSET, description="How many of the best to pass over.")]
Name = Annotated[str, Query(max_length=MAX_KEY)]
Categories = Annotated[
    list[Name],
    Query(
        default_factory=list,
        max_length=MAX_NAMED,
        description="Only items of one of these categories; several by repeating.",
    ),
]
Exclude = Annotated[
    list[Name],
    Query(default_factory=list, max_length=MAX_NAMED, description="Not these items; several by repeating."),
]


def _wanted(categories: Categories, exclude: Exclude) -> Wanted:
    return Wanted(tuple(categories), tuple(exclude))


Which = Annotated[Wanted, Depends(_wanted)]


@dataclass(frozen=True)
class Asked:
    """What to ask for a user.

    Attributes:
        query: The query; of somebody without a history where nothing is known of the user.
        known: Whether the user has been seen.
        degraded: Whether that could not be told, since the database does not answer.
    """

    query: EngineQuery
    known: bool
    degraded: bool


async def asked(
    engine: Engine, user: str, n: int, offset: int, said: Said | None = None, wanted: Wanted | None = None
) -> Asked:
    """What to ask for a user, whatever is known of them."""
    context, which, degraded = said or {}, wanted or Wanted(), False
    try:
        if engine.histories.remembered(user):
            query = engine.user_query(user, n, offset, context, which)
        else:
            query = await asyncio.to_thread(engine.user_query, user, n, offset, context, which)
    except UnavailableError:
        query, degraded = None, True
    nobody = engine.session_query([], n, offset, context=context, wanted=which)
    return Asked(query or nobody, query is not None, degraded)


def add_recommendations(app: FastAPI, backend: Backend) -> None:
    """Add the routes."""

    @app.get("/v1/recommend/{user:path}", response_model=UserRecommendations, tags=["recommend"])
    async def recommend(
        request: Request, user: str, which: Which, n: Count = 10, offset: Offset = 0, context: Moment = "{}"
    ) -> Response:
        """Items for a user. A user nobody has seen gets popular items, marked so."""
        engine = live(backend)
        found = await asked(engine, user, n, offset, _values("context", context), which)
        answer = await backend.answer(engine, found.query)
        return reply(request, engine, user=user, known=found.known, degraded=found.degraded, **answer.to_json())

    @app.post("/v1/session/recommend", response_model=Recommendations, tags=["recommend"])
    async def session(request: Request, body: Session) -> Response:
        """Items for somebody without an account, from what the session has seen so far."""
        engine = live(backend)
        wanted = Wanted(tuple(body.categories), tuple(body.exclude))
        query = engine.session_query(body.items, body.n, body.offset, body.times, body.user, body.context, wanted)
        answer = await backend.answer(engine, query)
        return reply(request, engine, **answer.to_json())

    @app.get("/v1/popular", response_model=Recommendations, tags=["recommend"])
    async def popular(request: Request, which: Which, n: Count = 10, offset: Offset = 0) -> Response:
        """The items that most users had."""
        engine = live(backend)
        answer = await backend.answer(engine, engine.session_query([], n, offset, wanted=which))
        return reply(request, engine, **answer.to_json())

    @app.get("/v1/latest", response_model=Recommendations, tags=["recommend"])
    async def latest(request: Request, which: Which, n: Count = 10, offset: Offset = 0) -> Response:
        """The newest items of which it is known when they came."""
        engine = live(backend)
        return reply(request, engine, **engine.latest(n, offset, which).to_json())

    @app.get("/v1/items/{item:path}/similar", response_model=SimilarItems, tags=["recommend"])
    async def similar(request: Request, item: str, n: Count = 10) -> Response:
        """Items like this one."""
        engine = live(backend)
        return reply(request, engine, item=item, **engine.similar(item, n).to_json())


def _values(name: str, text: str) -> Said:
    """A parameter that holds JSON; FastAPI has none that are objects."""
    try:
        return VALUES.validate_json(text)
    except ValidationError as error:
        raise FeatureError(f"{name}: {error.errors()[0]['msg']}") from error
