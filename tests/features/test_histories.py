"""Histories: flat arrays that behave like a list of sequences."""

from __future__ import annotations

import numpy as np
import pytest

from rayrec.features.histories import Histories, pad

LISTS = [[3, 1, 4, 1, 5], [], [2], [6, 5]]


def random_lists(seed: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(1, 50, random.integers(0, 9)).tolist() for _ in range(30)]


def test_histories_read_back_as_they_were_given() -> None:
    histories = Histories.of(LISTS)
    assert [histories[user].tolist() for user in range(len(histories))] == LISTS
    assert histories.lengths.tolist() == [5, 0, 1, 2]
    grouped = Histories.grouped(histories.lengths, histories.items)
    assert [grouped[user].tolist() for user in range(len(grouped))] == LISTS


@pytest.mark.parametrize("length", [1, 3, 10])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_latest_events_stand_at_the_right(length: int, seed: int) -> None:
    lists = random_lists(seed)
    rows = Histories.of(lists).last(np.arange(len(lists)), length)
    for row, events in zip(rows.tolist(), lists, strict=True):
        latest = events[-length:]
        assert row == [0] * (length - len(latest)) + latest


def test_keeping_some_events_keeps_every_user() -> None:
    histories = Histories.of(LISTS)
    kept = histories.keep(histories.items > 2)
    assert [kept[user].tolist() for user in range(len(kept))] == [[3, 4, 5], [], [], [6, 5]]


@pytest.mark.parametrize("at_a_time", [1, 2, 5, 100])
@pytest.mark.parametrize("lists", [LISTS, [[], [], [1, 2], []], [[]], []])
def test_events_are_kept_by_their_label_in_blocks_of_any_size(
    monkeypatch: pytest.MonkeyPatch, at_a_time: int, lists: list[list[int]]
) -> None:
    monkeypatch.setattr("rayrec.features.histories.AT_A_TIME", at_a_time)
    flat = np.array([item for events in lists for item in events], np.int64)
    histories = Histories.grouped(np.array([len(events) for events in lists], np.int64), flat, flat * 10)
    kept = histories.keep(flat % 3, (1, 2))
    assert [kept[user].tolist() for user in range(len(kept))] == [[n for n in one if n % 3] for one in lists]
    assert kept.times is not None
    assert (kept.times == kept.items * 10).all()


def test_histories_without_any_event_are_padding() -> None:
    empty = Histories.of([[], []])
    assert len(empty) == 2
    assert empty.last(np.array([0, 1]), 3).tolist() == [[0, 0, 0]] * 2
    assert len(Histories.of([])) == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_padding_lists_equals_padding_flat_histories(seed: int) -> None:
    lists = random_lists(seed)
    padded = pad([np.array(events, np.int64) for events in lists], 5)
    assert (padded == Histories.of(lists).last(np.arange(len(lists)), 5)).all()


def test_padding_is_as_wide_as_the_longest_but_never_empty() -> None:
    assert pad([np.array([1, 2]), np.array([3])], 9).tolist() == [[1, 2], [0, 3]]
    assert pad([np.zeros(0, np.int64)], 9).tolist() == [[0]]
    assert pad([], 9).shape == (0, 1)
