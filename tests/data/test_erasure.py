"""Erasure: a user who asks to be forgotten is in no file any more, and nothing else has changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from tests.data.reading import events_of, everything, item_counts_of, keys_of, quarantine_of, read_all, sequences_of
from tests.watching import Silent

from rayrec.artifacts import Json, Storage
from rayrec.data.dataset import Dataset, manifest_numbers, open_dataset, read_part, read_statistics
from rayrec.data.erasure import _Erasure, erase_user
from rayrec.data.passes import parquet_bytes
from rayrec.data.prepare import Prepared, prepare
from rayrec.data.view_building import build_view
from rayrec.data.views import load_view, open_view
from rayrec.errors import DataError, StorageError
from rayrec.pipeline import Pipeline
from rayrec.recipe import Recipe
from rayrec.recipe_files import parse_recipe

Make = Callable[..., Recipe]
WHO = "anna-7@example.org"
KEYS = [WHO, "-90876", "Anna Bell 7", r"CORP\anna", 'O\'Hara "7"', "安娜", "x" * 600]
VIEWS: list[Json] = [{}, {"min_item_events": 3}]


def write(path: Path, users: list[str], seconds: int = 0) -> None:
    """Six events of each user, of one item of its own and five of everybody's; one row of each that is no event."""
    rows = []
    for place, user in enumerate(users):
        key = '"' + user.replace('"', '""') + '"'
        items = [f"only-{place}", *(f"i{place + n}" for n in range(5))]
        rows += [f"{key},{item},{1_700_000_000 + seconds + n * 60 + place},{place}" for n, item in enumerate(items)]
        rows += [f"{key},,5,1", f"{key},i1"]
    path.parent.mkdir(exist_ok=True)
    path.write_text("user,item,time,value\n" + "\n".join(rows) + "\n")


@pytest.fixture
def recipe_of(
    make_recipe: Callable[..., Recipe], logs: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Recipe]:
    """A recipe of two files by eight users, and a user table, in several partitions."""
    monkeypatch.setattr("rayrec.data.prepare.PARTITION_BYTES", 400)

    def make(who: str = WHO, **view: Any) -> Recipe:
        users = [who, *(f"u{n}" for n in range(7))]
        for name, seconds in (("b", 0), ("a", 3600)):
            write(logs / "log" / f"{name}.csv", users, seconds)
        rows = "".join(json.dumps({"id": user, "city": f"city {place}"}) + "\n" for place, user in enumerate(users))
        (logs / "users.jsonl").write_text(rows)
        columns = {"user": "user", "item": "item", "timestamp": "time", "value": "value"}
        table = {"path": "users.jsonl", "columns": {"user": "id"}}
        return make_recipe("log", {"columns": columns}, users=table, clean={"max_bad_rows": 0.5}, view=view)

    return make


def grown(recipe: Recipe, logs: Path, storage: Storage, views: int = 2) -> list[Prepared]:
    """Two versions of a Dataset, the second one appended, and views of each."""
    data = [recipe.data.model_copy(update={"view": recipe.data.view.model_copy(update=view)}) for view in VIEWS[:views]]
    recipes = [recipe.model_copy(update={"data": section}) for section in data]
    later = (logs / "log" / "a.csv").rename(logs / "later")
    first = [prepare(recipe, storage, append=True) for recipe in recipes]
    later.rename(logs / "log" / "a.csv")
    return [*first, *(prepare(recipe, storage, append=True) for recipe in recipes)]


def current(prepared: list[Prepared]) -> list[Prepared]:
    """The same versions as they are now."""
    storage, name = prepared[0].dataset.storage, prepared[0].dataset.name
    return [Prepared(open_dataset(storage, name, p.dataset.number), p.view) for p in prepared]


def texts(path: Path) -> Iterator[str]:
    """What a file says, by its bytes and by its values."""
    yield path.read_bytes().decode("utf-8", "replace")
    if path.suffix == ".parquet":
        yield str(pq.read_table(path).to_pylist())
    if path.suffix == ".arrow":
        yield str(pyarrow.ipc.open_file(path).read_all().to_pylist())


