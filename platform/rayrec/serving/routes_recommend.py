"""Routes that recommend."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

from fastapi import FastAPI, Request, Response
from pydantic import JsonValue, TypeAdapter, ValidationError

from rayrec.artifacts import Json
from rayrec.serving.debug import account
from rayrec.serving.engine import Engine
from rayrec.serving.envelope import Backend, live, reply
from rayrec.serving.features import FeatureError, Said
from rayrec.serving.metrics import DEGRADED, FALLBACKS, UNKNOWN_ITEMS, UNKNOWN_USER
from rayrec.serving.parameters import (
    NO_NAMES,
    Categories,
    Count,
    Debugging,
    Exclude,
    Explain,
    Labels,
    Moment,
    Offset,
    wanted_of,
)
from rayrec.serving.queries import ANYTHING, POPULAR, Answer, Wanted
from rayrec.serving.queries import Query as EngineQuery
from rayrec.serving.schemas import Values
from rayrec.serving.schemas_recommend import (
    Basket,
    Rank,
    Ranking,
    Recommendations,
    Session,
    UserRecommendations,
)
from rayrec.serving.stages import stage
from rayrec.serving.state import Impression
from rayrec.serving.store.database import UnavailableError

VALUES: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(Values)


@dataclass(frozen=True)
class Asked:
    """What to ask for a user.

    Attributes:
        query: The query; of somebody without a history where nothing is known of the user.
        known: Whether the user has been seen.
        degraded: Whether that could not be told, since the database does not answer, or not in time.
    """

    query: EngineQuery
    known: bool
    degraded: bool


@dataclass(frozen=True)
class Details:
    """What is asked besides items.

    Attributes:
        explain: Which items of the history speak most for each.
        debug: How the answer came about.
    """

    explain: bool = False
    debug: bool = False


NO_DETAILS = Details()


async def asked(
    backend: Backend,
    engine: Engine,
    user: str,
    n: int,
    offset: int,
    said: Said | None = None,
    wanted: Wanted | None = None,
) -> Asked:
    """What to ask for a user, whatever is known of them. What takes long is done while others are answered."""
    with stage("ask"):
        found = await _asked(backend, engine, user, n, offset, said, wanted)
    if not len(found.query.history):
        reason = UNKNOWN_ITEMS if found.known else UNKNOWN_USER
        FALLBACKS.labels(DEGRADED if found.degraded else reason).inc()
    return found


async def _asked(
    backend: Backend, engine: Engine, user: str, n: int, offset: int, said: Said | None, wanted: Wanted | None
) -> Asked:
    wanted = None if wanted == ANYTHING else wanted
    context, which, degraded = said or {}, wanted or ANYTHING, False
    try:
        if wanted is None and engine.histories.remembered(user):
            query = engine.user_query(user, n, offset, context, which)
        else:
            reading = asyncio.to_thread(engine.user_query, user, n, offset, context, which)
            query = await asyncio.wait_for(reading, backend.deadline)
    except (UnavailableError, TimeoutError):
        query, degraded = None, True
    if query is not None:
        return Asked(query, True, degraded)
    nobody = await asyncio.to_thread(engine.session_query, [], n, offset, context=context, wanted=which)
    return Asked(replace(nobody, who=user), False, degraded)


def add_recommendations(app: FastAPI, backend: Backend) -> None:
    """Add the routes."""

    @app.get("/v1/recommend/{user:key}", response_model=UserRecommendations, tags=["recommend"])
    async def recommend_to_user(
        request: Request,
        user: str,
        categories: Categories = NO_NAMES,
        exclude: Exclude = NO_NAMES,
        labels: Labels = NO_NAMES,
        n: Count = 10,
        offset: Offset = 0,
        context: Moment = "{}",
        explain: Explain = False,
        debug: Debugging = False,
    ) -> Response:
        """Items for a user. A user nobody has seen gets popular items, marked so."""
        which, said = wanted_of(categories, exclude, labels), _values("context", context)
        return await recommend(backend, request, user, n, offset, said, which, Details(explain, debug))

    @app.post("/v1/session/recommend", response_model=Recommendations, tags=["recommend"])
    async def session(request: Request, body: Session) -> Response:
        """Items for somebody without an account, from what the session has seen so far."""
        engine = live(backend)
        wanted = Wanted(tuple(body.categories), exclude=tuple(body.exclude))
        query = engine.session_query(body.items, body.n, body.offset, body.times, body.user, body.context, wanted)
        answer = await backend.answer(engine, query)
        shown(backend, request, engine, answer, None, body.offset)
        return reply(request, engine, **answer.to_json())

    @app.post("/v1/basket/recommend", response_model=Recommendations, tags=["recommend"])
    async def basket(request: Request, body: Basket) -> Response:
        """What goes with the items of a cart, whatever their order."""
        engine = live(backend)
        return reply(request, engine, **engine.similar(body.items, body.n).to_json())

    @app.post("/v1/rank", response_model=Ranking, tags=["recommend"])
    async def rank(request: Request, body: Rank) -> Response:
        """Your candidates, best first for a user or a session; also what they had. Hidden items are left out."""
        engine, n = live(backend, body.user), len(body.candidates)
        wanted = Wanted(only=tuple(body.candidates))
        if body.user is None:
            found = Asked(engine.session_query(body.items, n, 0, wanted=wanted), False, False)
        else:
            found = await asked(backend, engine, body.user, n, 0, wanted=wanted)
        answer = await backend.answer(engine, found.query)
        shown(backend, request, engine, answer, body.user, 0)
        ranked = {scored.item.item for scored in answer.items}
        left = [key for key in dict.fromkeys(body.candidates) if key not in ranked]
        content = answer.to_json()
        content["degraded"] |= found.degraded
        return reply(request, engine, unranked=left, **content)


async def recommend(
    backend: Backend,
    request: Request,
    user: str,
    n: int,
    offset: int,
    said: Said | None = None,
    which: Wanted = ANYTHING,
    details: Details = NO_DETAILS,
) -> Response:
    """Items for a user."""
    engine, began = live(backend, user), time.perf_counter()
    found = await asked(backend, engine, user, n, offset, said, which)
    ready = time.perf_counter()
    answer = await backend.answer(engine, replace(found.query, debug=True) if details.debug else found.query)
    content = answer.to_json()
    if details.explain:
        await asyncio.to_thread(_explain, engine, found.query, content["items"])
    if details.debug:
        seconds = {"ask": ready - began, "answer": time.perf_counter() - ready}
        content["debug"] = account(engine, found.query, which, seconds)
    content["degraded"] |= found.degraded
    shown(backend, request, engine, answer, user, offset)
    return reply(request, engine, user=user, known=found.known, **content)


def shown(backend: Backend, request: Request, engine: Engine, answer: Answer, user: str | None, offset: int) -> None:
    """Have it written down what an answer recommends."""
    request.state.source = answer.source
    if user is None and answer.source == POPULAR:
        FALLBACKS.labels(UNKNOWN_ITEMS).inc()
    if backend.store is None or not answer.items:
        return
    items, scores = [scored.item.item for scored in answer.items], [scored.score for scored in answer.items]
    release = engine.release.digest
    propensities = [scored.propensity for scored in answer.items]
    told = Impression(
        request.state.request_id,
        user,
        request.state.began,
        release,
        answer.source,
        offset + 1,
        items,
        scores,
        propensities,
    )
    backend.store.impressions.log(told)


def _explain(engine: Engine, query: EngineQuery, items: list[Json]) -> None:
    """Add to recommended items what speaks for them."""
    for item in items:
        near = engine.because(query, item["item"])
        item["because"] = [{"item": one.item.item, "similarity": one.score} for one in near]


def _values(name: str, text: str) -> Said:
    """A parameter that holds JSON; FastAPI has none that are objects."""
    try:
        return VALUES.validate_json(text)
    except ValidationError as error:
        raise FeatureError(f"{name}: {error.errors()[0]['msg']}") from error
