"""Appending: whatever comes later, and wherever it belongs, the log is what one preparation of all would have made."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.data.reading import events_of, everything, keys_of, read_all, vocabulary_of

from rayrec.artifacts import Storage
from rayrec.data.dataset import manifest_numbers, open_dataset, read_part
from rayrec.data.prepare import Prepared, prepare
from rayrec.data.view_building import build_view
from rayrec.data.views import open_view
from rayrec.errors import DataError, RecipeError
from rayrec.recipe import Recipe

Make = Callable[..., Recipe]
COLUMNS = {"user": "user", "item": "item", "timestamp": "time", "value": "value", "type": "kind"}
STEPS = (("views/b.csv", "views/d.csv", "buys/2.csv"), ("views/a.csv", "buys/1.csv"), ("views/c.csv", "views/e.csv"))
"""Files by the step they come in: some belong before those that are there."""


def write_random_log(logs: Path, seed: int) -> None:
    """Files of which each has events of every user, at any time, that repeat others' with another value; 5 % dirty."""
    generator = random.Random(seed)
    for step, names in enumerate(STEPS):
        for name in names:
            rows = []
            for _ in range(60):
                user, item = f"u{int(generator.paretovariate(0.7)) % 40}", f"i{int(generator.paretovariate(0.7)) % 30}"
                # Few times, so that much is repeated; later files also have earlier ones.
                time = 1_700_000_000 + generator.randrange(30) * 600 - step * 3600
                rows.append(f"{user},{item},{time},{generator.randrange(100) / 10},{generator.choice(['a', 'b', ''])}")
            rows += ["broken", f"u{step},,5,1,a", f"u1,i1,{generator.randrange(9)},much,a"]
            generator.shuffle(rows)
            path = logs / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("user,item,time,value,kind\n" + "\n".join(rows) + "\n")


def hidden(logs: Path, names: tuple[str, ...], step: Callable[[], Any]) -> Any:
    """What ``step`` gives while these files are not there yet."""
    for name in names:
        (logs / name).rename(logs / f"{name}.later")
    try:
        return step()
    finally:
        for name in names:
            (logs / f"{name}.later").rename(logs / name)


def recipe_of(make_recipe: Make, timed: bool = True, **data: Any) -> Recipe:
    columns = COLUMNS if timed else {key: column for key, column in COLUMNS.items() if key != "timestamp"}
    sources = [{"path": path, "columns": columns, "type": path} for path in ("views", "buys")]
    return make_recipe(sources=sources, **data)


K_CORE = {"min_user_events": 3, "min_item_events": 4, "fit": "train"}
CASES: dict[str, tuple[str, int, dict[str, Any], dict[str, Any]]] = {
    "the first of equal events": ("first", 1000, {}, {}),
    "the first, one partition": ("first", 1 << 20, K_CORE, {"kind": "time"}),
    "the last of equal events": ("last", 1000, K_CORE, {}),
    "the last, one partition": ("last", 1 << 20, {}, {"kind": "ratio"}),
    "all of equal events": ("no", 1000, {}, {"kind": "time"}),
    "without times": ("untimed", 1000, K_CORE, {"kind": "leave-last-k", "k": 1}),
}
"""Which of equal events to keep, bytes of a partition, view and split."""


@pytest.mark.parametrize(("deduplicate", "partition_bytes", "view", "split"), CASES.values(), ids=CASES)
def test_appending_in_three_steps_equals_preparing_all_at_once(
    without_ray: None,
    make_recipe: Make,
    logs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deduplicate: str,
    partition_bytes: int,
    view: dict[str, Any],
    split: dict[str, Any],
) -> None:
    monkeypatch.setattr("rayrec.data.prepare.PARTITION_BYTES", partition_bytes)
    write_random_log(logs, seed=partition_bytes)
    timed = deduplicate != "untimed"
    clean = {"max_bad_rows": 0.5, "deduplicate": deduplicate if timed else "first"}
    recipe = recipe_of(make_recipe, timed, clean=clean, view=view, split=split)
    whole = prepare(recipe, Storage.open(tmp_path / "whole"))
    grown = Storage.open(tmp_path / "grown")
    steps: list[tuple[Prepared, Any]] = []
    for step in range(3):
        later = tuple(name for names in STEPS[step + 1 :] for name in names)
        prepared = hidden(logs, later, lambda: prepare(recipe, grown, append=True))
        steps.append((prepared, everything(prepared.dataset, prepared.view)))
    assert [prepared.dataset.number for prepared, _ in steps] == [1, 2, 3]
    assert steps[-1][1] == everything(whole.dataset, whole.view)
    assert (prepared.dataset.manifest["counts"]["deduplicated"] > 20) == (deduplicate in {"first", "last"})
    assert (prepared.dataset.manifest["partitions"] > 1) == (partition_bytes == 1000)
    for table in ("user", "item"):
        for before, after in pairwise(keys_of(prepared.dataset, table) for prepared, _ in steps):
            assert after[: len(before)] == before, "a key lost its index"
    # Older versions and their views stay as they were.
    read_all(prepared.dataset)
    for prepared, was in steps:
        older = open_dataset(grown, "test", prepared.dataset.number)
        assert older.digest == prepared.dataset.digest
        assert everything(older, prepared.view) == was
    assert build_view(recipe, steps[0][0].dataset) == steps[0][0].view


LOG = "user,item,time,page\n" + "".join(f"{user},{item},{100 + n},p\n" for user in "ab" for n, item in enumerate("xyz"))


def write(logs: Path, name: str, content: str = LOG) -> None:
    (logs / "log").mkdir(exist_ok=True)
    (logs / "log" / name).write_text(content)


