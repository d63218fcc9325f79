"""From candidates to an answer: each rule on a case where what it must do is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from tests.recipes import ITEMS

from rayrec.inference.release import Release
from rayrec.recipe_serving import Funnel as Policy
from rayrec.serving.engine import Engine
from rayrec.serving.funnel.candidates import gather
from rayrec.serving.funnel.compiled import compiled
from rayrec.serving.funnel.funnel import Funnel
from rayrec.serving.funnel.rerank import Candidates, Diversity, Rules, arrange, scaled
from rayrec.serving.queries import MODEL, Answer, Wanted
from rayrec.serving.state import Event, Item
from rayrec.serving.store.store import Store

RELEVANCE = np.array([[1.0, 0.9, 0.8, 0.7, 0.2, -np.inf]], np.float32)


def unit(*vectors: tuple[float, float]) -> np.ndarray:
    found = np.array([vectors], np.float32)
    return found / np.linalg.norm(found, axis=2, keepdims=True)


def chances(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, n]) for n in range(count)]


def chosen(candidates: Candidates, count: int, **rules: Any) -> list[list[int]]:
    return arrange(candidates, count, Rules(**rules), chances(len(candidates.relevance))).chosen.tolist()


def test_without_rules_the_best_come_first() -> None:
    assert chosen(Candidates(RELEVANCE[:, ::-1].copy()), 6) == [[5, 4, 3, 2, 1, -1]]


def test_what_is_like_the_first_comes_later_by_mmr() -> None:
    same, other = (1.0, 0.0), (0.0, 1.0)
    directions = unit(same, same, same, other, other, other)
    assert chosen(Candidates(RELEVANCE, directions), 4, diversity="mmr", weight=0.5) == [[0, 3, 1, 2]]
    assert chosen(Candidates(RELEVANCE, directions), 5, diversity="mmr", weight=0.0) == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("kind", ["mmr", "dpp"])
def test_a_batch_is_arranged_as_its_requests_alone(kind: Diversity) -> None:
    rng = np.random.default_rng(1)
    relevance = rng.random((5, 40)).astype(np.float32)
    vectors = rng.normal(size=(5, 40, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    together = chosen(Candidates(relevance, vectors), 12, diversity=kind, weight=0.3)
    for n in range(5):
        alone = Candidates(relevance[n : n + 1], vectors[n : n + 1])
        assert chosen(alone, 12, diversity=kind, weight=0.3) == [together[n]]


def test_a_determinantal_point_process_takes_what_spans_most() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(1, 8, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    relevance, weight = rng.random((1, 8)).astype(np.float32), 0.4
    kernel = vectors[0] @ vectors[0].T
    lengths = np.exp((1 - weight) / (2 * weight) * relevance[0])
    kernel = lengths[:, None] * kernel * lengths[None, :]
    found = chosen(Candidates(relevance, vectors), 4, diversity="dpp", weight=weight)[0]
    greedy: list[int] = []
    for _ in range(4):
        left = [n for n in range(8) if n not in greedy]
        greedy.append(max(left, key=lambda n: np.linalg.det(kernel[np.ix_([*greedy, n], [*greedy, n])])))
    assert found == greedy


def test_no_category_has_more_places_than_its_cap() -> None:
    categories = np.array([[[1, 2], [1, 0], [1, 3], [2, 0], [0, 0], [0, 0]]])
    candidates = Candidates(RELEVANCE, categories=categories)
    assert chosen(candidates, 6, category_cap=1) == [[0, 4, -1, -1, -1, -1]]
    assert chosen(candidates, 6, category_cap=2) == [[0, 1, 3, 4, -1, -1]]


def test_propensities_tell_how_often_chance_chose() -> None:
    users, size, rate = 4000, 10, 0.2
    relevance = np.tile(np.linspace(1, 0, size, dtype=np.float32), (users, 1))
    placed = arrange(Candidates(relevance), 3, Rules(exploration=rate), chances(users))
    for place in range(3):
        # Of what is left, `size - place`, one is the best.
        sure = 1 - rate + rate / (size - place)
        best = ~placed.by_chance[:, place]
        assert placed.propensities[best, place] == pytest.approx(sure)
        assert placed.propensities[~best, place] == pytest.approx(rate / (size - place))
        assert best.mean() == pytest.approx(sure, abs=0.02)
    # Each item is first as often as its propensity says.
    first = Counter(placed.chosen[:, 0].tolist())
    assert all(first[n] / users == pytest.approx(rate / size, abs=0.01) for n in range(1, size))


def test_candidates_of_several_sources_stand_once() -> None:
    given = {"model": [[7, 3, 0], [1, 2, 3]], "similar": [[3, 9, 8], [0, 0, 0]], "popular": [[0, 9], [0, 0]]}
    quotas = {"model": 3, "similar": 2, "popular": 1}
    found = gather({name: np.array(rows) for name, rows in given.items()}, quotas, 9)
    assert found.rows.tolist() == [[7, 3, 9, 0, 0, 0], [1, 2, 3, 0, 0, 0]]
    assert found.sources(0, 1) == {"model": 2, "similar": 1}
    assert found.sources(0, 2) == {"similar": 2, "popular": 1}
    assert found.sources(1, 2) == {"model": 3}
    assert found.by_ranks()[0].argmax() == 1


@pytest.mark.parametrize("kind", ["mmr", "dpp"])
def test_rules_that_need_what_is_not_known_say_so(kind: Diversity) -> None:
    with pytest.raises(ValueError, match="vectors"):
        arrange(Candidates(RELEVANCE), 2, Rules(kind, 0.5), [])
    with pytest.raises(ValueError, match="categories"):
        arrange(Candidates(RELEVANCE), 2, Rules(category_cap=1), [])


def test_loops_are_compiled_where_no_folder_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.core.caching.CompileResultCacheImpl, "_locator_classes", [])

    @compiled("i8(i8)")
    def twice(number: int) -> int:
        return 2 * number

    assert twice(21) == 42
    with pytest.raises(TypeError):
        twice("21")  # type: ignore[arg-type]


def test_relevance_is_from_0_to_1_whatever_the_scores_are() -> None:
    scores = np.array([[-3.0, 5.0, -np.inf, 1.0], [2.0, 2.0, 2.0, 2.0]], np.float32)
    assert scaled(scores).tolist() == [[0, 1, -np.inf, 0.5], [0, 0, 0, 0]]


# ---- with a model


@pytest.fixture(scope="module")
def engine(release: Release, filled: Store) -> Engine:
    return Engine.load(release.storage, release.digest, known=filled.histories_of, catalog=filled.catalog)


def answer(
    engine: Engine,
    user: str,
    n: int,
    offset: int = 0,
    wanted: Wanted | None = None,
    trending: Sequence[str] = (),
    **policy: Any,
) -> Answer:
    """What a policy shows to a user."""
    made = Funnel(Policy(**policy), engine.scorer, engine.popular, engine.catalog, lambda: trending, "served")
    engine._funnel = made
    try:
        query = engine.user_query(user, n, offset, wanted=wanted or Wanted())
        assert query is not None
        return engine.answer([query])[0]
    finally:
        engine._funnel = None


def keys(found: Answer) -> list[str]:
    return [scored.item.item for scored in found.items]


def engine_history(engine: Engine, user: str) -> list[str]:
    """What a user had, which no source gives."""
    history = engine.histories.history(user)
    assert history is not None
    return [engine.scorer.item_keys[row - 1] for row in history.items]


def plain(engine: Engine, user: str, n: int = ITEMS) -> list[str]:
    query = engine.user_query(user, n, 0)
    assert query is not None
    return keys(engine.answer([query])[0])


def test_a_policy_that_changes_nothing_shows_what_the_model_says(engine: Engine) -> None:
    found = answer(engine, "u1", 7)
    assert keys(found) == plain(engine, "u1", 7)
    assert [scored.propensity for scored in found.items] == [1.0] * 7
    assert Policy().is_plain
    assert not Policy(diversity="mmr").is_plain


def test_by_ranks_what_several_sources_have_comes_first(engine: Engine) -> None:
    sources = {"model": 10, "trending": 2}
    whole = plain(engine, "u1", ITEMS)
    trending = [*engine_history(engine, "u1"), *whole[-2:]]
    found = keys(answer(engine, "u1", 5, trending=trending, merge="ranks", sources=sources))
    assert {whole[0], *whole[-2:]} <= {*found}
    by_score = keys(answer(engine, "u1", 5, trending=trending, sources=sources))
    assert by_score == whole[:5], "by the model's scores other sources change nothing"


def test_pages_follow_each_other(engine: Engine) -> None:
    policy: dict[str, Any] = {"exploration": 0.5, "diversity": "mmr", "category_cap": 3}
    whole = keys(answer(engine, "u1", 8, **policy))
    assert keys(answer(engine, "u1", 4, **policy)) + keys(answer(engine, "u1", 4, 4, **policy)) == whole
    deep = keys(answer(engine, "u1", 15, sources={"model": 5}, diversity="mmr"))
    assert len({*deep}) == 15
    assert {*deep[:5]} == {*plain(engine, "u1", 5)}, "only the first candidates are arranged"
    assert deep[5:] == plain(engine, "u1", 15)[5:]


def test_an_answer_does_not_depend_on_who_else_asks(engine: Engine) -> None:
    policy = Policy(sources={"model": 6, "similar": 3}, diversity="mmr", diversity_weight=0.5, exploration=0.3)
    queries = [engine.user_query(user, n, offset) for user, n, offset in (("u1", 3, 0), ("u2", 9, 4), ("u3", 2, 2))]
    funnel = Funnel(policy, engine.scorer, engine.popular, engine.catalog, tuple, "served")
    asked = [query for query in queries if query is not None]
    together = funnel.ranked(MODEL, engine._scores(engine.scorer, asked), asked)
    for query, found in zip(asked, together, strict=True):
        alone = funnel.ranked(MODEL, engine._scores(engine.scorer, [query]), [query])[0]
        assert list(alone.keys) == list(found.keys)
        assert alone.propensities == found.propensities


def test_new_items_come_earlier(engine: Engine, filled: Store) -> None:
    last = plain(engine, "u1")[-1]
    query = engine.user_query("u1", 1, 0)
    assert query is not None
    filled.change_item(last, {"timestamp": query.at * 1000})
    assert keys(answer(engine, "u1", 3, freshness_weight=2.0))[0] == last
    assert keys(answer(engine, "u1", 3, freshness_weight=0.0))[0] != last
    filled.change_item(last, {"timestamp": (query.at - 300 * 24 * 3600) * 1000})


def test_places_are_kept_for_items_that_no_model_knows(release: Release, filled_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(filled_file.read_bytes())
    with closing(Store(f"sqlite:///{path}")) as store:
        engine = Engine.load(release.storage, release.digest, known=store.histories_of, catalog=store.catalog)
        store.put_items([Item(f"cold{n}", categories=("odd",)) for n in range(4)])
        store.put_items([Item("hidden", hidden=True)])
        shown = answer(engine, "u1", 6, cold_every=3)
        cold = [place for place, scored in enumerate(shown.items) if scored.item.item.startswith("cold")]
        assert cold == [2, 5]
        assert [shown.items[place].propensity for place in cold] == [1 / 4, 1 / 3]
        assert [key for key in keys(shown) if not key.startswith("cold")] == plain(engine, "u1", 4)

        firsts = Counter(keys(answer(engine, f"u{n}", 3, cold_every=3))[2] for n in range(60))
        assert len(firsts) == 4
        assert "hidden" not in firsts
        seen = keys(shown)[2]
        store.append([Event("had", "u1", seen, "view", 1)])
        again = answer(engine, "u1", 6, cold_every=3)
        assert seen not in keys(again)
        assert sum(key.startswith("cold") for key in keys(again)) == 2
        with_chance: dict[str, Any] = {"cold_every": 3, "exploration": 0.5}
        pages = [answer(engine, "u2", n, offset, **with_chance) for n, offset in ((12, 0), (6, 0), (6, 6))]
        assert keys(pages[0]) == keys(pages[1]) + keys(pages[2]), "how deep chance looks changes nothing before"
        even = answer(engine, "u1", 6, wanted=Wanted(categories=("even",)), cold_every=3)
        assert not any(key.startswith("cold") for key in keys(even))
        assert keys(answer(engine, "u1", 6, cold_every=3, cold_days=1)) == plain(engine, "u1", 6)


def test_the_cap_holds_over_what_the_catalogue_says(engine: Engine) -> None:
    for user in ("u1", "u2", "u3"):
        shown = answer(engine, user, 10, category_cap=2)
        counts = Counter(name for scored in shown.items for name in scored.item.categories)
        assert max(counts.values()) <= 2
        assert counts["all"] == 2, "every item is in this one"


def test_users_are_explored_apart_and_each_alike(engine: Engine) -> None:
    first, again = (keys(answer(engine, "u1", 10, exploration=1.0)) for _ in range(2))
    assert first == again
    orders = {tuple(keys(answer(engine, f"u{n}", 10, exploration=1.0))[:2]) for n in range(30)}
    assert len(orders) > 15
    for one, other in combinations(first, 2):
        assert one != other