def files_with(storage: Storage, key: str) -> list[str]:
    """Every file of the storage with the key, written in any way."""
    files = [path for path in Path(storage.root).rglob("*") if path.is_file()]
    needles = {key, repr(key)[1:-1], json.dumps(key)[1:-1]}
    return sorted(str(path) for path in files for text in texts(path) if any(needle in text for needle in needles))


def accounted(dataset: Dataset, view: str) -> bool:
    """Every row that was read, and every event of the log, is somewhere."""
    counts, of_view = dataset.manifest["counts"], open_view(dataset, view)
    folds = sum(of_view["counts"][fold] for fold in ("train", "validation", "test"))
    loaded = load_view(dataset, view)
    return (
        counts["read"] == sum(counts[key] for key in ("events", "deduplicated", "quarantined", "erased"))
        and counts["events"] == sum(segment["rows"] for segment in dataset.manifest["events"])
        and counts["events"] == read_statistics(dataset)["events"]
        and counts["events"] == of_view["counts"]["events"] + sum(of_view["filtered"].values())
        and counts["quarantined"] == sum(dataset.manifest["reasons"].values()) == len(quarantine_of(dataset))
        and (len(loaded.users), len(loaded.folds), folds)
        == (of_view["counts"]["users"], of_view["counts"]["events"], of_view["counts"]["events"])
        and sum(item_counts_of(dataset, view).values()) == of_view["counts"]["events"]
    )


@pytest.mark.parametrize("who", KEYS, ids=lambda key: key[:8])
def test_an_erased_user_is_in_no_file_and_stays_away(
    recipe_of: Callable[..., Recipe], logs: Path, store: Storage, who: str
) -> None:
    recipe = recipe_of(who)
    prepare(recipe, store)
    assert files_with(store, who)
    receipt = erase_user(store, "test", f" {who} ")
    assert files_with(store, who) == []
    assert who not in json.dumps(receipt)
    write(logs / "log" / "c.csv", ["new", who], 7200)
    for append in (True, False):
        prepared = prepare(recipe, store, append)
        assert files_with(store, who) == []
        assert prepared.dataset.manifest["counts"]["erased"] == 18
        assert accounted(prepared.dataset, prepared.view)


def test_nobody_else_is_changed_and_every_row_is_accounted_for(
    recipe_of: Callable[..., Recipe], logs: Path, store: Storage
) -> None:
    before = grown(recipe_of(), logs, store)
    told = [(everything(p.dataset, p.view), keys_of(p.dataset, "user"), keys_of(p.dataset, "item")) for p in before]
    erase_user(store, "test", WHO)
    assert manifest_numbers(store, "test") == [1, 2]
    for prepared, (was, users, items) in zip(current(before), told, strict=True):
        dataset, view = prepared.dataset, prepared.view
        assert keys_of(dataset, "user") == [None if key == WHO else key for key in users]
        assert keys_of(dataset, "item") == items
        assert events_of(dataset) == {key: events for key, events in was["events"].items() if key != WHO}
        assert sequences_of(dataset, view) == {key: s for key, s in was["sequences"].items() if key != WHO}
        assert [row[:4] for row in quarantine_of(dataset)] == [row[:4] for row in was["quarantine"]]
        assert dataset.manifest["counts"]["erased"] == len(was["events"][WHO])
        assert accounted(dataset, view)
        items_now = everything(dataset, view)["items"]
        assert items_now["only-0"] == (None, None, 0, "live")
        assert {key: row[2] for key, row in items_now.items()} == {
            key: row[2] - sum(event[0] == key for event in was["events"][WHO]) for key, row in was["items"].items()
        }
    read_all(dataset)


