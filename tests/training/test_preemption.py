"""A machine that is about to be taken away: looked for every few seconds, on all workers after the same step."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray.train
from ray.train.v2.api.preemption import PreemptionInfo
from tests.running import assert_same, begin, feed, nothing, rising, settings, trained

from rayrec.training import preemption
from rayrec.training.checkpoint import Checkpoint, load_checkpoint, snapshot
from rayrec.training.loop import train
from rayrec.training.preemption import Notice
from rayrec.training.run import Run
from rayrec.training.world import World


class Looks:
    """Answers of Ray, and how often it was asked."""

    def __init__(self) -> None:
        self.number, self.going = 0, False

    def __call__(self) -> PreemptionInfo | None:
        self.number += 1
        return PreemptionInfo(None, {"node": [0]}) if self.going else None


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    answers = Looks()
    monkeypatch.setattr(ray.train, "get_preemption_info", answers)
    return answers


def test_a_notice_is_seen_within_seconds_and_as_long_as_it_holds(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr(preemption.time, "perf_counter", lambda: clock["now"])
    notice, given = Notice(World()), []
    for step in range(40):
        clock["now"] += 0.5
        looks.going = step >= 10
        given.append(notice.given())
    # The first look is after the first step; steps take half a second, so it is every fourth from then on.
    assert [step for step, seen in enumerate(given) if seen] == [12, 16, 20, 24, 28, 32, 36]
    assert looks.number == 10


def test_quick_steps_are_not_held_up(looks: Looks) -> None:
    notice = Notice(World())
    for _ in range(100_000):
        notice.given()
    assert looks.number <= 102


def test_other_workers_follow_the_first_ones_clock(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[float]] = []

    def of_both(_: World, values: list[float]) -> list[float]:
        told.append(values)
        return [values[0] + 7.0]

    monkeypatch.setattr(World, "sum", of_both)
    second = Notice(World(rank=1, size=2))
    for _ in range(15):
        second.given()
    assert told == [[0.0], [0.0], [0.0]]
    assert looks.number == 3


def test_a_training_is_taken_up_where_the_notice_came(tmp_path: Path) -> None:
    chosen, again, asked = settings(epochs=2), begin(settings(epochs=2)), iter([False, False, True] + [False] * 20)

    def amid_epoch(run: Run) -> None:
        Checkpoint.of(run, snapshot(run.model)).write(tmp_path)

    run = begin(chosen)
    train(run, feed(chosen), rising, nothing, amid_epoch=amid_epoch, notice=lambda: next(asked))
    load_checkpoint(again, tmp_path)
    assert (again.progress.epoch, again.progress.step) == (0, 3)
    train(again, feed(chosen), rising, nothing)
    assert_same(again.model, trained(chosen).model)
