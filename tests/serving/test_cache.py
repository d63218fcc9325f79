"""Answers are given again as long as they hold, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rayrec.inference.inputs import Context
from rayrec.serving.cache import MOST_OF_A_USER, AnswerCache, Remembering
from rayrec.serving.catalog import Items
from rayrec.serving.queries import Answer, Query, ScoredItem, Wanted
from rayrec.serving.state import Item

HISTORY = np.array([1, 2])
QUERY = Query(HISTORY, 5, 0, np.zeros(0, np.int64), Context(), at=1000, who="u")


class Counting:
    """Answers with how often it was asked, after a moment."""

    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None

    async def __call__(self, query: Query) -> Answer:
        self.asked += 1
        await asyncio.sleep(0.001)
        if self.error:
            raise self.error
        return Answer([ScoredItem(Item("i"), float(self.asked))], "model")


Made = Callable[..., AnswerCache]


@pytest.fixture
def compute() -> Counting:
    return Counting()


@pytest.fixture
def catalog() -> Items:
    return Items([Item("i")])


@pytest.fixture
def made(compute: Counting, catalog: Items) -> Made:
    def make(answers: int = 10, seconds: float = 60, coalesce: bool = True) -> AnswerCache:
        return AnswerCache(compute, catalog, Remembering(answers, seconds, coalesce))

    return make


def run(cache: AnswerCache, *queries: Query) -> list[float]:
    """Scores of answers to queries, one after the other."""

    async def each() -> list[float]:
        return [(await cache.answer(query)).items[0].score for query in queries]

    return asyncio.run(each())


def test_the_same_question_is_answered_again_without_computing(made: Made, compute: Counting) -> None:
    cache = made()
    assert run(cache, QUERY, QUERY, replace(QUERY, at=1010)) == [1, 1, 1]
    assert (compute.asked, cache.hits) == (1, 2)


@pytest.mark.parametrize(
    "other",
    [
        {"history": HISTORY.copy()},  # somebody who has done something has another array
        {"who": "v"},
        {"count": 6},
        {"offset": 1},
        {"wanted": Wanted(categories=("c",))},
        {"at": 5000},
        {"user": {"age": 3}},
        {"moment": {"device": "tv"}},
    ],
)
def test_another_question_is_computed(made: Made, other: dict[str, Any]) -> None:
    assert run(made(), QUERY, replace(QUERY, **other)) == [1, 2]


def test_sessions_and_whoever_wonders_how_are_computed(made: Made) -> None:
    for one in (replace(QUERY, who=""), replace(QUERY, debug=True)):
        first, second = run(made(), one, one)
        assert second == first + 1


def test_a_change_of_the_catalogue_makes_all_answers_old(made: Made, catalog: Items) -> None:
    cache = made()
    assert run(cache, QUERY) == [1]
    catalog.put([Item("i", hidden=True)])
    assert run(cache, QUERY) == [2]


def test_answers_grow_old_and_the_oldest_go_first(made: Made) -> None:
    assert run(made(seconds=0), QUERY, QUERY) == [1, 2]
    small = made(answers=1)
    first, _, again = run(small, QUERY, replace(QUERY, who="v"), QUERY)
    assert again == first + 2
    assert run(made(answers=0), QUERY, QUERY)[0] != run(made(answers=0), QUERY)[0]


def test_who_is_to_be_forgotten_leaves_no_answer(made: Made) -> None:
    cache = made()
    run(cache, QUERY, replace(QUERY, who="v"), replace(QUERY, count=1))
    cache.forget(["u", "unheard"])
    assert [*cache._kept] == ["v"]
    cache.forget(None)
    assert not cache._kept
    run(cache, *(replace(QUERY, count=n) for n in range(1, 100)))
    assert len(cache._kept["u"]) <= MOST_OF_A_USER


def test_those_who_ask_the_same_at_once_share_an_answer(made: Made, compute: Counting) -> None:
    async def together(cache: AnswerCache) -> int:
        before = compute.asked
        await asyncio.gather(*(cache.answer(QUERY) for _ in range(8)))
        return compute.asked - before

    cache = made(answers=0)
    assert asyncio.run(together(cache)) == 1
    assert cache.shared == 7
    assert asyncio.run(together(made(answers=0, coalesce=False))) == 8


def test_whoever_leaves_takes_nothing_from_the_others(made: Made, compute: Counting) -> None:
    async def leave() -> float:
        cache = made()
        first = asyncio.create_task(cache.answer(QUERY))
        second = asyncio.create_task(cache.answer(QUERY))
        await asyncio.sleep(0)
        first.cancel()
        return (await second).items[0].score

    assert asyncio.run(leave()) == 1


def test_an_error_is_told_to_all_and_not_remembered(made: Made, compute: Counting) -> None:
    cache = made()
    compute.error = RuntimeError("broken")

    async def both() -> list[Any]:
        return await asyncio.gather(*(cache.answer(QUERY) for _ in range(2)), return_exceptions=True)

    assert [str(error) for error in asyncio.run(both())] == ["broken", "broken"]
    compute.error = None
    assert run(cache, QUERY) == [2]
