"""The order of events, and which are the same: against the obvious slow way, for any numbers at all."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.data.order import chronological, in_runs, repeated

SMALL, LOWEST, HIGHEST = st.integers(-2, 2), -(2**63), 2**63 - 1
# Many ties; spans that take more bits than there are for user and time together, and more than a difference has.
NUMBERS = st.one_of(SMALL, SMALL, st.integers(LOWEST, HIGHEST), st.sampled_from([LOWEST, -(2**62), 2**40, HIGHEST]))
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS))
EVENTS = st.lists(st.tuples(SMALL, NUMBERS, SMALL, st.integers(0, 1)), max_size=60)


def columns(rows: list[tuple[int, ...]], count: int) -> list[np.ndarray]:
    return [np.array([row[place] for row in rows], np.int64) for place in range(count)]


@settings(max_examples=500, deadline=None)
@given(ROWS)
def test_events_are_in_the_order_of_user_time_and_source(rows: list[tuple[int, ...]]) -> None:
    order = chronological(*columns(rows, 3)).tolist()
    assert sorted(order) == list(range(len(rows)))
    assert [rows[place] for place in order] == sorted(rows)


@settings(max_examples=500, deadline=None)
@given(ROWS)
def test_where_nothing_else_decides_events_stay_as_they_stand(rows: list[tuple[int, ...]]) -> None:
    order = chronological(*columns(rows, 2)).tolist()
    assert order == sorted(range(len(rows)), key=lambda place: rows[place][:2])


@settings(max_examples=500, deadline=None)
@given(EVENTS, st.sampled_from(["first", "last"]))
def test_of_equal_events_all_but_one_repeat_it(events: list[tuple[int, ...]], keep: Literal["first", "last"]) -> None:
    # Users ascending, and times within a user; the rest in any order.
    events = sorted(events, key=lambda event: event[:2])
    equal: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, event in enumerate(events):
        equal[event].append(place)
    kept = {places[0 if keep == "first" else -1] for places in equal.values()}
    assert np.flatnonzero(~repeated(*columns(events, 4), keep)).tolist() == sorted(kept)


@pytest.mark.parametrize(
    ("values", "expected"), [([], []), ([5], [False]), ([5, 5, 6, 5, 7, 7, 7], [True, True, False, False] + [True] * 3)]
)
def test_a_value_is_in_a_run_when_it_equals_a_neighbour(values: list[int], expected: list[bool]) -> None:
    assert in_runs(np.array(values)).tolist() == expected