def test_with_nothing_new_the_version_stays_and_another_view_can_be_made(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    write(logs, "a.csv")
    first = prepare(make_recipe("log"), store, append=True)
    write(logs, "empty.csv", "")
    again = prepare(make_recipe("log"), store, append=True)
    other = prepare(make_recipe("log", view={"min_item_events": 2}), store, append=True)
    assert (again.dataset.manifest, again.view) == (first.dataset.manifest, first.view)
    assert other.dataset.number == 1
    assert other.view != first.view


def test_a_file_that_was_changed_is_refused_and_nothing_is_published(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    write(logs, "a.csv")
    prepare(make_recipe("log"), store)
    write(logs, "a.csv", LOG + "c,x,1,p\n")
    write(logs, "b.csv")
    with pytest.raises(DataError, match=r"a\.csv is in the Dataset 'test' already, and was changed since") as caught:
        prepare(make_recipe("log"), store, append=True)
    assert "\n" not in str(caught.value)
    assert manifest_numbers(store, "test") == [1]


@pytest.mark.parametrize(
    ("source", "data", "message"),
    [
        ({}, {"clean": {"deduplicate": "last"}}, "deduplicate of the Dataset 'test' would change"),
        ({"columns": {"user": "user", "item": "item"}}, {}, "data.sources.0 of the Dataset 'test' would be another"),
    ],
)
def test_other_settings_than_those_of_the_log_are_refused(
    without_ray: None,
    make_recipe: Make,
    logs: Path,
    store: Storage,
    source: dict[str, Any],
    data: dict[str, Any],
    message: str,
) -> None:
    write(logs, "a.csv")
    prepare(make_recipe("log"), store)
    write(logs, "b.csv")
    with pytest.raises(RecipeError, match=message):
        prepare(make_recipe("log", source, **data), store, append=True)
    assert manifest_numbers(store, "test") == [1]


def test_a_source_in_the_place_of_another_is_refused(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    write(logs, "a.csv")
    old, new = ({"path": "log", "columns": {"user": "user", "item": "item"}, "type": kind} for kind in ("old", "new"))
    prepare(make_recipe(sources=[old]), store)
    for sources in ([new, old], [new]):
        # Its file has the name and the size of the one that is there.
        with pytest.raises(RecipeError, match=r"data\.sources\.0 .* New sources go after those that are there"):
            prepare(make_recipe(sources=sources), store, append=True)
    dataset = prepare(make_recipe(sources=[old, new]), store, append=True).dataset
    assert [event[1] for event in events_of(dataset)["a"]] == ["old"] * 3 + ["new"] * 3


def test_of_two_appends_at_once_one_is_refused(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(logs, "a.csv")
    prepare(make_recipe("log"), store)
    write(logs, "b.csv", LOG.replace(",10", ",20"))

    def append_meanwhile(*arguments: Any) -> str:
        write(logs, "c.csv", LOG.replace(",10", ",30"))
        with monkeypatch.context() as patch:
            patch.setattr("rayrec.data.prepare.build_view", build_view)
            prepare(make_recipe("log"), store, append=True)
        return build_view(*arguments)

    with monkeypatch.context() as patch, pytest.raises(DataError, match="was changed meanwhile"):
        patch.setattr("rayrec.data.prepare.build_view", append_meanwhile)
        prepare(make_recipe("log"), store, append=True)
    assert open_dataset(store, "test").manifest["counts"]["events"] == 18


def test_files_that_are_in_the_log_need_not_be_there_any_more(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    write(logs, "b.csv")
    prepare(make_recipe("log"), store)
    (logs / "log" / "b.csv").unlink()
    write(logs, "a.csv", LOG.replace(",10", ",20"))
    dataset = prepare(make_recipe("log"), store, append=True).dataset
    assert [event[3] for event in events_of(dataset)["a"]] == [100_000, 101_000, 102_000, 200_000, 201_000, 202_000]


def test_context_that_is_asked_for_later_is_null_in_what_was_there(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    write(logs, "a.csv")
    prepare(make_recipe("log"), store)
    write(logs, "b.csv", LOG.replace(",10", ",20"))
    context = {"page": {"kind": "categorical"}}
    grown = prepare(make_recipe("log", {"context": ["page"]}, features={"context": context}), store, append=True)
    assert [event[4] for event in events_of(grown.dataset)["a"]] == [None] * 3 + ["p"] * 3
    (shard,) = open_view(grown.dataset, grown.view)["shards"]
    words = [row["context_page"] for row in read_part(store, shard).to_pylist()]
    assert [len(set(word[:3])) for word in words] == [1, 1]
    assert all(word[0] != word[3] for word in words)


def test_keys_that_a_table_told_of_keep_their_index_when_they_come(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    write(logs, "a.csv")
    (logs / "users.csv").write_text("id\nzoe\na\n")
    recipe = make_recipe("log", users={"path": "users.csv", "columns": {"user": "id"}})
    assert keys_of(prepare(recipe, store).dataset, "user") == [None, "a", "b", "zoe"]
    write(logs, "b.csv", LOG.replace("a,", "zoe,").replace("b,", "amy,"))
    (logs / "users.csv").write_text("id\nbea\n")
    dataset = prepare(recipe, store, append=True).dataset
    assert keys_of(dataset, "user") == [None, "a", "b", "zoe", "amy", "bea"]
    assert vocabulary_of(dataset, "user")["zoe"] == (100_000, 102_000, 3, "live")
    assert vocabulary_of(dataset, "user")["bea"] == (None, None, 0, "live")
