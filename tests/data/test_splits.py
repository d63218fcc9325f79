"""Splits: every way to hold events out against the obvious slow one, and what cannot be is one message."""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrec.artifacts import Storage
from rayrec.data.export import view_csr
from rayrec.data.prepare import Prepared, prepare
from rayrec.data.splits import FOLDS, TEST, TRAIN, VALIDATION
from rayrec.data.views import load_view, open_view
from rayrec.errors import DataError, RecipeError
from rayrec.recipe import Recipe
from rayrec.training.job import TrainJob
from rayrec.training.train import train_model

Make = Callable[..., Recipe]
Event = tuple[str, str, int]
HOUR = 3600
START = 1_700_000_000
COLUMNS = {"user": "user", "item": "item", "timestamp": "time"}


def random_events(seed: int, count: int = 300) -> list[Event]:
    """User, item and epoch second in no order: from one to dozens of events a user, hours with several."""
    generator = random.Random(seed)
    times = [START + HOUR * generator.randrange(24 * 20) for _ in range(count)]
    rows = {(f"u{int(generator.paretovariate(0.6))}", f"i{generator.randrange(30)}", time) for time in times}
    return generator.sample(sorted(rows), len(rows))


@pytest.fixture
def prepared(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Prepared]:
    """Prepare events, in many partitions, with a split."""

    def run(events: Sequence[Event], split: dict[str, Any], **data: Any) -> Prepared:
        monkeypatch.setattr("rayrec.data.prepare.PARTITION_BYTES", 2000)
        write(logs / "log.csv", events)
        return prepare(make_recipe(split=split, **{"view": {"min_user_events": 1}} | data), store)

    return run


def write(path: Path, events: Sequence[Event]) -> None:
    path.write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in events))


def seen(found: Prepared) -> dict[str, list[tuple[str, int]]]:
    """Of each user: item and fold of each event."""
    view, keys = load_view(found.dataset, found.view), found.dataset.vocabulary("user")["key"].to_pylist()
    of_user = np.split(view.folds, view.histories.offsets[1:-1])
    return {
        keys[user - 1]: [
            (view.item_keys[item - 1], int(fold)) for item, fold in zip(view.histories[n], mine, strict=True)
        ]
        for n, (user, mine) in enumerate(zip(view.users, of_user, strict=True))
    }


def in_order(events: Sequence[Event]) -> dict[str, list[Event]]:
    """The events of each user, by time; at the same time in the order of the source."""
    found: dict[str, list[Event]] = defaultdict(list)
    for event in sorted(events, key=lambda e: e[2]):
        found[event[0]].append(event)
    return found


def last_k(sequence: list[Event], k: int) -> list[int]:
    short = len(sequence) <= 2 * k
    return [TRAIN] * len(sequence) if short else [TRAIN] * (len(sequence) - 2 * k) + [VALIDATION] * k + [TEST] * k


def by_shares(sequence: list[Event], validation: float, test: float) -> list[int]:
    count = len(sequence)
    tested = min(math.floor(count * test + 0.5), count - 1)
    validated = min(math.floor(count * validation + 0.5), count - 1 - tested)
    return [TRAIN] * (count - tested - validated) + [VALIDATION] * validated + [TEST] * tested


BY_USER: dict[str, tuple[dict[str, Any], Callable[[list[Event]], list[int]]]] = {
    "leave-one-out": ({"kind": "leave-one-out"}, lambda sequence: last_k(sequence, 1)),
    "leave-last-1": ({"kind": "leave-last-k", "k": 1}, lambda sequence: last_k(sequence, 1)),
    "leave-last-3": ({"kind": "leave-last-k", "k": 3}, lambda sequence: last_k(sequence, 3)),
    "ratio": ({"kind": "ratio"}, lambda sequence: by_shares(sequence, 0.1, 0.1)),
    "large ratio": ({"kind": "ratio", "validation": 0.3, "test": 0.6}, lambda sequence: by_shares(sequence, 0.3, 0.6)),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("split", "brute_force"), BY_USER.values(), ids=BY_USER)
