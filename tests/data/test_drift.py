"""Drift: the same behaviour is small however few events there are, other behaviour is large."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy.spatial.distance import jensenshannon

from rayrec.artifacts import Json
from rayrec.data.drift import drift, jensen_shannon
from rayrec.data.statistics import log_statistics, segment_statistics

DAY = 86_400_000


def events(count: int, seed: int, shift: int = 0, first_day: int = 0, buys: float = 0.1) -> pa.Table:
    """Events of 5000 users on 2000 items, evenly over 20 days; ``shift`` moves which items and users they are."""
    generator = np.random.default_rng(seed)
    return pa.table(
        {
            "user": generator.integers(1, 5000, count) + shift,
            "item": (2000 * generator.random(count) ** 2).astype(np.int64) + 1 + shift,
            "type": pa.array(generator.choice(["view", "buy"], count, p=[1 - buys, buys])),
            "value": pa.array(generator.integers(1, 6, count).astype(float), mask=generator.random(count) < buys),
            "timestamp": (first_day + generator.integers(0, 20, count)) * DAY + generator.integers(0, DAY, count),
        }
    )


def vocab(log: pa.Table) -> dict[str, pa.Table]:
    counts = {table: np.bincount(log[table].to_numpy()) for table in ("user", "item")}
    return {name: pa.table({"index": np.arange(1, len(n)), "events": n[1:]}) for name, n in counts.items()}


def after(parent: pa.Table, appended: pa.Table) -> Json:
    now = pa.concat_tables([parent, appended])
    old, new = (log_statistics([segment_statistics(log)], vocab(log)) for log in (parent, now))
    return drift(new, old, vocab(now), vocab(parent))


@pytest.mark.parametrize("count", [1000, 100_000])
def test_more_of_the_same_is_small(count: int) -> None:
    found = after(events(100_000, 1), events(count, 2))
    assert found["events"] == count
    entries = [*found["divergence"].values(), *found["new"].values(), *found["missing"].values()]
    assert {entry["verdict"] for entry in entries} == {"small"}
    # What 1000 events over 2000 items are apart from anything is chance.
    if count == 1000:
        assert found["divergence"]["items"]["now"] > 0.2


def test_other_items_types_users_and_rates_are_large() -> None:
    found = after(events(50_000, 1), events(200_000, 2, shift=4000, first_day=20, buys=0.6))
    assert found["divergence"]["items"] == {"now": 1.0, "reference": pytest.approx(0, abs=0.05), "verdict": "large"}
    assert found["divergence"]["types"]["verdict"] == "large"
    assert found["divergence"]["week_hours"]["verdict"] == "small"
    assert found["new"]["items"]["now"] == 1
    assert found["new"]["users"]["now"] == pytest.approx(0.8, abs=0.01)
    assert found["missing"]["value"]["verdict"] == "large"
    assert found["events_per_day"] == {"now": 10_000.0, "reference": 2500.0, "verdict": "large"}


def test_a_column_that_is_new_was_missing_before() -> None:
    devices = pa.array(["phone"] * 400 + [None] * 100)
    parent = events(1000, 1).append_column("context_device", pa.nulls(1000, pa.string()))
    found = after(parent, events(500, 2).append_column("context_device", devices))
    assert found["missing"]["context_device"] == {"now": 0.2, "reference": 1.0, "verdict": "large"}


def test_nothing_appended_is_no_drift() -> None:
    assert after(events(1000, 1), events(0, 2)) == {"events": 0}


def test_the_divergence_is_the_square_of_scipys_distance() -> None:
    first, second = np.array([5, 0, 3, 2]), np.array([1, 4, 0, 2])
    assert jensen_shannon(first, second) == pytest.approx(jensenshannon(first, second, base=2) ** 2)