def test_the_index_of_an_erased_user_is_nobody_elses(
    recipe_of: Callable[..., Recipe], logs: Path, store: Storage
) -> None:
    recipe = recipe_of()
    users = keys_of(grown(recipe, logs, store)[-1].dataset, "user")
    receipt = erase_user(store, "test", WHO)
    write(logs / "log" / "c.csv", ["new", WHO], 7200)
    grown_again = keys_of(prepare(recipe, store, append=True).dataset, "user")
    assert receipt["indexes"] == [users.index(WHO)]
    assert grown_again == [*(None if key == WHO else key for key in users), "new"]


def test_an_append_after_an_erasure_equals_preparing_what_is_left(
    recipe_of: Callable[..., Recipe], logs: Path, store: Storage, tmp_path: Path
) -> None:
    recipe = recipe_of()
    grown(recipe, logs, store)
    erase_user(store, "test", WHO)
    write(logs / "log" / "0.csv", ["u1", "new", WHO], -7200)
    appended = prepare(recipe, store, append=True)
    whole = prepare(recipe, store)
    now, then = everything(appended.dataset, appended.view), everything(whole.dataset, whole.view)
    # What it did stays known as an item without events, until all is prepared anew.
    for found in (now, then):
        found["items"] = {key: row[2] for key, row in found["items"].items() if row[2]}
        del found["users"], found["statistics"]["long_tail"]["without_events"]
        found["statistics"]["long_tail"].pop("curve")
    assert now == then


def outcome_of(dataset: str, index: int) -> bytes:
    """What an evaluation keeps of a user."""
    return parquet_bytes(pa.table({"user": [index], "items": [[1]], "ranks": [[2]], "dataset": [dataset]}))


def test_the_receipt_says_what_was_done_and_what_is_left(
    recipe_of: Callable[..., Recipe], logs: Path, store: Storage
) -> None:
    before = grown(recipe_of(), logs, store)
    index = keys_of(before[0].dataset, "user").index(WHO)
    store.replace("models/test/0123/model.json", b"{}")
    outcomes = [store.write_content("evaluations", outcome_of(name, index), ".parquet") for name in ("test", "other")]
    store.replace("datasets/test/.tmp-0123456789ab/events/x.arrow", b"")
    receipt = erase_user(store, "test", WHO)
    assert (receipt["state"], receipt["indexes"], receipt["events"]) == ("done", [index], 12)
    assert receipt["left"] == {
        "sources": ["a.csv", "b.csv"],
        "models": ["models/test/0123"],
        "transforms": [],
        "working_files": ["datasets/test/.tmp-0123456789ab"],
    }
    assert not any(store.exists(path) for path in receipt["removed"])
    assert [store.exists(path) for path in outcomes] == [False, True], "what is kept of another Dataset's users stays"
    files = sorted(path for path in Path(store.root).rglob("*"))
    assert erase_user(store, "test", WHO) == receipt
    assert sorted(path for path in Path(store.root).rglob("*")) == files


def test_a_feature_whose_words_are_keys_is_told_of(recipe_of: Callable[..., Recipe], store: Storage) -> None:
    data = recipe_of().data.model_dump() | {"features": {"users": {"id": {"kind": "categorical"}}}}
    prepared = prepare(parse_recipe({"name": "test", "data": data}), store)
    transform = open_view(prepared.dataset, prepared.view)["transform"]["path"]
    assert erase_user(store, "test", WHO)["left"]["transforms"] == [transform]


def test_what_a_refused_preparation_left_behind_is_searched_too(
    recipe_of: Callable[..., Recipe], store: Storage
) -> None:
    with pytest.raises(DataError, match="leaves nobody"):
        prepare(recipe_of(min_user_events=99), store)
    recipe = recipe_of()
    prepare(recipe.model_copy(update={"data": recipe.data.model_copy(update={"users": None})}), store)
    assert len(store.list("datasets/test/users")) == 1
    erase_user(store, "test", WHO)
    assert files_with(store, WHO) == store.list("datasets/test/users") == []


