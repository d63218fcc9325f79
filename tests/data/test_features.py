"""Features: what prepare writes is what the transform gives for each row alone; held-out events teach nothing."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rayrec.artifacts import Storage
from rayrec.data.dataset import read_part
from rayrec.data.fitting import CONTEXT, FEATURE, USER, Fitted, load_fitted
from rayrec.data.prepare import Prepared, prepare
from rayrec.data.splits import TRAIN
from rayrec.data.views import load_view, open_view
from rayrec.recipe import Recipe

Make = Callable[..., Recipe]
Change = Callable[[dict[str, Any]], dict[str, Any]]
EVENTS, ITEMS, USERS = 10_000, 2_000, 500
START = 1_600_000_000

DIRT = [
    "",
    " ",
    "abc",
    "NaN",
    "inf",
    "-1e999",
    "9" * 400,
    "日本語",
    "e\u0301",
    "[",
    "[1, 2]",
    '["a"]',
    "🙂,a",
    "a|b",
    '"',
    "\n",
]
COLUMNS: dict[str, Callable[[random.Random], str]] = {
    "word": lambda r: f"w{int(r.paretovariate(0.7))}",
    "tags": lambda r: "|".join(f"t{r.randrange(20)}" for _ in range(r.randrange(4))),
    "price": lambda r: f"{r.gauss(0, 1) * 10 ** r.randint(-5, 9):.6g}",
    "moment": lambda r: r.choice(
        [f"{r.randrange(2**31)}", f"{r.randrange(2**41)}", f"20{r.randint(10, 30)}-0{r.randint(1, 9)}-31"]
    ),
    "title": lambda r: " ".join(r.choices(["the", "Émile", "x" * 50], k=3)),
    "vector": lambda r: r.choice(["[{}, {}]", "{} {}"]).format(r.random(), r.gauss(0, 1e3)),
}
FEATURES: dict[str, dict[str, Any]] = {
    "word": {"kind": "categorical", "min_count": 2},
    "hashed": {"kind": "categorical", "column": "word", "buckets": 7},
    "tags": {"kind": "multi-valued", "max_size": 10},
    **{
        f"price_{scale}": {"kind": "numeric", "column": "price", "scale": scale}
        for scale in ("none", "standardise", "min-max", "log")
    },
    "price": {"kind": "numeric", "scale": "quantile", "missing": "median"},
    "moment": {"kind": "timestamp", "parts": ["hour", "weekday", "day", "month", "year"]},
    "title": {"kind": "text", "max_length": 20},
    "vector": {"kind": "vector", "dimension": 2},
}


def dirty_row(generator: random.Random) -> dict[str, str]:
    """A cell for each column, a third of them dirt."""
    return {
        name: generator.choice(DIRT) if generator.random() < 1 / 3 else clean(generator)
        for name, clean in COLUMNS.items()
    }


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def shards(prepared: Prepared) -> pa.Table:
    """The users of a view, with their key."""
    storage, view = prepared.dataset.storage, open_view(prepared.dataset, prepared.view)
    table = pa.concat_tables([read_part(storage, shard) for shard in view["shards"]]).sort_by("user")
    keys = prepared.dataset.vocabulary("user")["key"].combine_chunks()
    return table.append_column("key", keys.take(pc.subtract(table["user"], 1)))


def items_of(prepared: Prepared) -> pa.Table:
    """The items of a view, with their key."""
    table = read_part(prepared.dataset.storage, open_view(prepared.dataset, prepared.view)["items"])
    keys = prepared.dataset.vocabulary("item")["key"].combine_chunks()
    return table.append_column("key", keys.take(pc.subtract(table["index"], 1)))


def features_of(table: pa.Table, prefix: str, flat: bool = False) -> pa.Table:
    """The columns that begin with a prefix, without it."""
    names = [name for name in table.column_names if name.startswith(prefix)]
    columns = (table[name].combine_chunks() for name in names)
    return pa.table(
        {n.removeprefix(prefix): pc.list_flatten(c) if flat else c for n, c in zip(names, columns, strict=True)}
    )


def pieces(table: pa.Table, size: int) -> Iterator[pa.Table]:
    return (table.slice(start, size) for start in range(0, table.num_rows, size))


def check_rows(found: pa.Table, apply: Callable[[pa.Table], pa.Table], raw: pa.Table) -> None:
    """Features that were found are, to the last bit, those of the raw rows in pieces and one at a time."""

    def equal(first: pa.Table, second: pa.Table) -> None:
        assert first.schema.remove_metadata() == second.schema
        assert first.combine_chunks().equals(second.combine_chunks())

    equal(found, pa.concat_tables(map(apply, pieces(raw, 997))))
    some = range(0, raw.num_rows, max(1, raw.num_rows // 200))
    equal(found.take(pa.array(some)), pa.concat_tables(apply(raw.slice(row, 1)) for row in some))


@pytest.fixture
def many(without_ray: None, make_recipe: Make, logs: Path, store: Storage, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """A view of 10,000 dirty events with features of all kinds, of events, items and users, in several partitions."""
    monkeypatch.setattr("rayrec.data.prepare.PARTITION_BYTES", 300_000)
    generator = random.Random(1)
    events = [
        {
            "user": f"u{generator.randrange(USERS)}",
            "item": f"i{generator.randrange(ITEMS + 300)}",
            "time": START + 7 * n,
        }
        for n in range(EVENTS)
    ]
    write(logs / "log.csv", [event | dirty_row(generator) for event in events])
    for name, count in (("item", ITEMS), ("user", USERS - 50)):
        write(logs / f"{name}s.csv", [{name: f"{name[0]}{n}"} | dirty_row(generator) for n in range(count)])
    time = {"timestamp": {"kind": "timestamp"}}
    source = {"context": list(COLUMNS)}
    recipe = make_recipe(
        source=source,
        items={"path": "items.csv", "columns": {"item": "item"}},
        users={"path": "users.csv", "columns": {"user": "user"}},
        features={"context": FEATURES | time, "items": FEATURES, "users": FEATURES},
        clean={"missing": {"word": "most_frequent"}, "outliers": {"price": {"method": "iqr"}}},
    )
    return prepare(recipe, store)


def test_features_are_those_of_each_row_alone(many: Prepared, logs: Path) -> None:
    fitted = load_fitted(many.dataset, open_view(many.dataset, many.view))
    check_events(many, fitted, logs)
    for name, transform, table, prefix in (
        ("item", fitted.items, items_of(many), FEATURE),
        ("user", fitted.users, shards(many), USER),
    ):
        rows = {row.pop(name): row for row in read(logs / f"{name}s.csv")}
        # Of one that the table does not have everything is missing.
        raw = pa.table(
            {c: pa.array([rows.get(key, {}).get(c) for key in table["key"].to_pylist()], pa.string()) for c in COLUMNS}
        )
        assert raw["word"].null_count > 0
        check_rows(features_of(table, prefix), transform.apply, raw)
        assert features_of(table, prefix).equals(transform.apply_rows(raw.to_pylist()))


def check_events(prepared: Prepared, fitted: Fitted, logs: Path) -> None:
    table = shards(prepared)
    order = {key: place for place, key in enumerate(table["key"].to_pylist())}
    rows = sorted(read(logs / "log.csv"), key=lambda row: (order[row["user"]], int(row["time"])))
    raw = pa.table({f"{CONTEXT}{c}": [row[c] for row in rows] for c in COLUMNS})
    raw = raw.append_column("timestamp", pa.array([int(row["time"]) * 1000 for row in rows]))
    found = features_of(table, CONTEXT, flat=True)
    assert found.num_rows == EVENTS
    check_rows(found, lambda events: fitted.encode_events(fitted.fill_events(events)), raw)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


LISTS: list[dict[str, Any]] = [
    {"tags": ["a", "b|c"], "vector": [0.25, -1]},
    {"tags": [], "vector": []},
    {"tags": None},
    {"tags": [None, "a"], "vector": [None, 1]},
]


@pytest.mark.parametrize("form", ["parquet", "jsonl", "jsonl with a broken line"])
def test_lists_in_tables_are_the_lists_they_are(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage, form: str
) -> None:
    rows = [{"item": f"i{n}"} | row for n, row in enumerate(LISTS)]
    name = f"items.{form.split(maxsplit=1)[0]}"
    if form == "parquet":
        pq.write_table(
            pa.Table.from_pylist(
                rows,
                pa.schema([("item", pa.string()), ("tags", pa.list_(pa.string())), ("vector", pa.list_(pa.float32()))]),
            ),
            logs / name,
        )
    else:
        (logs / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows) + "broken\n" * ("broken" in form))
    write(logs / "log.csv", [{"user": "a", "item": f"i{n}", "time": n} for n in range(4)])
    features = {"items": {name: FEATURES[name] for name in ("tags", "vector")}}
    found = prepare(make_recipe(items={"path": name, "columns": {"item": "item"}}, features=features), store)
    transform = load_fitted(found.dataset, open_view(found.dataset, found.view)).items
    expected = transform.apply_rows(LISTS)
    assert features_of(items_of(found), FEATURE).equals(expected)
    assert expected.to_pylist() == [
        {"tags": [2, 3], "vector": [0.25, -1]},
        {"tags": [], "vector": [0, 0]},
        {"tags": [], "vector": [0, 0]},
        {"tags": [2], "vector": [0, 0]},
    ]


# ---- leakage


SMALL = {name: FEATURES[name] for name in ("word", "tags", "price", "price_standardise", "price_min-max")}


@pytest.fixture
def small(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Prepared]:
    """Prepare a small log whose rows are ``changed``."""
    monkeypatch.setattr("rayrec.data.prepare.PARTITION_BYTES", 15_000)

    def run(split: dict[str, Any], fit: str, changed: Change) -> Prepared:
        generator = random.Random(2)
        rows = [
            {"user": f"u{n % 20}", "item": f"i{generator.randrange(60)}", "time": START + n, "value": n % 7}
            | dirty_row(generator)
            for n in range(300)
        ]
        write(logs / "log.csv", [changed(row) for row in rows])
        for name in ("item", "user"):
            tables = random.Random(3)
            write(logs / f"{name}s.csv", [{name: f"{name[0]}{n}"} | dirty_row(tables) for n in range(100)])
        columns = {"user": "user", "item": "item", "timestamp": "time", "value": "value"}
        recipe = make_recipe(
            source={"columns": columns, "context": list(COLUMNS)},
            items={"path": "items.csv", "columns": {"item": "item"}},
            users={"path": "users.csv", "columns": {"user": "user"}},
            features=dict.fromkeys(("context", "items", "users"), SMALL),
            clean={"missing": {"word": "most_frequent", "value": "mean"}, "outliers": {"value": {"method": "iqr"}}},
            view={"fit": fit, "min_user_events": 1},
            split=split,
        )
        return prepare(recipe, store)

    return run


def learnt(prepared: Prepared) -> tuple[bytes, list[str]]:
    """What a view has learnt, and the items it knows."""
    view = open_view(prepared.dataset, prepared.view)
    return prepared.dataset.storage.read(view["transform"]["path"]), items_of(prepared)["key"].to_pylist()


SPLITS: dict[str, tuple[dict[str, Any], int]] = {
    "leave-one-out": ({"kind": "leave-one-out"}, START + 260),
    "time": ({"kind": "time", "validation": "2020-09-13T12:30:00", "test": "2020-09-13T12:31:00"}, START + 200),
}
"""A split, and the first epoch second that is not in its training fold."""

CHANGES: dict[str, Change] = {
    "value": lambda row: row | {"value": 1e6},
    "context": lambda row: row | {"word": "leak", "tags": "leak|leak", "price": "-1e12"},
    "item": lambda row: row | {"item": "i99"},
    "new item": lambda row: row | {"item": "leak"},
    "user": lambda row: row | {"user": "u99"},
}


@pytest.mark.parametrize(("split", "held_out"), SPLITS.values(), ids=SPLITS)
def test_held_out_events_change_nothing_that_is_learnt_of_the_training_fold(
    small: Callable[..., Prepared], split: dict[str, Any], held_out: int
) -> None:
    # Who an event is of decides its fold when each user's last ones are held out.
    changes = {name: change for name, change in CHANGES.items() if name != "user" or split["kind"] == "time"}
    as_it_was = {fit: learnt(small(split, fit, dict)) for fit in ("train", "all")}
    for name, change in changes.items():

        def changed(row: dict[str, Any], change: Change = change) -> dict[str, Any]:
            # Not all: of events on new items alone none would be left to test on.
            return change(row) if row["time"] >= held_out and row["time"] % 3 else row

        assert learnt(small(split, "train", changed)) == as_it_was["train"], name
        if name != "user":
            assert learnt(small(split, "all", changed)) != as_it_was["all"], name


@pytest.mark.parametrize(("split", "held_out"), SPLITS.values(), ids=SPLITS)
def test_training_events_do_change_what_is_learnt(
    small: Callable[..., Prepared], split: dict[str, Any], held_out: int
) -> None:
    def changed(row: dict[str, Any]) -> dict[str, Any]:
        return row | ({"price": "77"} if row["time"] == START + 5 else {})

    first, second = (small(split, "train", change) for change in (dict, changed))
    assert learnt(first)[0] != learnt(second)[0]


@pytest.mark.parametrize(("split", "held_out"), SPLITS.values(), ids=SPLITS)
def test_a_view_fitted_on_its_training_fold_knows_only_the_items_in_it(
    small: Callable[..., Prepared], split: dict[str, Any], held_out: int
) -> None:
    def rare(row: dict[str, Any]) -> dict[str, Any]:
        return row | ({"item": f"late{row['time'] % 3}"} if row["time"] >= START + 290 else {})

    whole, fitted = (small(split, fit, rare) for fit in ("all", "train"))
    view = load_view(whole.dataset, whole.view)
    trained = sorted({view.item_keys[item - 1] for item in view.histories.items[view.folds == TRAIN]})
    found = load_view(fitted.dataset, fitted.view)
    assert found.item_keys == trained
    rows = [view.item_keys[item - 1] in trained for item in view.histories.items]
    assert [found.item_keys[item - 1] for item in found.histories.items] == [
        view.item_keys[item - 1] for item, kept in zip(view.histories.items, rows, strict=True) if kept
    ]
    assert found.folds.tolist() == view.folds[rows].tolist()
    assert rows.count(False) >= 10
    filtered = open_view(fitted.dataset, fitted.view)["filtered"]
    assert filtered == {"item without training events": rows.count(False)}
    assert open_view(whole.dataset, whole.view)["filtered"] == {}
