"""Releases come and go in a replica: swapped, refused, rolled back, shared out, followed."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.broken import failing_release, wrong_release
from tests.recipes import USERS
from tests.serving.test_watching import Growth

from rayrec.errors import ModelError, RecipeError
from rayrec.inference.inputs import Inputs
from rayrec.inference.release import Release, publish_release
from rayrec.serving import rollout as rolling
from rayrec.serving.lineup import place_of
from rayrec.serving.metrics import REGISTRY
from rayrec.serving.queries import Answer
from rayrec.serving.rollout import Rollout
from rayrec.serving.served import MOST_FAILURES
from rayrec.serving.store.store import Store
from rayrec.serving.user_config import UserConfig
from rayrec.tracking import Tracker, find_release


@pytest.fixture
def rollout(filled: Store) -> Rollout:
    """One with nothing live yet."""
    return Rollout(lambda _url, _name: filled)


@pytest.fixture(scope="module")
def other(release: Release) -> Release:
    """A Release of the same models."""
    return publish_release(release.storage, {**release.content, "note": "another"})


@pytest.fixture(scope="module")
def wrong(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A Release whose model does not give its golden answers."""
    return wrong_release(release, tmp_path_factory.mktemp("wrong") / "model")


@pytest.fixture(scope="module")
def failing(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A Release whose model fails."""
    return failing_release(release, tmp_path_factory.mktemp("failing") / "model")


def config_of(release: Release, **more: Any) -> dict[str, Any]:
    return {"release": release.digest, "storage": release.storage.uri, "cache_answers": 0, **more}


def live(rollout: Rollout) -> str:
    assert rollout.lineup is not None
    return rollout.lineup.main.digest


async def ask(rollout: Rollout, user: str) -> Answer:
    """What a user is answered, as the routes ask for it."""
    assert rollout.lineup is not None
    engine = rollout.lineup.arm_of(user).served.engine
    query = engine.user_query(user, 3, 0)
    assert query is not None
    return await rollout.answer(engine, query)


async def followed(rollout: Rollout) -> None:
    """Look once where references lead, and load what is there."""
    rollout.follow()
    assert rollout._following is not None
    await rollout._following


def test_another_release_takes_the_place_of_the_first(rollout: Rollout, release: Release, other: Release) -> None:
    async def scenario() -> None:
        await rollout.configure(config_of(release))
        assert rollout.lineup is not None
        first = rollout.lineup.main.engine
        begun = first.user_query("u1", 3, 0)
        assert begun is not None
        await rollout.configure(config_of(other))
        assert (live(rollout), rollout.refused) == (other.digest, None)
        # What was begun on the first one ends on it.
        assert (await rollout.answer(first, begun)).items == (await ask(rollout, "u1")).items

    asyncio.run(scenario())


def test_other_settings_of_a_release_load_no_model_again(rollout: Rollout, release: Release) -> None:
    async def scenario() -> None:
        await rollout.configure(config_of(release))
        assert rollout.lineup is not None
        engine = rollout.lineup.main.engine
        await rollout.configure(config_of(release, max_batch_size=3, deadline_ms=5000))
        assert rollout.lineup.main.engine is engine
        assert rollout.lineup.main.deadline == 5

    asyncio.run(scenario())


def test_one_that_does_not_give_its_golden_answers_is_never_live(
    rollout: Rollout, release: Release, wrong: Release
) -> None:
    async def scenario() -> None:
        with pytest.raises(ModelError, match="golden"):
            await rollout.configure(config_of(wrong))
        await rollout.configure(config_of(release))
        await rollout.configure(config_of(wrong))
        assert live(rollout) == release.digest
        assert "golden" in str(rollout.refused)
        # It is tried again, not at once, and it is still said why it is not live.
        await followed(rollout)
        assert "golden" in str(rollout.refused)
        await rollout.configure(config_of(release))
        assert rollout.refused is None

    asyncio.run(scenario())


def test_one_that_fails_is_taken_back_and_nobody_gets_an_error(
    rollout: Rollout, release: Release, failing: Release
) -> None:
    async def scenario() -> None:
        await rollout.configure(config_of(release))
        await rollout.configure(config_of(failing))
        assert live(rollout) == failing.digest
        assert rollout.lineup is not None
        gone, growth = rollout.lineup.main.engine, Growth()
        answers = [await ask(rollout, f"u{n % USERS}") for n in range(MOST_FAILURES + 2)]
        assert live(rollout) == release.digest
        assert "rolled back" in str(rollout.refused)
        assert [answer.source for answer in answers] == ["popular"] * MOST_FAILURES + ["model"] * 2
        assert [answer.degraded for answer in answers] == [True] * MOST_FAILURES + [False] * 2
        assert all(len(answer.items) == 3 for answer in answers)
        assert growth.of("rayrec_releases_rolled_back_total") == 1
        assert growth.of("rayrec_arm_answers_total", arm="main", outcome="degraded") == MOST_FAILURES
        assert growth.of("rayrec_arm_answers_total", arm="main", outcome="good") == 2
        assert growth.of("rayrec_fallbacks_total", reason="failed") == MOST_FAILURES
        # Who asked before that and is answered after it has no worse a time.
        query = gone.user_query("u1", 3, 0)
        assert query is not None
        assert (await rollout.answer(gone, query)).degraded
        # Nor is it loaded again by itself.
        await followed(rollout)
        assert live(rollout) == release.digest
        assert "rolled back" in str(rollout.refused)

    asyncio.run(scenario())


class Wrong:
    """A model that has begun to give other scores."""

    alike = 0.0

    def __init__(self, width: int) -> None:
        self._width = width

    def __call__(self, inputs: Inputs) -> np.ndarray:
        return np.zeros((len(inputs["history"]), self._width), np.float32)


def test_one_that_begins_to_give_other_scores_is_taken_back_by_the_check_of_health(
    rollout: Rollout, release: Release, other: Release
) -> None:
    async def scenario() -> None:
        await rollout.configure(config_of(release))
        await rollout.configure(config_of(other))
        await rollout.check()
        assert rollout.lineup is not None
        scorer = rollout.lineup.main.engine.scorer
        object.__setattr__(scorer, "runtime", Wrong(len(scorer.item_keys) + 1))
        await rollout.check()
        assert live(rollout) == release.digest
        # With nothing to go back to, Serve is to replace the replica.
        object.__setattr__(rollout.lineup.main.engine.scorer, "runtime", Wrong(len(scorer.item_keys) + 1))
        with pytest.raises(ModelError, match="golden"):
            await rollout.check()

    asyncio.run(scenario())


def test_users_are_shared_out_evenly_and_stay_where_they_are(
    rollout: Rollout, release: Release, other: Release, filled: Store
) -> None:
    arms = {"b": {"release": other.digest, "share": 0.3}, "canary": {"release": release.digest, "share": 0.05}}

    async def scenario() -> None:
        await rollout.configure(config_of(release, arms=arms))
        again = Rollout(lambda _url, _name: filled)
        await again.configure(config_of(release, arms=arms))
        assert rollout.lineup is not None
        assert again.lineup is not None
        users = [f"user {n}" for n in range(10_000)]
        found = [rollout.lineup.arm_of(user).name for user in users]
        assert found == [again.lineup.arm_of(user).name for user in users]
        shares = {name: count / len(users) for name, count in Counter(found).items()}
        assert shares == pytest.approx({"b": 0.3, "canary": 0.05, "main": 0.65}, abs=0.01)
        assert rollout.lineup.arm_of(None).name == "main"
        mine = next(user for user in users if rollout.lineup.arm_of(user).name == "b")
        assert rollout.lineup.arm_of(mine).served.digest == other.digest

    asyncio.run(scenario())
    assert place_of("u", "") != place_of("u", "another")
    # Of all times, in all processes.
    assert place_of("u", "") == pytest.approx(0.9674487, abs=1e-7)


def test_an_arm_that_fails_gives_its_users_back(rollout: Rollout, release: Release, failing: Release) -> None:
    arms = {"canary": {"release": failing.digest, "share": 0.5}}

    async def scenario() -> None:
        await rollout.configure(config_of(release, arms=arms))
        assert rollout.lineup is not None
        canaries = [f"u{n}" for n in range(USERS) if rollout.lineup.arm_of(f"u{n}").name == "canary"]
        for _ in range(MOST_FAILURES):
            assert (await ask(rollout, canaries[0])).degraded
        # One user is no reason.
        assert rollout.lineup.arm_of(canaries[0]).name == "canary"
        for user in canaries[1:MOST_FAILURES]:
            assert (await ask(rollout, user)).degraded
        assert rollout.lineup.arm_of(canaries[0]).name == "main"
        assert not (await ask(rollout, canaries[0])).degraded
        await followed(rollout)
        assert rollout.lineup.arm_of(canaries[0]).name == "main"
        assert "rolled back" in str(rollout.refused)

    asyncio.run(scenario())


def test_a_shadow_is_asked_and_nobody_notices(
    rollout: Rollout, release: Release, other: Release, failing: Release
) -> None:
    def seen(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"rayrec_{name}", labels) or 0.0

    def told() -> list[float]:
        answers = [seen("arm_answers_total", arm="shadow", outcome=outcome) for outcome in ("good", "degraded")]
        return [*answers, seen("shadow_agreement_ratio_sum")]

    async def shadowed(by: Release) -> list[float]:
        before = told()
        await rollout.configure(config_of(release, shadow={"release": by.digest}))
        assert rollout.lineup is not None
        shadow = rollout.lineup.shadow
        assert shadow is not None
        for n in range(4):
            assert not (await ask(rollout, f"u{n}")).degraded
        await asyncio.gather(*shadow._under_way)
        assert live(rollout) == release.digest
        return [after - first for first, after in zip(before, told(), strict=True)]

    assert asyncio.run(shadowed(other)) == [4, 0, 4], "the same items, each time"
    assert asyncio.run(shadowed(failing))[:2] == [0, 4]


@pytest.fixture
def registered(release: Release, other: Release, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracker]:
    """A registry in which both Releases are versions of one name."""
    monkeypatch.setenv("RAYREC_HOME", release.storage.uri.removeprefix("file://"))
    tracker = Tracker(release.name)
    first = find_release(release.name)
    source = tracker.client.get_model_version(release.name, str(first.version))
    made = tracker.client.create_model_version(
        release.name, source.source, source.run_id, {**source.tags, "rayrec.release": other.digest}
    )
    yield tracker
    tracker.promote(first.version)
    tracker.client.delete_model_version(release.name, made.version)


def test_an_alias_that_moves_is_followed(
    rollout: Rollout, release: Release, other: Release, registered: Tracker
) -> None:
    newest = registered.releases()[-1]
    assert newest.digest == other.digest

    async def scenario() -> None:
        await rollout.configure(config_of(release, follow=release.name))
        await followed(rollout)
        assert live(rollout) == release.digest
        registered.promote(newest.version)
        await followed(rollout)
        assert live(rollout) == other.digest
        registered.rollback()
        await followed(rollout)
        assert (live(rollout), rollout.refused) == (release.digest, None)

    asyncio.run(scenario())


def test_a_registry_that_does_not_answer_changes_nothing(
    rollout: Rollout, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: str) -> None:
        raise ConnectionError("nobody there")

    async def scenario() -> None:
        await rollout.configure(config_of(release, follow=release.name))
        monkeypatch.setattr(rolling, "find_release", gone)
        await followed(rollout)
        assert (live(rollout), rollout.refused) == (release.digest, None)

    asyncio.run(scenario())


def test_an_answer_that_comes_too_late_is_of_popular_items(rollout: Rollout, release: Release) -> None:
    async def scenario() -> None:
        await rollout.configure(config_of(release, deadline_ms=50))
        assert rollout.lineup is not None
        engine = rollout.lineup.main.engine
        quick, slow = engine.answer, engine.scorer.runtime

        class Slow:
            alike = 0.0

            def __call__(self, inputs: Inputs) -> np.ndarray:
                time.sleep(0.3)  # longer than anybody waits
                return slow(inputs)

        object.__setattr__(engine.scorer, "runtime", Slow())
        began = time.monotonic()
        late = await ask(rollout, "u1")
        assert time.monotonic() - began < 0.25
        assert (late.source, late.degraded, len(late.items)) == ("popular", True, 3)
        had = engine.user_query("u1", 3, 0)
        assert had is not None
        assert not {one.item.item for one in late.items} & {engine.scorer.item_keys[row - 1] for row in had.history}
        object.__setattr__(engine.scorer, "runtime", slow)
        await asyncio.sleep(0.3)  # the pass that was late ends
        assert (await ask(rollout, "u1")).items == quick([had])[0].items

    asyncio.run(scenario())


def test_a_configuration_that_is_none_is_said_until_there_is_another(rollout: Rollout, release: Release) -> None:
    async def scenario() -> None:
        await rollout.configure(config_of(release, follow=release.name))
        await rollout.configure(config_of(release, deadline_ms=-1))
        assert "deadline_ms" in str(rollout.refused)
        rollout.follow()
        assert rollout._following is None
        assert (live(rollout), "deadline_ms" in str(rollout.refused)) == (release.digest, True)
        await rollout.configure(config_of(release))
        assert rollout.refused is None

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"arms": {"b": {"release": "x", "share": 0.6}, "c": {"release": "x", "share": 0.6}}}, "more than all"),
        ({"arms": {"main": {"release": "x", "share": 0.6}}}, "no name of an arm"),
        ({"arms": {"b": {"release": "x", "share": 0}}}, "arms.b.share"),
        ({"shadow": {"release": "x", "shar": 1}}, "shadow.shar"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"relase": "x"}, "relase"),
    ],
)
def test_what_is_wrong_in_a_configuration_is_said(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        UserConfig.of({"release": "x", **json.loads(json.dumps(given))})
