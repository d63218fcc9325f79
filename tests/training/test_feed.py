"""The feed: who is in which batch is a pure function of view, seed, epoch and step."""

from __future__ import annotations

import numpy as np
import pytest

from rayrec.features.histories import Histories
from rayrec.models.interactions import SparseRows
from rayrec.models.optimization import Optimization
from rayrec.training.feed import Batch, PairFeed, SequenceFeed, like_lengths

MAX_LENGTH, BATCH = 4, 5


def histories(seed: int = 0, users: int = 23) -> Histories:
    """Users with 0 to 8 events; the events of user u are 100 u + 1, 100 u + 2, ..."""
    lengths = np.random.default_rng(seed).integers(0, 9, users)
    return Histories.of([100 * user + 1 + n for n in range(length)] for user, length in enumerate(lengths))


def feed_of(given: Histories, seed: int = 0, overhead: int = 0, **settings: float) -> SequenceFeed:
    chosen = {"batch_size": BATCH, "random_windows": 0.0, "seed": seed, **settings}
    return SequenceFeed(given, MAX_LENGTH, Optimization(**chosen), overhead)  # type: ignore[arg-type]


def epoch(feed: SequenceFeed, number: int, size: int) -> list[list[Batch]]:
    """All batches of an epoch: by step, then by worker."""
    plan = feed.plan(number)
    return [[feed.batch(plan, step, rank, size) for rank in range(size)] for step in range(feed.steps)]