def test_splits_of_each_user_agree_with_brute_force(
    prepared: Callable[..., Prepared], split: dict[str, Any], brute_force: Callable[[list[Event]], list[int]], seed: int
) -> None:
    events = random_events(seed)
    found = prepared(events, split)
    expected = {
        user: [(event[1], fold) for event, fold in zip(sequence, brute_force(sequence), strict=True)]
        for user, sequence in in_order(events).items()
    }
    assert seen(found) == expected
    counts = Counter(fold for sequence in expected.values() for _, fold in sequence)
    assert (
        open_view(found.dataset, found.view)["counts"] | {name: counts[n] for name, n in FOLDS.items()}
        == (open_view(found.dataset, found.view)["counts"])
    )


def bounds_of(events: Sequence[Event], validation: str | float, test: str | float) -> list[float]:
    """Where validation and test begin, epoch seconds."""
    times = sorted(event[2] for event in events)
    points = {"2023-11-20": 1_700_438_400, "2023-11-28T12:30:00+02:00": 1_701_167_400}
    if test in points:
        return [points[str(validation)], points[str(test)]]
    if isinstance(test, str):
        lasting = {"7d": 7 * 86_400, "1 w": 7 * 86_400, "36h": 36 * HOUR, "90m": 5400, "3600s": HOUR}
        end = times[-1] + 0.001 - lasting[test]
        return [end - lasting[str(validation)], end]
    starts = [math.ceil(round((1 - share) * len(times), 6)) for share in (float(validation) + test, test)]
    # Events at the same time are in the same fold: the earlier one.
    return [times[start - 1] + 0.001 for start in starts]


@pytest.mark.parametrize(
    ("validation", "test", "seed"),
    [
        (0.1, 0.1, 0),
        (0.1, 0.1, 1),
        (0.35, 0.2, 2),
        ("7d", "1 w", 3),
        ("7d", "36h", 4),
        ("36h", "90m", 5),
        ("36h", "3600s", 6),
        ("2023-11-20", "2023-11-28T12:30:00+02:00", 7),
    ],
)
def test_splits_by_time_agree_with_brute_force(
    prepared: Callable[..., Prepared], validation: str | float, test: str | float, seed: int
) -> None:
    events = random_events(seed)
    begins = bounds_of(events, validation, test)
    found = prepared(events, {"kind": "time", "validation": validation, "test": test})
    assert seen(found) == {
        user: [(event[1], sum(event[2] >= begin for begin in begins)) for event in sequence]
        for user, sequence in in_order(events).items()
    }


def test_how_long_ago_is_counted_from_the_last_event_of_the_view(prepared: Callable[..., Prepared]) -> None:
    events = [("a", f"i{hour}", START + hour * HOUR) for hour in range(10)]
    late = [("b", "late", START + 1000 * HOUR)]
    found = prepared([*events, *late], {"kind": "time", "validation": "2h", "test": "3h"}, view={"min_user_events": 2})
    # The one who is dropped decides nothing.
    assert seen(found) == {
        "a": [(f"i{hour}", TRAIN if hour < 5 else VALIDATION if hour < 7 else TEST) for hour in range(10)]
    }


# ---- k-fold


@pytest.mark.parametrize("k", [3, 5])
def test_each_event_is_tested_in_one_of_the_k_folds_and_validates_in_another(
    prepared: Callable[..., Prepared], k: int
) -> None:
    events = random_events(1)
    expected = {user: [event[1] for event in sequence] for user, sequence in in_order(events).items()}
    times: dict[tuple[str, int], list[int]] = defaultdict(list)
    total: Any = 0
    for fold in range(k):
        found = prepared(events, {"kind": "k-fold", "k": k, "fold": fold, "seed": 7})
        of_user = seen(found)
        assert {user: [item for item, _ in sequence] for user, sequence in of_user.items()} == expected
        for user, sequence in of_user.items():
            for place, (_, number) in enumerate(sequence):
                times[user, place].append(number)
        total = total + view_csr(found.dataset, found.view, ("test",), "counts").matrix
    assert all(Counter(numbers) == {TEST: 1, VALIDATION: 1, TRAIN: k - 2} for numbers in times.values())
    sizes = [sum(numbers[fold] == TEST for numbers in times.values()) for fold in range(k)]
    assert min(sizes) > 0.6 * len(events) / k
    whole = view_csr(found.dataset, found.view, ("train", "validation", "test"), "counts").matrix
    assert (total != whole).nnz == 0