def test_a_version_that_had_only_rejected_rows_of_the_user_is_searched_too(
    recipe_of: Callable[..., Recipe], logs: Path, store: Storage
) -> None:
    recipe, log, users = recipe_of(), logs / "log" / "b.csv", logs / "users.jsonl"
    (logs / "log" / "a.csv").unlink()
    whole, everybody = log.read_text(), users.read_text()
    log.write_text(whole.replace(f'"{WHO}",', f'"{WHO}";'))
    users.write_text(everybody.split("\n", 1)[1])
    first = prepare(recipe, store)
    was = everything(first.dataset, first.view)
    assert WHO not in was["users"]
    log.write_text(whole)
    users.write_text(everybody)
    prepare(recipe, store)
    erase_user(store, "test", WHO)
    assert files_with(store, WHO) == []
    (now,) = current([first])
    assert {**everything(now.dataset, now.view), "quarantine": []} == {**was, "quarantine": []}


def test_a_view_that_nobody_is_left_in_goes(recipe_of: Callable[..., Recipe], logs: Path, store: Storage) -> None:
    recipe = recipe_of()
    for name, seconds in (("a", 0), ("b", 3600)):
        write(logs / "log" / f"{name}.csv", [WHO], seconds)
    prepared = prepare(recipe, store)
    erase_user(store, "test", WHO)
    (now,) = current([prepared])
    assert events_of(now.dataset) == {}
    assert store.list("datasets/test/views") == []
    with pytest.raises(DataError, match="leaves nobody"):
        prepare(recipe, store)
    write(logs / "log" / "c.csv", ["new"])
    assert [*events_of(prepare(recipe, store, append=True).dataset)] == ["new"]


@pytest.mark.parametrize("append", [False, True])
def test_what_is_prepared_while_a_user_is_erased_is_not_published(
    recipe_of: Callable[..., Recipe], logs: Path, store: Storage, monkeypatch: pytest.MonkeyPatch, append: bool
) -> None:
    recipe = recipe_of()
    prepare(recipe, store)
    write(logs / "log" / "c.csv", ["new", WHO], 7200)

    def build_after_erasure(*arguments: Any) -> str:
        erase_user(store, "test", WHO)
        return build_view(*arguments)

    with monkeypatch.context() as patch, pytest.raises(DataError, match="was changed meanwhile"):
        patch.setattr("rayrec.data.prepare.build_view", build_after_erasure)
        prepare(recipe, store, append)
    assert manifest_numbers(store, "test") == [1]
    assert WHO not in keys_of(prepare(recipe, store, append).dataset, "user")


def test_unknown_users_and_datasets_are_refused_and_nothing_is_remembered(
    recipe_of: Callable[..., Recipe], store: Storage
) -> None:
    with pytest.raises(DataError, match="there is no Dataset 'test'"):
        erase_user(store, "test", WHO)
    prepare(recipe_of(), store)
    files = contents(store)
    for user in ("nobody", ""):
        with pytest.raises(DataError, match=f"Dataset 'test' in .* knows no user '{user}'"):
            erase_user(store, "test", user)
    assert contents(store) == files


def test_after_an_erasure_prepare_is_skipped_and_training_is_not(
    recipe_of: Callable[..., Recipe], storage: Storage
) -> None:
    recipe = recipe_of()
    with Pipeline(recipe, storage, Silent()) as pipeline:
        before = pipeline.prepare()
    erase_user(storage, "test", WHO)
    with Pipeline(recipe, storage, Silent()) as pipeline:
        dataset, view = pipeline.prepare()
    assert pipeline.outcomes["prepare"].skipped
    assert (dataset.number, view) == (before[0].number, before[1])
    # The stages that follow are done again when the digest is another.
    assert dataset.digest != before[0].digest
    assert WHO not in sequences_of(dataset, view)


class Killed(BaseException):
    """The process is no more."""


