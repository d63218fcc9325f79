"""Statistics: parts add up to the whole however rows are split, and each figure against the obvious count."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from rayrec.artifacts import canonical
from rayrec.data.statistics import (
    DISTINCT_VALUES,
    activity,
    log_statistics,
    long_tail,
    merge_statistics,
    segment_statistics,
    signed,
    value_histogram,
)


def log(count: int, seed: int = 0, spread: float = 1.0) -> pa.Table:
    """Random events with missing values; the larger ``spread``, the more distinct ones."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=count) * 10 ** (spread * generator.normal(size=count))
    return pa.table(
        {
            "user": generator.integers(1, 50, count),
            "item": generator.integers(1, 80, count),
            "type": pa.array(generator.choice(["view", "buy"], count, p=[0.9, 0.1])).dictionary_encode(),
            "value": pa.array(values, mask=generator.random(count) < 0.2),
            "timestamp": generator.integers(0, 4_102_444_800_000, count),
            "context_device": pa.array(["phone"] * count, mask=generator.random(count) < 0.1),
        }
    )


@pytest.mark.parametrize("spread", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("seed", range(4))
def test_parts_add_up_to_the_whole_in_any_order(seed: int, spread: float) -> None:
    events = log(20_000, seed, spread)
    generator = np.random.default_rng(seed)
    pieces = np.split(generator.permutation(len(events)), np.sort(generator.integers(0, len(events), 7)))
    parts = [segment_statistics(events.take(pa.array(piece))) for piece in pieces]
    nested = merge_statistics([merge_statistics(parts[:3]), *reversed(parts[3:])])
    assert canonical(merge_statistics(parts)) == canonical(nested)
    assert canonical(nested) == canonical(merge_statistics([segment_statistics(events)]))


def test_counts_are_those_of_a_plain_loop() -> None:
    events = log(3000)
    found = segment_statistics(events)
    times = [datetime.fromtimestamp(t / 1000, UTC) for t in events["timestamp"].to_pylist()]
    hours = Counter(24 * time.weekday() + time.hour for time in times)
    assert found["week_hours"] == [hours[hour] for hour in range(168)]
    assert found["days"] == Counter(str(t // 86_400_000) for t in events["timestamp"].to_pylist())
    assert found["types"] == Counter(events["type"].to_pylist())
    assert found["missing"] == {name: events[name].null_count for name in ("value", "context_device")}


def test_taking_events_away_leaves_the_statistics_of_the_others() -> None:
    events = log(1000)
    base, gone = segment_statistics(events), segment_statistics(events.slice(600))
    left = merge_statistics([segment_statistics(events.slice(0, 600))])
    assert merge_statistics([base, signed(gone, -1)]) == left


def test_a_column_that_a_part_does_not_have_is_missing_there() -> None:
    events = log(100)
    parts = [segment_statistics(events.drop_columns("context_device")), segment_statistics(events)]
    assert merge_statistics(parts)["missing"]["context_device"] == 100 + events["context_device"].null_count


def test_values_are_counted_at_three_digits_until_there_are_too_many() -> None:
    assert value_histogram(np.array([4.5, 4.5, 0, -2, 1234, 999.9, 1e-300])) == {
        "digits": 3,
        "counts": {"-2": 1, "0": 2, "4.5": 2, "1000": 1, "1230": 1},
    }
    many = value_histogram(10.0 ** np.random.default_rng(0).uniform(-200, 200, 100_000))
    assert many["digits"] == 1
    assert len(many["counts"]) <= DISTINCT_VALUES
    assert sum(many["counts"].values()) == 100_000


def test_users_are_counted_by_powers_of_two() -> None:
    assert activity(np.array([0, 1, 1, 2, 3, 4, 1024])) == {"users": 6, "by_power": [2, 2, 1, 0, 0, 0, 0, 0, 0, 0, 1]}


def test_the_long_tail_of_equal_items_is_the_diagonal() -> None:
    even = long_tail(np.full(1000, 7))
    assert even["gini"] == pytest.approx(0, abs=1e-9)
    assert all(items == pytest.approx(events) for items, events in even["curve"])
    assert (even["top_1_percent"], even["top_10_percent"]) == pytest.approx((0.01, 0.1))


def test_gini_is_the_mean_difference_over_twice_the_mean() -> None:
    counts = np.random.default_rng(0).zipf(1.8, 300)
    counts[:5] = 0
    found, positive = long_tail(counts), counts[counts > 0]
    expected = np.abs(positive[:, None] - positive).mean() / (2 * positive.mean())
    assert found["gini"] == pytest.approx(expected, rel=1e-5)
    assert found["with_one_event"] == (counts == 1).sum()
    assert (found["items"], found["without_events"]) == (295, 5)
    assert found["curve"][0] == [0, 0]
    assert found["curve"][-1] == [1, 1]


def test_a_log_without_events_has_statistics_too() -> None:
    nobody = pa.table({"events": pa.array([], pa.int64())})
    found = log_statistics([segment_statistics(log(0))], {"user": nobody, "item": nobody})
    assert (found["events"], found["activity"]["users"], found["long_tail"]["curve"]) == (0, 0, [])