def test_the_same_seed_gives_the_same_folds_and_another_one_others(prepared: Callable[..., Prepared]) -> None:
    first, again, other = (seen(prepared(random_events(2), {"kind": "k-fold", "seed": seed})) for seed in (5, 5, 6))
    assert first == again != other


# ---- given


@pytest.fixture
def given(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Prepared]:
    """Prepare sources of events by fold; those without times go in the order of the file."""

    def run(split: dict[str, Any] | None = None, timed: bool = True, **sources: Sequence[Event]) -> Prepared:
        monkeypatch.setattr("rayrec.data.prepare.PARTITION_BYTES", 5000)
        columns = COLUMNS if timed else {"user": "user", "item": "item"}
        listed = []
        for name, events in sources.items():
            write(logs / f"{name}.csv", events)
            listed.append({"path": f"{name}.csv", "columns": columns, "fold": name})
        recipe = make_recipe(sources=listed, split={"kind": "given"} | (split or {}), view={"min_user_events": 1})
        return prepare(recipe, store)

    return run


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("folds", [("train", "test"), ("test", "validation", "train")])
def test_a_given_split_is_what_the_sources_say(
    given: Callable[..., Prepared], folds: tuple[str, ...], timed: bool
) -> None:
    sources = {fold: random_events(number, 150) for number, fold in enumerate(folds)}
    # What several sources have is one event, of the first of them.
    fold_of: dict[Event, int] = {}
    rows = [(event, FOLDS[fold]) for fold, events in sources.items() for event in events]
    if timed:
        for event, fold in rows:
            fold_of.setdefault(event, fold)
        rows = sorted(fold_of.items(), key=lambda row: row[0][2])
    expected: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for (user, item, _), fold in rows:
        expected[user].append((item, fold))
    assert seen(given(timed=timed, **sources)) == expected


def test_a_share_of_the_given_training_events_is_for_validation(given: Callable[..., Prepared]) -> None:
    sources = {"train": random_events(3, 600), "test": random_events(4, 100)}
    found = given({"validation": 0.2}, **sources)
    without, with_share = (seen(prepared) for prepared in (given(**sources), found))
    changed: Counter[tuple[int, int]] = Counter()
    for user, sequence in without.items():
        assert [item for item, _ in with_share[user]] == [item for item, _ in sequence]
        changed.update((before, after) for (_, before), (_, after) in zip(sequence, with_share[user], strict=True))
    assert set(changed) == {(TRAIN, TRAIN), (TRAIN, VALIDATION), (TEST, TEST)}
    assert 0.15 < changed[TRAIN, VALIDATION] / (changed[TRAIN, VALIDATION] + changed[TRAIN, TRAIN]) < 0.25
    assert seen(given({"validation": 0.2, "seed": 1}, **sources)) != with_share
    assert seen(given({"validation": 0.2, "seed": 0}, **sources)) == with_share


def test_without_a_validation_source_or_share_nothing_validates(given: Callable[..., Prepared]) -> None:
    found = given(train=random_events(5), test=random_events(6))
    assert open_view(found.dataset, found.view)["counts"]["validation"] == 0