def kill_at(monkeypatch: pytest.MonkeyPatch, call: int) -> list[str]:
    """Let the storage end all at its n-th change. Returns the changes so far."""
    changes: list[str] = []
    for name in ("replace", "remove", "write_new"):
        real = getattr(Storage, name)

        def change(storage: Storage, path: str, *rest: Any, real: Callable[..., Any] = real) -> Any:
            if len(changes) == call:
                raise Killed
            changes.append(path)
            return real(storage, path, *rest)

        monkeypatch.setattr(Storage, name, change)
    return changes


def contents(storage: Storage) -> dict[str, bytes]:
    """Every file, but for when a tombstone was written."""
    files = {str(p.relative_to(storage.root)): p.read_bytes() for p in Path(storage.root).rglob("*") if p.is_file()}
    return {path: b"" if "/erasures/" in path else content for path, content in files.items()}


def test_an_erasure_killed_at_any_point_is_finished_by_the_same_command(
    recipe_of: Callable[..., Recipe], logs: Path, store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of()
    monkeypatch.setattr("rayrec.data.prepare.PARTITION_BYTES", 1 << 20)
    views = [prepared.view for prepared in grown(recipe, logs, store, views=1)]
    undisturbed = Storage.open(shutil.copytree(store.root, tmp_path / "undisturbed"))
    receipt = erase_user(undisturbed, "test", WHO)
    for call in range(1000):
        killed = Storage.open(shutil.copytree(store.root, tmp_path / f"killed-{call}"))
        with monkeypatch.context() as patch:
            changes = kill_at(patch, call)
            try:
                erase_user(killed, "test", WHO)
            except Killed:
                pass
            else:
                break
        read_all(open_dataset(killed, "test"))
        for number, view in enumerate(views, start=1):
            load_view(open_dataset(killed, "test", number), view)
        if killed.exists("datasets/test/erasures/lease"):
            # Its holder, this process, is not dead.
            with pytest.raises(StorageError, match=f"another erasure is under way .* by process {os.getpid()} "):
                erase_user(killed, "test", WHO)
            killed.remove("datasets/test/erasures/lease")
        again = erase_user(killed, "test", WHO)
        assert {**again, "at": ""} == {**receipt, "at": ""}, changes
        assert contents(killed) == contents(undisturbed), changes
        shutil.rmtree(killed.root)
    assert call > 20, "there are many points"


def test_who_is_only_in_rejected_rows_is_erased_too(
    without_ray: None, make_recipe: Callable[..., Recipe], logs: Path, store: Storage
) -> None:
    rows = "".join(f"u{user},i{item},{1_700_000_000 + item}\n" for user in range(3) for item in range(4))
    (logs / "log.csv").write_text(f"user,item,time\n{rows}ghost@x.org,,1700000000\n")
    prepare(make_recipe(clean={"max_bad_rows": 0.5}), store)

    erase_user(store, "test", "ghost@x.org")

    (listed,) = open_dataset(store, "test").manifest["quarantine"]
    assert read_part(store, listed)["text"].to_pylist() == [None]
    with pytest.raises(DataError, match="there is no Dataset"):
        erase_user(store, "test/", "u1")


def test_a_version_published_just_before_the_tombstone_is_erased_too(
    without_ray: None, make_recipe: Callable[..., Recipe], logs: Path, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = logs / "events"
    folder.mkdir()
    rows = "".join(f"u{user},i{item},{1_700_000_000 + item}\n" for user in range(3) for item in range(4))
    (folder / "a.csv").write_text(f"user,item,time\n{rows}")
    prepare(make_recipe("events"), store)
    record, appended = _Erasure.record, []

    def late(erasure: _Erasure, state: str) -> Json:
        if not appended:
            appended.append(True)
            (folder / "b.csv").write_text("user,item,time\nu1,i9,1700000100\n")
            prepare(make_recipe("events"), store, append=True)
        return record(erasure, state)

    monkeypatch.setattr(_Erasure, "record", late)
    erase_user(store, "test", "u1")

    for number in (1, 2):
        assert "u1" not in open_dataset(store, "test", number).vocabulary("user")["key"].to_pylist()
