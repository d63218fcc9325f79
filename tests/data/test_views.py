"""Views: filters to a fixed point and folds, each against the obvious slow implementation."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rayrec.artifacts import Storage
from rayrec.data.prepare import Prepared, prepare
from rayrec.data.splits import TEST, TRAIN, VALIDATION, by_time, leave_last
from rayrec.data.views import Sequences, load_view, open_view
from rayrec.errors import DataError
from rayrec.recipe import Recipe

Make = Callable[..., Recipe]
Event = tuple[str, str, int]


def random_events(seed: int, count: int = 300) -> list[Event]:
    """User, item, epoch second; no two at the same time. Few users and items have most events."""
    generator = random.Random(seed)
    times = generator.sample(range(1_700_000_000, 1_700_000_000 + 10 * count), count)
    return [(f"u{int(generator.paretovariate(0.7))}", f"i{int(generator.paretovariate(0.7))}", time) for time in times]


def write(logs: Path, events: list[Event]) -> None:
    (logs / "log.csv").write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in events))


def contents(prepared: Prepared, view: Sequences) -> dict[str, list[tuple[str, int]]]:
    """Of each user, item and fold of each event."""
    keys = prepared.dataset.vocabulary("user")["key"].to_pylist()
    found = {}
    for place, user in enumerate(view.users):
        folds = view.folds[view.histories.offsets[place] : view.histories.offsets[place + 1]]
        found[keys[user - 1]] = [
            (view.item_keys[item - 1], int(fold)) for item, fold in zip(view.histories[place], folds, strict=True)
        ]
    return found


def k_core(events: list[Event], user_minimum: int, item_minimum: int) -> list[Event]:
    while True:
        users, items = Counter(e[0] for e in events), Counter(e[1] for e in events)
        kept = [e for e in events if users[e[0]] >= user_minimum and items[e[1]] >= item_minimum]
        if len(kept) == len(events):
            return kept
        events = kept


def by_user(events: list[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = defaultdict(list)
    for event in sorted(events, key=lambda e: e[2]):
        found[event[0]].append(event)
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("user_minimum", "item_minimum"), [(1, 1), (3, 1), (3, 4), (6, 6), (1, 5)])
def test_filters_and_leave_one_out_agree_with_brute_force(
    without_ray: None,
    make_recipe: Make,
    logs: Path,
    store: Storage,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    user_minimum: int,
    item_minimum: int,
) -> None:
    # As many partitions as a large log has.
    monkeypatch.setattr("rayrec.data.prepare.PARTITION_BYTES", 1000)
    events = random_events(seed)
    write(logs, events)
    view = {"min_user_events": user_minimum, "min_item_events": item_minimum}
    prepared = prepare(make_recipe(view=view), store)
    loaded = load_view(prepared.dataset, prepared.view)
    kept = k_core(events, user_minimum, item_minimum)
    expected = {}
    for user, sequence in by_user(kept).items():
        folds = [TRAIN] * len(sequence)
        if len(sequence) >= 3:
            folds[-2:] = [VALIDATION, TEST]
        expected[user] = [(event[1], fold) for event, fold in zip(sequence, folds, strict=True)]
    assert contents(prepared, loaded) == expected
    assert loaded.item_keys == sorted({event[1] for event in kept})
    assert loaded.users.tolist() == sorted(loaded.users.tolist())
    counts = open_view(prepared.dataset, prepared.view)["counts"]
    assert (counts["users"], counts["items"], counts["events"]) == (len(expected), len(loaded.item_keys), len(kept))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.1), (0.25, 0.05)])
@pytest.mark.parametrize("outlier", [None, 1])
def test_shares_of_time_agree_with_brute_force(
    without_ray: None,
    make_recipe: Make,
    logs: Path,
    store: Storage,
    seed: int,
    validation: float,
    test: float,
    outlier: int | None,
) -> None:
    events = random_events(seed) + ([("u1", "i1", outlier)] if outlier else [])
    write(logs, events)
    split = {"kind": "time", "validation": validation, "test": test}
    prepared = prepare(make_recipe(split=split, view={"min_user_events": 2}), store)
    kept = sorted(k_core(events, 2, 1), key=lambda e: e[2])
    starts = [math.ceil(round((1 - share) * len(kept), 6)) for share in (validation + test, test)]
    fold_of = {event: sum(place >= start for start in starts) for place, event in enumerate(kept)}
    expected = {u: [(e[1], fold_of[e]) for e in sequence] for u, sequence in by_user(kept).items()}
    assert contents(prepared, load_view(prepared.dataset, prepared.view)) == expected


def test_points_in_time_are_where_folds_begin(without_ray: None, make_recipe: Make, logs: Path, store: Storage) -> None:
    (logs / "log.csv").write_text("user,item,time\n" + "".join(f"a,{d},2024-01-0{d}T12:00:00\n" for d in range(1, 7)))
    split = {"kind": "time", "validation": "2024-01-04T12:00:00Z", "test": "2024-01-06"}
    prepared = prepare(make_recipe(split=split), store)
    folds = load_view(prepared.dataset, prepared.view).folds.tolist()
    assert folds == [TRAIN] * 3 + [VALIDATION] * 2 + [TEST]


def test_only_events_of_the_wanted_types_are_seen(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    rows = "".join(f"a,{item},{time},{'view' if time % 2 else 'buy'}\n" for time, item in enumerate("uvwxyz"))
    (logs / "log.csv").write_text("user,item,time,kind\n" + rows)
    columns = {"user": "user", "item": "item", "timestamp": "time", "type": "kind"}
    prepared = prepare(make_recipe(source={"columns": columns}, view={"event_types": ["view"]}), store)
    assert contents(prepared, load_view(prepared.dataset, prepared.view)) == {"a": [("v", 0), ("x", 1), ("z", 2)]}
    assert prepared.dataset.manifest["counts"]["events"] == 6


def test_leave_one_out_leaves_short_histories_to_training() -> None:
    assert leave_last(np.array([1, 2, 3, 5]), 1).tolist() == [0, 0, 0, 0, 1, 2, 0, 0, 0, 1, 2]
    assert leave_last(np.array([], dtype=np.int64), 1).tolist() == []


def test_an_event_on_a_bound_belongs_to_the_later_fold() -> None:
    assert by_time(np.array([1, 2, 3, 4, 5]), (2, 4)).tolist() == [0, 1, 1, 2, 2]


def test_a_view_that_is_not_there_is_refused(without_ray: None, make_recipe: Make, logs: Path, store: Storage) -> None:
    write(logs, random_events(0))
    with pytest.raises(DataError, match="has no view 0123"):
        load_view(prepare(make_recipe(), store).dataset, "0123")
