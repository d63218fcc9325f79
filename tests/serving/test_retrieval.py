"""Answers by an index: with all its cells looked through they are those of all scores, whatever is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.recipes import ITEMS

from rayrec.evaluation.retrieval import IndexJob, index_items_here
from rayrec.inference.index import Index
from rayrec.inference.release import Release, publish_release
from rayrec.recipe_serving import Funnel as Policy
from rayrec.recipe_serving import Index as Settings
from rayrec.serving.engine import Engine
from rayrec.serving.funnel.funnel import Funnel
from rayrec.serving.queries import Answer, Query, Wanted
from rayrec.serving.state import Event, Item
from rayrec.serving.store.store import Store

CELLS = 5
USERS = [f"u{n}" for n in range(12)]


def released(release: Release, probes: int) -> Release:
    """A Release with an index."""
    pinned = release.content["dataset"]
    settings = Settings(from_items=1, cells=CELLS, probes=probes, codes="float32")
    version, main = (pinned["name"], pinned["manifest"]), release.content["models"]["main"]
    job = IndexJob(settings, "served", main, version, pinned["view"], release.storage)
    assert job.is_wanted
    serving = {**release.content["serving"], "index": settings.model_dump()}
    return publish_release(release.storage, {**release.content, "index": index_items_here(job), "serving": serving})


@pytest.fixture(scope="module")
def dense(release: Release, filled: Store) -> Engine:
    return Engine.load(release.storage, release.digest, known=filled.histories_of, catalog=filled.catalog)


@pytest.fixture(scope="module")
def indexed(release: Release, filled: Store) -> Engine:
    made = released(release, CELLS)
    return Engine.load(made.storage, made.digest, known=filled.histories_of, catalog=filled.catalog)


@pytest.fixture
def engines(dense: Engine, indexed: Engine) -> Iterator[tuple[Engine, Engine]]:
    yield dense, indexed
    for engine in (dense, indexed):
        engine._funnel = None


def asked(engine: Engine, n: int, offset: int, wanted: Wanted) -> list[Query]:
    """What some users ask, and one session without a history."""
    queries = [engine.user_query(user, n, offset, wanted=wanted) for user in USERS]
    assert None not in queries
    return [*filter(None, queries), engine.session_query([], n, offset, wanted=wanted)]


def same(one: Sequence[Answer], other: Sequence[Answer]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert [scored.item.item for scored in mine.items] == [scored.item.item for scored in theirs.items]
        assert mine.source == theirs.source
        scores = [[scored.score for scored in answer.items] for answer in (mine, theirs)]
        np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-5)
        assert [scored.propensity for scored in mine.items] == [scored.propensity for scored in theirs.items]


def test_it_looks_things_up(indexed: Engine, dense: Engine) -> None:
    assert isinstance(indexed.scorer.source, Index)
    assert isinstance(indexed.scorer.alike, Index)
    assert indexed.popular.source is not None
    assert {dense.scorer.source, dense.scorer.alike, dense.popular.source} == {None}
    assert indexed.popular.item_keys is indexed.scorer.item_keys


@pytest.mark.parametrize("n", [1, 7, ITEMS])
@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(),
        Wanted(categories=("even",)),
        Wanted(categories=("nothing",)),
        Wanted(exclude=tuple(f"i{n}" for n in range(10))),
        Wanted(categories=("odd",), exclude=("i1", "i1", "i2", "nobody")),
        Wanted(only=("i1", "i5", "i6", "i20", "nobody")),
        Wanted(only=("i3",)),
    ],
)
def test_answers_are_those_of_all_scores(engines: tuple[Engine, Engine], n: int, wanted: Wanted) -> None:
    same(*(engine.answer(asked(engine, n, n // 2, wanted)) for engine in engines))


@pytest.mark.parametrize(
    "policy",
    [
        {"diversity": "mmr"},
        {"diversity": "dpp", "sources": {"model": 12}},
        {"category_cap": 2},
        {"merge": "ranks", "sources": {"model": 8, "similar": 5, "popular": 6, "trending": 3, "latest": 4}},
        {"freshness_weight": 1.0, "exploration": 0.4},
        {"cold_every": 3},
    ],
)
@pytest.mark.parametrize("wanted", [Wanted(), Wanted(categories=("even",), exclude=("i4",))])
def test_funnels_give_the_same(engines: tuple[Engine, Engine], policy: dict[str, Any], wanted: Wanted) -> None:
    answers = []
    for engine in engines:
        parts = (engine.scorer, engine.popular, engine.catalog, lambda: ["i7", "i8"], "served")
        engine._funnel = Funnel(Policy(**policy), *parts)
        # At the same moment, on which freshness depends.
        answers.append(engine.answer([replace(query, at=1_800_000_000) for query in asked(engine, 9, 2, wanted)]))
    same(*answers)


def test_similar_items_and_reasons_are_the_same(engines: tuple[Engine, Engine]) -> None:
    one, other = (engine.similar(["i3", "i4"], 8, Wanted(categories=("odd",))) for engine in engines)
    same([one], [other])
    reasons = [engine.because(asked(engine, 1, 0, Wanted())[0], "i9") for engine in engines]
    assert [found.item.item for found in reasons[0]] == [found.item.item for found in reasons[1]]


def test_one_cell_of_many_gives_as_many_items(release: Release, filled: Store) -> None:
    made = released(release, 1)
    engine = Engine.load(made.storage, made.digest, known=filled.histories_of, catalog=filled.catalog)
    whole = engine.answer(asked(engine, ITEMS, 0, Wanted()))
    had = [len({*query.history.tolist()}) for query in asked(engine, 1, 0, Wanted())]
    assert [len(answer.items) for answer in whole] == [ITEMS - seen for seen in had]


def test_changes_of_the_catalogue_count_at_once(engines: tuple[Engine, Engine], filled: Store) -> None:
    def both(wanted: Wanted) -> list[str]:
        answers = [engine.answer(asked(engine, ITEMS, 0, wanted)) for engine in engines]
        same(*answers)
        return [scored.item.item for scored in answers[0][-1].items]

    even = Wanted(categories=("even",))
    before = filled.catalog.item("i7")
    assert before is not None
    assert "i7" not in both(even)
    filled.put_items([replace(before, categories=("even",))])
    assert "i7" in both(even)
    filled.change_item("i7", {"hidden": True})
    assert "i7" not in both(even) + both(Wanted())
    filled.put_items([before, *(Item(f"new{n}") for n in range(3))])
    assert "i7" not in both(even)
    assert "i7" in both(Wanted())


def test_a_single_event_is_left_out_of_the_next_answer(engines: tuple[Engine, Engine], filled: Store) -> None:
    query = engines[1].user_query("u3", 1, 0)
    assert query is not None
    (best,) = engines[1].answer([query])[0].items
    filled.append([Event("now", "u3", best.item.item, "", 1_800_000_000_000)])
    after = [engine.answer(asked(engine, ITEMS, 0, Wanted())) for engine in engines]
    same(*after)
    assert best.item.item not in [scored.item.item for scored in after[0][3].items]
