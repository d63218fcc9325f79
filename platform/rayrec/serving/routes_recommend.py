"""Routes that recommend."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI, Query, Request, Response
from pydantic import JsonValue, TypeAdapter, ValidationError

from rayrec.serving.engine import Answer, Engine, ScoredItem, Wanted
from rayrec.serving.engine import Query as EngineQuery
from rayrec.serving.envelope import Backend, live, reply, stored
from rayrec.serving.features import FeatureError, Said
from rayrec.serving.schemas import (
    MAX_COUNT,
    MAX_KEY,
    MAX_OFFSET,
    Basket,
    Rank,
    Ranking,
    Recommendations,
    Session,
    SimilarItems,
    SimilarUsers,
    UserRecommendations,
    Values,
)
from rayrec.serving.store.database import UnavailableError

MAX_CONTEXT = 4096
MAX_NAMED = 20
VALUES: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(Values)

Count = Annotated[int, Query(ge=1, le=MAX_COUNT, description="How many items.")]
Moment = Annotated[
    str,
    Query(max_length=MAX_CONTEXT, description="What the model reads of the moment: a JSON object, by column."),
]
Explain = Annotated[bool, Query(description="Say which items of the history speak most for each one.")]
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
Hours = Annotated[int, Query(ge=1, le=24 * 366, description="How far back.")]
Exclude = Annotated[
    list[Name],
    Query(default_factory=list, max_length=MAX_NAMED, description="Not these items; several by repeating."),
]


Labels = Annotated[
    list[Annotated[str, Query(pattern="^[^=]*=.*$", max_length=MAX_KEY)]],
    Query(
        alias="label",
        default_factory=list,
        max_length=MAX_NAMED,
        description="Only items with this label, as NAME=VALUE; all of several by repeating.",
    ),
]


def _wanted(categories: Categories, exclude: Exclude, labels: Labels) -> Wanted:
    parted = [label.partition("=") for label in labels]
    return Wanted(tuple(categories), tuple((name, value) for name, _, value in parted), tuple(exclude))


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
        request: Request,
        user: str,
        which: Which,
        n: Count = 10,
        offset: Offset = 0,
        context: Moment = "{}",
        explain: Explain = False,
    ) -> Response:
        """Items for a user. A user nobody has seen gets popular items, marked so."""
        engine = live(backend)
        found = await asked(engine, user, n, offset, _values("context", context), which)
        answer = (await backend.answer(engine, found.query)).to_json()
        if explain:
            for item in answer["items"]:
                near = engine.because(found.query, item["item"])
                item["because"] = [{"item": one.item.item, "similarity": one.score} for one in near]
        return reply(request, engine, user=user, known=found.known, degraded=found.degraded, **answer)

    @app.post("/v1/session/recommend", response_model=Recommendations, tags=["recommend"])
    async def session(request: Request, body: Session) -> Response:
        """Items for somebody without an account, from what the session has seen so far."""
        engine = live(backend)
        wanted = Wanted(tuple(body.categories), exclude=tuple(body.exclude))
        query = engine.session_query(body.items, body.n, body.offset, body.times, body.user, body.context, wanted)
        answer = await backend.answer(engine, query)
        return reply(request, engine, **answer.to_json())

    @app.post("/v1/basket/recommend", response_model=Recommendations, tags=["recommend"])
    async def basket(request: Request, body: Basket) -> Response:
        """What goes with the items of a cart, whatever their order."""
        engine = live(backend)
        return reply(request, engine, **engine.similar(body.items, body.n).to_json())

    @app.post("/v1/rank", response_model=Ranking, tags=["recommend"])
    async def rank(request: Request, body: Rank) -> Response:
        """Your candidates, best first for a user or a session; also what they had. Hidden items are left out."""
        engine, n = live(backend), len(body.candidates)
        wanted = Wanted(only=tuple(body.candidates))
        if body.user is None:
            found = Asked(engine.session_query(body.items, n, 0, wanted=wanted), False, False)
        else:
            found = await asked(engine, body.user, n, 0, wanted=wanted)
        answer = await backend.answer(engine, found.query)
        ranked = {scored.item.item for scored in answer.items}
        left = [key for key in dict.fromkeys(body.candidates) if key not in ranked]
        return reply(request, engine, unranked=left, degraded=found.degraded, **answer.to_json())

    @app.get("/v1/trending", response_model=Recommendations, tags=["recommend"])
    async def trending(request: Request, n: Count = 10, hours: Hours = 24) -> Response:
        """What most users did something with lately."""
        engine, since = live(backend), int((time.time() - 3600 * hours) * 1000)
        found = await asyncio.to_thread(stored(backend).events.most_users, since, n)
        # The copy in memory may be a moment behind.
        items = [ScoredItem(item, users) for key, users in found if (item := engine.catalog.item(key))]
        return reply(request, engine, **Answer(items, "trending").to_json())

    @app.get("/v1/users/{user:path}/similar", response_model=SimilarUsers, tags=["recommend"])
    async def similar_users(request: Request, user: str, n: Count = 10) -> Response:
        """Users who had most of the items that this one had last."""
        found = await asyncio.to_thread(stored(backend).events.neighbours, user, n)
        users = [{"user": other, "score": share} for other, share in found]
        return reply(request, live(backend), user=user, users=users)

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
    async def similar(request: Request, item: str, which: Which, n: Count = 10) -> Response:
        """Items like this one."""
        engine = live(backend)
        return reply(request, engine, item=item, **engine.similar([item], n, which).to_json())


def _values(name: str, text: str) -> Said:
    """A parameter that holds JSON; FastAPI has none that are objects."""
    try:
        return VALUES.validate_json(text)
    except ValidationError as error:
        raise FeatureError(f"{name}: {error.errors()[0]['msg']}") from error