# ---- what cannot be


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown kind": ({"kind": "by-luck"}, r"data\.split\.kind"),
    "shares of everything": ({"kind": "ratio", "validation": 0.5, "test": 0.5}, r"data\.split: .*leave something"),
    "share of nothing": ({"kind": "time", "validation": 0.0}, r"data\.split: .*between 0 and 1"),
    "no number": ({"kind": "ratio", "test": float("nan")}, r"data\.split\.test"),
    "duration for a ratio": ({"kind": "ratio", "test": "7d"}, r"data\.split: for ratio"),
    "duration and share": ({"kind": "time", "validation": 0.1, "test": "7d"}, r"data\.split: .*both durations"),
    "duration and moment": (
        {"kind": "time", "validation": "7d", "test": "2024-01-01"},
        r"data\.split: .*both durations",
    ),
    "no moment": ({"kind": "time", "validation": "2024-01-01", "test": "soon"}, r"data\.split: 'soon' is no date"),
    "not the time of day it is": (
        {"kind": "time", "validation": "2024-01-01", "test": "now"},
        r"data\.split: 'now' is no",
    ),
    "wrong order": (
        {"kind": "time", "validation": "2024-02-01", "test": "2024-01-01"},
        r"data\.split: .*must begin before",
    ),
    "two folds": ({"kind": "k-fold", "k": 2}, r"data\.split: k-fold needs k of 3"),
    "fold beyond": ({"kind": "k-fold", "k": 3, "fold": 3}, r"data\.split: .*fold below k"),
    "no events left": ({"kind": "leave-last-k", "k": 0}, r"data\.split\.k"),
    "more than there can be": ({"kind": "leave-last-k", "k": 10**30}, r"data\.split\.k"),
    "negative seed": ({"kind": "k-fold", "seed": -1}, r"data\.split\.seed"),
    "seed too large": ({"kind": "k-fold", "seed": 1 << 64}, r"data\.split\.seed"),
    "given without folds": ({"kind": "given"}, r"data: .*fold: train"),
    "given with a duration": ({"kind": "given", "validation": "7d"}, r"data\.split: for given"),
    "given with a negative share": ({"kind": "given", "validation": -0.5}, r"data\.split: for given"),
}


@pytest.mark.parametrize(("split", "message"), WRONG.values(), ids=WRONG)
def test_a_split_that_cannot_be_is_one_message_that_names_the_key(
    make_recipe: Make, split: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        make_recipe(split=split)
    assert str(caught.value).count("\n") == 1


@pytest.mark.parametrize(
    ("split", "fold"),
    [
        ({"kind": "time", "validation": "3000d", "test": "3000d"}, "train"),
        ({"kind": "time", "validation": "0s", "test": "1d"}, "validation"),
        ({"kind": "time", "validation": "2030-01-01", "test": "2030-01-02"}, "validation"),
        ({"kind": "leave-last-k", "k": 500}, "validation"),
        ({"kind": "ratio", "validation": 0.001, "test": 0.001}, "validation"),
    ],
)
def test_a_split_that_leaves_a_fold_empty_is_one_message(
    prepared: Callable[..., Prepared], split: dict[str, Any], fold: str
) -> None:
    with pytest.raises(DataError, match=rf"data\.split \({split['kind']}\) leaves no {fold} events"):
        prepared(random_events(0), split)


# ---- with Ray


@pytest.mark.usefixtures("ray_cluster")
def test_training_without_validation_events_keeps_the_last_epoch_and_says_so(
    given: Callable[..., Prepared], make_recipe: Make, caplog: pytest.LogCaptureFixture
) -> None:
    events = [(f"u{user}", f"i{n}", START + n) for user in range(3) for n in range(5)]
    prepared = given(train=events, test=[("u0", "i9", START + 9)])
    recipe = make_recipe()
    recipe = recipe.model_copy(update={"training": replace(recipe.training, workers=0, epochs=3, patience=1)})
    storage, version = prepared.dataset.storage, (prepared.dataset.name, prepared.dataset.number)
    bundle = train_model(TrainJob(recipe, version, prepared.view, storage, "tiny"), "run", lambda entry: None)
    kept = json.loads(storage.read(f"{bundle}/metrics.json"))
    assert (kept["best_epoch"], kept["best"], len(kept["history"])) == (3, None, 3)
    assert "no events are left for validation, so all 3 epochs are trained" in caplog.text
