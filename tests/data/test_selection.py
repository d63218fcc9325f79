"""Cleaning of a view: each setting of `data.clean` does to random logs what the obvious slow loop does."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayrec.artifacts import Storage
from rayrec.data.dataset import read_part
from rayrec.data.export import Values, view_csr
from rayrec.data.prepare import Prepared, prepare
from rayrec.data.splits import FOLDS
from rayrec.data.views import load_view, open_view
from rayrec.errors import RecipeError
from rayrec.recipe import Recipe

Make = Callable[..., Recipe]
SOURCE = {
    "columns": {"user": "user", "item": "item", "timestamp": "time", "type": "kind", "value": "value"},
    "context": ["device", "price"],
}
FEATURES = {"context": {"device": {"kind": "text"}, "price": {"kind": "text"}}}
"""They show what the context columns are after cleaning."""

START = 1_700_000_000


@dataclass(frozen=True)
class Event:
    user: str
    item: str
    time: int
    kind: str
    value: float | None
    device: str | None
    price: float | None

    @property
    def row(self) -> str:
        cells = [self.user, self.item, self.time, self.kind, self.value, self.device, self.price]
        return ",".join("" if cell is None else f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in cells)


def random_events(seed: int, count: int = 250) -> list[Event]:
    """Few users, items and seconds: many ties, repetitions and short stretches of much happening."""
    choice = random.Random(seed).choice
    numbers = [None, *(half / 2 for half in range(1, 20)), 500.0, -500.0]
    return [
        Event(
            choice("abcdefgh") * 2,
            choice("uvwxyz"),
            START + choice(range(900)) // choice([1, 30]),
            choice(["view", "view", "buy"]),
            choice(numbers),
            choice([None, "tv", "web", "app"]),
            choice(numbers),
        )
        for _ in range(count)
    ]


@pytest.fixture
def prepared(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Prepared]:
    """Prepare events as many partitions; ``data`` are the sections of the recipe."""

    def run(events: Sequence[Event], **data: Any) -> Prepared:
        monkeypatch.setattr("rayrec.data.prepare.PARTITION_BYTES", 2000)
        for name, part in (("a", events[: len(events) // 3]), ("b", events[len(events) // 3 :])):
            rows = "\n".join(event.row for event in part)
            (logs / f"{name}.csv").write_text(f"user,item,time,kind,value,device,price\n{rows}\n")
        view = {"min_user_events": 1} | data.pop("view", {})
        return prepare(make_recipe("*.csv", SOURCE, view=view, features=FEATURES, **data), store)

    return run


def seen(found: Prepared) -> list[tuple[Any, ...]]:
    """The events of a view: user, item, time, value, device, price."""
    users, items = (found.dataset.vocabulary(name)["key"].to_pylist() for name in ("user", "item"))
    shards = [read_part(found.dataset.storage, s) for s in open_view(found.dataset, found.view)["shards"]]
    assert len(shards) > 1
    names = ["items", "timestamps", "values", "context_device", "context_price"]
    rows = []
    for user in pa.concat_tables(shards).sort_by("user").to_pylist():
        for item, time, *rest in zip(*(user[name] for name in names), strict=True):
            rows.append((users[user["user"] - 1], items[item - 1], time // 1000, *rest))
    return rows


def shown(events: Sequence[Event]) -> list[tuple[Any, ...]]:
    """What `seen` gives for these events."""
    ordered = sorted(events, key=lambda e: (e.user, e.time))
    return [(e.user, e.item, e.time, e.value, e.device or "", _text(e.price)) for e in ordered]


def _text(number: float | None) -> str:
    return "" if number is None else f"{number:g}"


def deduplicated(events: Sequence[Event], keep: str) -> list[Event]:
    rows = list(events) if keep == "first" else list(reversed(events))
    found = {(e.user, e.item, e.time, e.kind): e for e in reversed(rows)}
    return [e for e in events if keep == "no" or found[e.user, e.item, e.time, e.kind] is e]


def in_order(events: Sequence[Event]) -> list[Event]:
    return sorted(events, key=lambda e: e.time)


def not_repeated(events: Sequence[Event], seconds: float) -> list[Event]:
    last: dict[tuple[str, str, str], int] = {}
    kept = []
    for event in in_order(events):
        key = (event.user, event.item, event.kind)
        if key not in last or event.time - last[key] > seconds:
            kept.append(event)
        last[key] = event.time
    return kept


def not_too_fast(events: Sequence[Event], count: int, seconds: float) -> list[Event]:
    fast = set()
    for event in events:
        together = [e for e in events if e.user == event.user and event.time <= e.time < event.time + seconds]
        if len(together) > count:
            fast.add(event.user)
    return [event for event in events if event.user not in fast]


FILTERS: dict[str, tuple[dict[str, Any], str, Callable[[Sequence[Event]], Sequence[Event]]]] = {
    "repeats of a second": ({"repeat_seconds": 1.5}, "repeated too soon", lambda es: not_repeated(es, 1.5)),
    "repeats": ({"repeat_seconds": 60}, "repeated too soon", lambda es: not_repeated(es, 60)),
    "rate of one": ({"max_rate": {"events": 3, "seconds": 1}}, "user too fast", lambda es: not_too_fast(es, 3, 1)),
    "rate": ({"max_rate": {"events": 17, "seconds": 25}}, "user too fast", lambda es: not_too_fast(es, 17, 25)),
    "value": ({"min_value": 4}, "value too low", lambda es: [e for e in es if e.value is None or e.value >= 4]),
    "no value": ({"missing": {"value": "drop"}}, "value missing", lambda es: [e for e in es if e.value is not None]),
    "no device": ({"missing": {"device": "drop"}}, "device missing", lambda es: [e for e in es if e.device]),
    "from": (
        {"time_range": ["2023-11-14T22:15:00", None]},
        "outside of the time range",
        lambda es: [e for e in es if e.time >= START + 100],
    ),
    "from and to": (
        {"time_range": ["2023-11-14T22:13:25Z", "2023-11-14T23:23:20+01:00"]},
        "outside of the time range",
        lambda es: [e for e in es if START + 5 <= e.time < START + 600],
    ),
}


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize(("clean", "reason", "brute_force"), FILTERS.values(), ids=FILTERS)
def test_a_filter_keeps_what_brute_force_keeps_and_counts_the_rest(
    prepared: Callable[..., Prepared],
    clean: dict[str, Any],
    reason: str,
    brute_force: Callable[[Sequence[Event]], Sequence[Event]],
    seed: int,
) -> None:
    events = deduplicated(random_events(seed), "first")
    kept = brute_force(events)
    kept = [e for e in events if e in kept]
    assert 0 < len(kept) < len(events)
    found = prepared(random_events(seed), clean=clean)
    assert seen(found) == shown(kept)
    assert open_view(found.dataset, found.view)["filtered"] == {reason: len(events) - len(kept)}
    assert found.dataset.manifest["counts"]["events"] == len(events)


@pytest.mark.parametrize("seed", range(2))
def test_filters_follow_one_another_and_each_counts_what_the_ones_before_left(
    prepared: Callable[..., Prepared], seed: int
) -> None:
    clean = {"min_value": 2, "repeat_seconds": 20, "max_rate": {"events": 3, "seconds": 5}}
    clean |= {"time_range": [None, "2023-11-14T22:25:00"], "missing": {"device": "drop"}}
    events = deduplicated(random_events(seed, 500), "first")
    steps: list[tuple[str, Callable[[Sequence[Event]], Sequence[Event]]]] = [
        ("another event type", lambda es: [e for e in es if e.kind == "view"]),
        ("outside of the time range", lambda es: [e for e in es if e.time < START + 700]),
        ("device missing", lambda es: [e for e in es if e.device]),
        ("value too low", lambda es: [e for e in es if e.value is None or e.value >= 2]),
        ("repeated too soon", lambda es: not_repeated(es, 20)),
        ("user too fast", lambda es: not_too_fast(es, 3, 5)),
        ("too few events of the user or item", lambda es: core(es, 3, 4)),
    ]
    filtered: dict[str, int] = {}
    left: Sequence[Event] = events
    for reason, keep in steps:
        before, kept = len(left), keep(left)
        left = [e for e in left if e in kept]
        filtered |= {reason: before - len(left)} if len(left) < before else {}
    assert len(filtered) >= 6
    view = {"event_types": ["view"], "min_user_events": 3, "min_item_events": 4}
    found = prepared(random_events(seed, 500), clean=clean, view=view)
    assert seen(found) == shown(left)
    assert open_view(found.dataset, found.view)["filtered"] == filtered


def core(events: Sequence[Event], user_minimum: int, item_minimum: int) -> Sequence[Event]:
    users, items = Counter(e.user for e in events), Counter(e.item for e in events)
    kept = [e for e in events if users[e.user] >= user_minimum and items[e.item] >= item_minimum]
    return kept if len(kept) == len(events) else core(kept, user_minimum, item_minimum)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("keep", ["first", "last", "no"])
def test_of_equal_events_the_one_is_kept_that_was_asked_for(
    prepared: Callable[..., Prepared], keep: str, seed: int
) -> None:
    events = random_events(seed, 600)
    kept = deduplicated(events, keep)
    found = prepared(events, clean={"deduplicate": keep})
    assert seen(found) == shown(kept)
    assert found.dataset.manifest["counts"]["deduplicated"] == len(events) - len(kept)


def most_frequent(values: Sequence[Any]) -> Any:
    """Of equally frequent ones the first in the order of text."""
    counts = Counter(_text(value) if isinstance(value, float) else value for value in values)
    return min(counts, key=lambda word: (-counts[word], word))


def with_number(event: Event, column: str, number: float) -> Event:
    """The event with another ``value`` or ``price``."""
    return replace(event, value=number) if column == "value" else replace(event, price=number)


FILLS: dict[str, Callable[[list[Any]], Any]] = {
    "mean": lambda values: float(np.mean(values)),
    "median": lambda values: float(np.median(values)),
    "most_frequent": lambda values: float(most_frequent(values)),
}


@pytest.mark.parametrize("column", ["value", "price"])
@pytest.mark.parametrize("how", [*FILLS, 2.5, -1.0])
def test_missing_numbers_are_filled(prepared: Callable[..., Prepared], how: str | float, column: str) -> None:
    events = deduplicated(random_events(3), "first")
    fill = FILLS[how]([v for e in events if (v := getattr(e, column)) is not None]) if isinstance(how, str) else how
    found = prepared(random_events(3), clean={"missing": {column: how}})
    assert close(seen(found), [with_number(e, column, fill) if getattr(e, column) is None else e for e in events])


@pytest.mark.parametrize("how", ["most_frequent", "unknown"])
def test_missing_words_are_filled(prepared: Callable[..., Prepared], how: str) -> None:
    events = deduplicated(random_events(4), "first")
    fill = most_frequent([e.device for e in events if e.device]) if how == "most_frequent" else how
    found = prepared(random_events(4), clean={"missing": {"device": how}})
    assert close(seen(found), [replace(e, device=e.device or fill) for e in events])


CLIPS: dict[str, tuple[dict[str, Any], Callable[[Sequence[float]], Sequence[float]]]] = {
    "quantile": (
        {"method": "quantile", "low": 0.1, "high": 0.75},
        lambda values: np.quantile(values, [0.1, 0.75]).tolist(),
    ),
    "iqr": (
        {"method": "iqr", "factor": 0.5},
        lambda values: (np.quantile(values, [0.25, 0.75]) @ [[1.5, -0.5], [-0.5, 1.5]]).tolist(),
    ),
}


@pytest.mark.parametrize("column", ["value", "price"])
@pytest.mark.parametrize(("outliers", "bounds"), CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize("missing", [None, "median", 900.0])
def test_outliers_are_clipped_and_what_is_filled_in_too(
    prepared: Callable[..., Prepared],
    column: str,
    outliers: dict[str, Any],
    bounds: Callable[[Sequence[float]], Sequence[float]],
    missing: str | float | None,
) -> None:
    events = deduplicated(random_events(5), "first")
    values = [v for e in events if (v := getattr(e, column)) is not None]
    low, high = bounds(values)
    assert -500 < low < high < 500
    fill = float(np.median(values)) if isinstance(missing, str) else missing

    def cleaned(event: Event) -> Event:
        value: float | None = getattr(event, column)
        value = fill if value is None else value
        return event if value is None else with_number(event, column, min(max(value, low), high))

    clean = {"outliers": {column: outliers}} | ({"missing": {column: missing}} if missing is not None else {})
    assert close(seen(prepared(random_events(5), clean=clean)), [cleaned(event) for event in events])


def close(rows: list[tuple[Any, ...]], events: Sequence[Event]) -> bool:
    """Whether rows are events, numbers to ten digits."""
    expected = [
        (e.user, e.item, e.time, _digits(e.value), e.device or "", _digits(e.price))
        for e in sorted(events, key=lambda e: (e.user, e.time))
    ]
    return [(*rest, _digits(value), device, _digits(price or None)) for *rest, value, device, price in rows] == expected


def _digits(number: float | str | None) -> str | None:
    return None if number is None else f"{float(number):.10g}"


def test_what_is_filled_and_clipped_leaves_the_log_as_it_came(prepared: Callable[..., Prepared]) -> None:
    events = random_events(6)
    clean = {"missing": {"value": 0.0}, "outliers": {"value": {"method": "iqr"}}, "min_value": 3}
    logs = [prepared(events, clean=settings).dataset.manifest["events"] for settings in ({}, clean)]
    assert logs[0] == logs[1]


def test_weights_are_those_of_the_types(prepared: Callable[..., Prepared]) -> None:
    events = deduplicated(random_events(7), "first")
    found = prepared(random_events(7), clean={"weights": {"buy": 5, "cart": 2}})
    shards = [read_part(found.dataset.storage, s) for s in open_view(found.dataset, found.view)["shards"]]
    table = pa.concat_tables(shards).sort_by("user")
    expected = [5.0 if e.kind == "buy" else 1.0 for e in sorted(events, key=lambda e: (e.user, e.time))]
    assert [weight for user in table["weights"].to_pylist() for weight in user] == expected


@pytest.mark.parametrize("values", ["ones", "counts", "sum", "last"])
@pytest.mark.parametrize("folds", [("train",), ("validation", "test")])
def test_a_matrix_of_a_view_is_what_brute_force_makes_of_its_events(
    prepared: Callable[..., Prepared], values: Values, folds: tuple[str, ...]
) -> None:
    split = {"kind": "ratio", "validation": 0.2, "test": 0.2}
    found = prepared(random_events(8), split=split, clean={"missing": {"value": 1.5}, "min_value": -3})
    numbers, view = [FOLDS[fold] for fold in folds], load_view(found.dataset, found.view)
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (user, item, _, value, *_), fold in zip(seen(found), view.folds, strict=True):
        if fold in numbers:
            groups[user, item].append(value)
    make = {"ones": lambda group: 1, "counts": len, "sum": sum, "last": lambda group: group[-1]}[values]
    exported = view_csr(found.dataset, found.view, folds, values)
    cells, users, items = exported.matrix.tocoo(), exported.users.to_pylist(), exported.items.to_pylist()
    places = [(users[row], items[column]) for row, column in zip(cells.row, cells.col, strict=True)]
    assert dict(zip(places, cells.data.tolist(), strict=True)) == {
        place: make(group) for place, group in groups.items()
    }


UNTIMED = {"columns": {"user": "user", "item": "item"}}


@pytest.mark.parametrize(
    ("source", "clean", "key"),
    [
        (UNTIMED, {"max_rate": {"events": 1, "seconds": 1}}, "max_rate.*columns.timestamp"),
        (UNTIMED, {"repeat_seconds": 1}, "repeat_seconds.*columns.timestamp"),
        (UNTIMED, {"time_range": [None, "2024-01-01"]}, "time_range.*columns.timestamp"),
        ({}, {"min_value": 1}, "min_value.*columns.value"),
        ({}, {"missing": {"value": "mean"}}, "missing.value.*columns.value"),
        ({}, {"outliers": {"value": {"method": "iqr"}}}, "outliers.value.*columns.value"),
    ],
)
def test_settings_about_columns_that_no_source_has_are_refused(
    make_recipe: Make, source: dict[str, Any], clean: dict[str, Any], key: str
) -> None:
    with pytest.raises(RecipeError, match=rf"data: clean\.{key}"):
        make_recipe(source=source, clean=clean)


@pytest.mark.parametrize(
    ("clean", "key"),
    [
        ({"time_range": ["soon", None]}, "time_range"),
        ({"time_range": ["2024-01-02", "2024-01-01"]}, "time_range"),
        ({"missing": {"value": float("nan")}}, "missing.value"),
        ({"missing": {"time": "drop"}}, "missing.time"),
        ({"outliers": {"colour": {"method": "iqr"}}}, "outliers.colour"),
        ({"outliers": {"value": {"method": "quantile", "low": 0.9, "high": 0.1}}}, "outliers.value"),
        ({"max_rate": {"events": 0, "seconds": 1}}, "max_rate.events"),
        ({"repeat_seconds": -1}, "repeat_seconds"),
        ({"weights": {"buy": 0}}, "weights.buy"),
        ({"deduplicate": "some"}, "deduplicate"),
        ({"repeat_seconds": float("nan")}, "repeat_seconds"),
        ({"min_value": float("nan")}, "min_value"),
        ({"weights": {"buy": float("inf")}}, "weights.buy"),
    ],
)
def test_settings_that_cannot_be_are_one_message_that_names_the_key(
    make_recipe: Make, clean: dict[str, Any], key: str
) -> None:
    with pytest.raises(RecipeError, match=rf"data(: |\.)clean.*{key}") as caught:
        make_recipe(source=SOURCE, clean=clean)
    assert str(caught.value).count("\n") < 3