def rows(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """History and targets of each user of a batch, without padding."""
    pairs = [pair for part in batch.parts for pair in zip(part.inputs.tolist(), part.targets.tolist(), strict=True)]
    return [([i for i in history if i], [t for t in targets if t]) for history, targets in pairs if any(history)]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_user_with_two_events_is_seen_once_an_epoch_by_one_worker(size: int) -> None:
    given = histories()
    seen = [
        history[0] // 100
        for step in epoch(feed_of(given, seed=1), 0, size)
        for batch in step
        for history, _ in rows(batch)
    ]
    assert sorted(seen) == np.flatnonzero(given.lengths >= 2).tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_target_is_the_event_that_follows(size: int) -> None:
    given = histories()
    for step in epoch(feed_of(given, seed=1), 2, size):
        for batch in step:
            for part in batch.parts:
                assert (part.targets[part.inputs != 0] == part.inputs[part.inputs != 0] + 1).all()
                assert not part.targets[part.inputs == 0].any()
            for history, targets in rows(batch):
                latest = given[history[0] // 100][-(MAX_LENGTH + 1) :].tolist()
                assert (history, targets) == (latest[:-1], latest[1:])


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_divisor_counts_the_targets_of_all_workers(size: int) -> None:
    for step in epoch(feed_of(histories(), seed=1), 0, size):
        targets = sum(int((part.targets != 0).sum()) for batch in step for part in batch.parts)
        assert {batch.global_targets for batch in step} == {targets}


@pytest.mark.parametrize("size", [1, 3])
def test_features_stand_beside_the_user_and_the_target_they_are_of(size: int) -> None:
    """Here the user's number, and the item of the event."""
    given = histories()
    users, events = (
        SparseRows.of(np.arange(len(numbers)), np.zeros(len(numbers)), numbers + 1, len(numbers), 1)
        for numbers in (np.arange(len(given)), given.items)
    )
    feed = SequenceFeed(given, MAX_LENGTH, Optimization(batch_size=BATCH), 0, users, events)
    for part in (part for step in epoch(feed, 0, size) for batch in step for part in batch.parts):
        real = part.targets != 0
        assert part.user is not None
        assert part.context is not None
        assert (part.context[real][:, 0] == part.targets[real] + 1).all()
        asked = real.any(1)
        assert (part.user[asked][:, 0] == part.targets[asked][:, 0] // 100 + 1).all()


def test_more_workers_than_users_give_idle_workers_a_row_without_targets() -> None:
    feed = feed_of(Histories.of([[1, 2]]), seed=0)
    ((busy, idle),) = epoch(feed, 0, 2)
    assert busy.global_targets == idle.global_targets == 1
    assert idle.parts[0].inputs.shape == (1, 1)
    assert not idle.parts[0].targets.any()


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    first, again = (feed_of(histories(), seed=7) for _ in range(2))
    again.plan(0)
    assert (first.plan(3).users == again.plan(3).users).all()
    assert (first.plan(3).users != first.plan(4).users).any()
    assert (first.plan(3).users != feed_of(histories(), seed=8).plan(3).users).any()


def test_users_with_one_event_or_none_make_no_steps() -> None:
    assert feed_of(Histories.of([[1], [], [2]]), seed=0).steps == 0


def test_histories_of_like_length_are_computed_together() -> None:
    lengths = np.array([200, 3, 190, 2, 40])
    order = np.argsort(-lengths)
    assert [lengths[part].tolist() for part in like_lengths(lengths, order, overhead=20)] == [[200, 190], [40], [3, 2]]
    assert [len(part) for part in like_lengths(lengths, order, overhead=100_000)] == [5]
    padded = sum(lengths[part].max() * len(part) - lengths[part].sum() for part in like_lengths(lengths, order, 0))
    assert padded == 0


def test_padding_stands_at_the_end_and_a_part_is_no_wider_than_its_longest_history() -> None:
    feed = feed_of(Histories.of([[1, 2], [3, 4, 5]]), overhead=100)
    (part,) = feed.batch(feed.plan(0), 0).parts
    assert part.inputs.tolist() == [[3, 4], [1, 0]]
    assert part.targets.tolist() == [[4, 5], [2, 0]]


def test_times_are_those_of_each_event_and_of_the_one_after_it() -> None:
    feed = feed_of(Histories(np.array([0, 2, 5]), np.arange(1, 6), np.arange(10, 60, 10)), overhead=100)
    (part,) = feed.batch(feed.plan(0), 0).parts
    assert part.times is not None
    assert part.times.tolist() == [[30, 40, 50], [10, 20, 0]]


@pytest.mark.parametrize("size", [1, 3])
def test_with_a_budget_of_targets_every_user_is_seen_once_and_no_step_is_empty_or_over_it(size: int) -> None:
    given = histories(users=60)
    feed = feed_of(given, batch_tokens=11)
    for number in range(5):
        steps = epoch(feed, number, size)
        seen = [history[0] // 100 for step in steps for batch in step for history, _ in rows(batch)]
        assert sorted(seen) == np.flatnonzero(given.lengths >= 2).tolist()
        targets = [step[0].global_targets for step in steps]
        assert len(targets) == -(-sum(targets) // 11)
        assert min(targets) > 0
        assert max(targets) <= 11 + MAX_LENGTH - 1


def test_random_windows_reach_every_event_of_a_long_history_and_leave_short_ones_whole() -> None:
    long, short = list(range(1, 21)), [101, 102, 103]
    feed = feed_of(Histories.of([long, short]), seed=0, random_windows=0.5)
    seen: set[int] = set()
    latest = 0
    for number in range(200):
        for history, targets in rows(feed.batch(feed.plan(number), 0)):
            window = [*history, targets[-1]]
            assert window == short if history[0] > 100 else window == long[window[0] - 1 : window[0] + MAX_LENGTH]
            seen.update(window)
            latest += window[-1] == long[-1]
    assert seen == {*long, *short}
    assert 90 < latest < 150  # half of them by choice, some of the others by chance


def test_random_windows_are_a_function_of_seed_and_epoch() -> None:
    given = Histories.of([range(1, 100) for _ in range(50)])
    first, again = (feed_of(given, seed=7, random_windows=1.0) for _ in range(2))
    again.plan(0)
    assert (first.plan(3).events == again.plan(3).events).all()
    assert (first.plan(3).events != first.plan(4).events).any()
    assert (first.plan(3).events >= MAX_LENGTH + 1).all()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_pairs_hold_every_event_once_an_epoch(size: int) -> None:
    given = histories()
    feed = PairFeed(given, BATCH, seed=1)
    steps = [[feed.batch(feed.plan(1), step, rank, size) for rank in range(size)] for step in range(feed.steps)]
    seen = sorted(
        pair
        for step in steps
        for batch in step
        for pair in zip(batch.parts[0].inputs, batch.parts[0].targets, strict=True)
    )
    assert [int(item) for _, item in seen] == given.items.tolist()
    assert [int(user) for user, _ in seen] == given.owners.tolist()
    for step in steps:
        assert {batch.global_targets for batch in step} == {sum(len(batch.parts[0].targets) for batch in step)}


def test_the_order_of_pairs_is_a_function_of_seed_and_epoch() -> None:
    first, again = (PairFeed(histories(), BATCH, seed=7) for _ in range(2))
    again.plan(0)
    assert (first.plan(3).events == again.plan(3).events).all()
    assert (first.plan(3).events != first.plan(4).events).any()
