"""Prepare: logs of any shape become one Dataset with a view, or one message and nothing else."""

from __future__ import annotations

import gzip
import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rayrec.artifacts import Storage
from rayrec.data.dataset import Dataset, open_dataset, publish_manifest, read_part
from rayrec.data.prepare import Prepared, prepare
from rayrec.data.view_building import build_view
from rayrec.data.views import load_view
from rayrec.errors import DataError, RecipeError
from rayrec.recipe import Recipe
from rayrec.recipe_files import load_recipe

Make = Callable[..., Recipe]
HEADER = "user,item,time\n"
LOG = HEADER + "".join(f"{user},{item},{100 + time}\n" for user in "ab" for time, item in enumerate("xyz"))
TWO_COLUMNS = {"columns": {"user": "user", "item": "item"}}


def events(dataset: Dataset) -> list[tuple[Any, ...]]:
    """The log: user, item, type, timestamp in seconds; in its order."""
    users, items = (dataset.vocabulary(name)["key"].to_pylist() for name in ("user", "item"))
    log = pa.concat_tables([read_part(dataset.storage, listed) for listed in dataset.manifest["events"]])
    return [(users[e["user"] - 1], items[e["item"] - 1], e["type"], e["timestamp"] // 1000) for e in log.to_pylist()]


def accounted(prepared: Prepared) -> bool:
    counts = prepared.dataset.manifest["counts"]
    return bool(counts["read"] == counts["events"] + counts["deduplicated"] + counts["quarantined"])


# ---- with Ray


@pytest.mark.usefixtures("ray_cluster")
def test_a_gzip_folder_of_json_lines_becomes_a_dataset(make_recipe: Make, logs: Path, store: Storage) -> None:
    folder = logs / "events"
    folder.mkdir()
    for number, user in enumerate("ab"):
        rows = [{"user": user, "item": f"i{i}", "time": f"2024-01-0{i + 1}"} for i in range(3)]
        content = "\n".join(json.dumps(row) for row in rows) + "\nbroken\n" * number
        (folder / f"part-{number}.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    recipe = make_recipe("events", clean={"max_bad_rows": 0.2})
    prepared = prepare(recipe, store)
    assert prepared.dataset.manifest["counts"] == {
        "read": 7,
        "quarantined": 1,
        "erased": 0,
        "deduplicated": 0,
        "events": 6,
    }
    (listed,) = prepared.dataset.manifest["quarantine"]
    quarantine = read_part(store, listed).to_pylist()
    expected = {"file": "part-1.jsonl.gz", "row": 3, "reason": "not a JSON object", "text": "broken"}
    assert [{key: row[key] for key in expected} for row in quarantine] == [expected]
    view = load_view(prepared.dataset, prepared.view)
    assert view.item_keys == ["i0", "i1", "i2"]
    assert view.folds.tolist() == [0, 1, 2] * 2
    again = prepare(recipe, store)
    assert (again.dataset.number, again.dataset.digest) == (1, prepared.dataset.digest)


@pytest.mark.usefixtures("ray_cluster")
def test_movielens_100k_is_prepared_whole(store: Storage) -> None:
    prepared = prepare(load_recipe("movielens-100k"), store)
    assert prepared.dataset.manifest["counts"]["events"] == 100_000
    vocabularies = prepared.dataset.manifest["vocab"]
    assert (vocabularies["user"]["rows"], vocabularies["item"]["rows"]) == (943, 1682)
    catalogue = {row["key"]: row for row in prepared.dataset.catalogue().to_pylist()}
    assert catalogue["1"] == {"key": "1", "title": "Toy Story", "categories": ["Animation", "Children's", "Comedy"]}
    view = load_view(prepared.dataset, prepared.view)
    assert len(view.users) == 943
    assert Counter(view.folds.tolist()) == {0: 100_000 - 2 * 943, 1: 943, 2: 943}


@pytest.mark.usefixtures("ray_cluster")
def test_what_is_wrong_in_a_worker_is_one_message_and_leaves_nothing(
    make_recipe: Make, logs: Path, store: Storage
) -> None:
    (logs / "log.csv").write_text(LOG)
    recipe = make_recipe(source={"columns": {"user": "usr", "item": "item"}})
    with pytest.raises(DataError, match=r"no column 'usr'. Did you mean 'user'"):
        prepare(recipe, store)
    assert_nothing_is_published(store)


# ---- without Ray: the shapes of logs


def test_simulated_logs_are_prepared_and_marked(without_ray: None, store: Storage) -> None:
    prepared = prepare(load_recipe("simulated"), store)
    assert prepared.dataset.manifest["simulated"] is True
    assert prepared.dataset.manifest["counts"]["events"] == 60_000
    assert accounted(prepared)


def test_a_foreign_header_is_mapped_by_the_recipe(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    rows = "".join(f"{time};Kunde {user};4,5;{item}\n" for user in "ab" for time, item in enumerate("xyz"))
    (logs / "log.csv").write_text("Zeit;Käufer;Betrag;Artikel\n" + rows, encoding="latin-1")
    columns = {"user": "Käufer", "item": "Artikel", "timestamp": "Zeit"}
    prepared = prepare(make_recipe(source={"columns": columns, "encoding": "latin-1"}), store)
    assert [event[:2] for event in events(prepared.dataset)[:3]] == [("Kunde a", item) for item in "xyz"]


def test_a_two_column_log_keeps_repeats_and_takes_its_order_as_time_with_a_warning(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    (logs / "log.csv").write_text("user,item\na,z\nb,x\na,x\na,x\n")
    with caplog.at_level(logging.WARNING, logger="rayrec"):
        prepared = prepare(make_recipe(source=TWO_COLUMNS), store)
    assert [event[:2] for event in events(prepared.dataset)] == [("a", "z"), ("a", "x"), ("a", "x"), ("b", "x")]
    assert prepared.dataset.manifest["order"] == "file"
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "no timestamp column is mapped" in caplog.text


def test_a_log_with_times_gives_no_warning(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    (logs / "log.csv").write_text(LOG)
    prepare(make_recipe(), store)
    assert caplog.records == []


def test_equal_events_count_once_and_every_row_is_accounted_for(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    (logs / "log.csv").write_text(LOG + "a,x,100\na,x,101\n,x,1\nbroken\na,x,soon\n")
    prepared = prepare(make_recipe(clean={"max_bad_rows": 0.5}), store)
    counts = {"read": 11, "quarantined": 3, "erased": 0, "deduplicated": 1, "events": 7}
    assert prepared.dataset.manifest["counts"] == counts
    assert accounted(prepared)
    assert prepared.dataset.manifest["reasons"] == {
        "1 columns instead of 3": 1,
        "timestamp not understood": 1,
        "user missing": 1,
    }
    kept = prepare(make_recipe(clean={"max_bad_rows": 0.5, "deduplicate": False}), store)
    assert kept.dataset.manifest["counts"]["events"] == 8


def test_a_row_of_broken_text_is_set_aside(without_ray: None, make_recipe: Make, logs: Path, store: Storage) -> None:
    (logs / "log.csv").write_bytes(LOG.encode() + b"c\xff,x,1\n")
    dataset = prepare(make_recipe(clean={"max_bad_rows": 0.5}), store).dataset
    (listed,) = dataset.manifest["quarantine"]
    (row,) = read_part(store, listed).to_pylist()
    assert (row["row"], row["reason"]) == (6, "broken UTF-8")
    assert "c\ufffd" in row["text"]


def test_events_of_another_type_are_no_duplicates(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    (logs / "log.csv").write_text("user,item,time,kind\na,x,1,view\na,x,1,buy\na,x,1,view\na,y,2,\n")
    columns = {"user": "user", "item": "item", "timestamp": "time", "type": "kind"}
    prepared = prepare(make_recipe(source={"columns": columns, "type": "click"}), store)
    assert [event[2] for event in events(prepared.dataset)] == ["view", "buy", "click"]


def test_order_within_a_user_is_time_then_source_then_path_then_row(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    (logs / "first").mkdir()
    (logs / "first" / "b.csv").write_text(HEADER + "a,3,5\na,4,5\n")
    (logs / "first" / "a.csv").write_text(HEADER + "a,2,5\na,1,4\n")
    (logs / "second.csv").write_text(HEADER + "a,5,5\na,0,3\n")
    columns = {"user": "user", "item": "item", "timestamp": "time"}
    sources = [{"path": path, "columns": columns} for path in ("first", "second.csv")]
    prepared = prepare(make_recipe(sources=sources), store)
    assert [event[1] for event in events(prepared.dataset)] == list("012345")


def test_the_same_logs_give_the_same_dataset_wherever_they_lie_and_however_they_are_listed(
    without_ray: None,
    make_recipe: Make,
    logs: Path,
    tmp_path: Path,
    store: Storage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for folder in ("here", "there"):
        for number in (1, 0) if folder == "here" else (0, 1):
            path = logs / folder / f"sub-{number}" / "log.csv"
            path.parent.mkdir(parents=True)
            path.write_text(LOG.replace("a,", f"a{number},") + "bad\n")
    clean = {"max_bad_rows": 0.5}
    first = prepare(make_recipe("here", clean=clean), store)
    monkeypatch.setattr("rayrec.data.blocks.BLOCK_BYTES", 40)
    for module in ("ingest", "vocabulary", "segments", "selection", "view_building"):
        monkeypatch.setattr(
            f"rayrec.data.{module}.run_pass", lambda work, items: [*map(work, reversed([*items]))][::-1]
        )
    second = prepare(make_recipe("there/*/log.csv", clean=clean), Storage.open(tmp_path / "other"))
    assert second.dataset.digest == first.dataset.digest
    assert second.view == first.view


def test_context_columns_that_one_source_lacks_are_null_there(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    (logs / "web.csv").write_text("user,item,time,page\na,x,1,home\na,y,2,\n")
    (logs / "app.jsonl").write_text('{"user": "a", "item": "z", "time": 3, "device": "tv"}\n')
    columns = {"user": "user", "item": "item", "timestamp": "time"}
    sources = [
        {"path": "web.csv", "columns": columns, "context": ["page"]},
        {"path": "app.jsonl", "columns": columns, "context": ["device"]},
    ]
    dataset = prepare(make_recipe(sources=sources), store).dataset
    (listed,) = dataset.manifest["events"]
    log = read_part(store, listed, ["context_device", "context_page"]).to_pydict()
    assert log == {"context_device": [None, None, "tv"], "context_page": ["home", None, None]}


def test_a_file_of_json_lines_may_lack_a_column_that_others_have(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    (logs / "events").mkdir()
    for number in range(3):
        row = {"user": "a", "item": f"i{number}", "time": number} | ({"value": 5} if number == 1 else {})
        (logs / "events" / f"{number}.jsonl").write_text(json.dumps(row))
    columns = {"user": "user", "item": "item", "timestamp": "time", "value": "value"}
    dataset = prepare(make_recipe("events", {"columns": columns}), store).dataset
    assert read_part(store, dataset.manifest["events"][0])["value"].to_pylist() == [None, 5.0, None]


def test_empty_files_among_others_do_not_matter(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    (logs / "events").mkdir()
    (logs / "events" / "a.csv").write_text(LOG)
    (logs / "events" / "b.csv").write_text("")
    (logs / "events" / "c.csv").write_text(HEADER)
    (logs / "events" / "d.csv.gz").write_bytes(gzip.compress(b""))
    assert prepare(make_recipe("events"), store).dataset.manifest["counts"]["events"] == 6


# ---- without Ray: what is refused


def assert_nothing_is_published(storage: Storage) -> None:
    files = [path.relative_to(storage.root) for path in Path(storage.root).rglob("*")]
    assert not [path for path in files if path.name == "view.json" or "manifests" in path.parts]
    assert not [path for path in files if path.name.startswith(".tmp-")]


NEEDED = {
    "missing": (None, {}, {}, "there is no such file"),
    "empty": ("", {}, {}, "the file is empty"),
    "only blank lines": ("\n\n", {}, {}, "no rows"),
    "only a header": (HEADER, {}, {}, "no rows \\(only a header, or nothing\\)"),
    "absent column": (LOG, {"columns": {"user": "usr", "item": "item"}}, {}, "Did you mean 'user'\\?"),
    "too many bad rows": (
        LOG + "bad\n",
        {},
        {},
        "1 of 7 rows .* row 6 \\(from 0\\) of .*log.csv: 1 columns instead of 3: 'bad'",
    ),
    "only bad rows": (HEADER + "bad\n", {}, {"clean": {"max_bad_rows": 1}}, "1 of 1 rows"),
    "below the minimum": (LOG, {}, {"view": {"min_user_events": 9}}, "no user has 9 events"),
    "no such type": (LOG, {}, {"view": {"event_types": ["buy"]}}, "no user has 3 events of buy"),
    "k-core of nobody": (LOG, {}, {"view": {"min_item_events": 9}}, "on items with 9"),
    "nothing held out": (HEADER + "a,x,1\n", {}, {"view": {"min_user_events": 1}}, "leaves no train|no validation"),
    "all at once": (HEADER + "a,x,1\na,y,1\na,z,1\n", {}, {"split": {"kind": "time"}}, "leaves no train|no validation"),
}


@pytest.mark.parametrize(("content", "source", "data", "message"), NEEDED.values(), ids=NEEDED)
def test_logs_that_cannot_be_used_give_one_message_and_nothing_is_published(
    without_ray: None,
    make_recipe: Make,
    logs: Path,
    store: Storage,
    content: str | None,
    source: dict[str, Any],
    data: dict[str, Any],
    message: str,
) -> None:
    if content is not None:
        (logs / "log.csv").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        prepare(make_recipe(source=source, **data), store)
    assert "\n" not in str(caught.value)
    assert_nothing_is_published(store)


def test_a_column_that_no_json_line_has_is_refused(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    (logs / "log.jsonl").write_text('{"user": "a", "itm": "x", "time": 1}\n')
    with pytest.raises(DataError, match=r"no column 'item'. Did you mean 'itm'"):
        prepare(make_recipe("log.jsonl"), store)
    assert_nothing_is_published(store)


def test_just_as_many_bad_rows_as_allowed_are_allowed(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    (logs / "log.csv").write_text(HEADER + "".join(f"a,{i},{i}\n" for i in range(19)) + "bad\n")
    assert prepare(make_recipe(), store).dataset.manifest["counts"]["quarantined"] == 1


@pytest.mark.parametrize(
    ("source", "split", "message"),
    [
        (TWO_COLUMNS, {"validation": 0.1, "test": 0.1}, "the log has no timestamp column"),
        ({}, {"validation": "2024-02-01", "test": "2024-01-01"}, "must begin before test"),
        ({}, {"validation": "soon", "test": "2024-01-01"}, "'soon' is no date or time"),
    ],
)
def test_a_time_split_that_cannot_be_is_refused_before_any_work(
    make_recipe: Make, store: Storage, source: dict[str, Any], split: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        prepare(make_recipe(source=source, split={"kind": "time", **split}), store)
    assert_nothing_is_published(store)


# ---- the published Dataset


def test_publishing_the_same_dataset_twice_writes_one_manifest(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    (logs / "log.csv").write_text(LOG)
    numbers = [prepare(make_recipe(), store).dataset.number for _ in range(2)]
    assert numbers == [1, 1]
    assert store.list("datasets/test/manifests") == ["000001.json"]
    (logs / "log.csv").write_text(LOG + "c,x,1\n")
    assert prepare(make_recipe(), store).dataset.number == 2
    assert open_dataset(store, "test").number == 2
    assert open_dataset(store, "test", 1).manifest["counts"]["events"] == 6
    assert publish_manifest(store, "test", open_dataset(store, "test").manifest).number == 2


@pytest.mark.parametrize("what", ["views/*/*.parquet", "vocab/*.parquet"])
def test_a_changed_byte_is_noticed_when_a_view_is_loaded(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage, what: str
) -> None:
    (logs / "log.csv").write_text(LOG)
    prepared = prepare(make_recipe(), store)
    for path in Path(store.root, "datasets/test").glob(what):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(DataError, match="its checksum differs"):
        load_view(prepared.dataset, prepared.view)


def test_a_changed_log_is_noticed_when_another_view_is_built(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    (logs / "log.csv").write_text(LOG)
    dataset = prepare(make_recipe(), store).dataset
    Path(store.full(dataset.manifest["events"][0]["path"])).unlink()
    with pytest.raises(DataError, match="is missing or was changed"):
        build_view(make_recipe(view={"min_item_events": 2}), dataset)


def test_a_dataset_that_is_not_there_is_refused(store: Storage) -> None:
    with pytest.raises(DataError, match="there is no Dataset 'nothing'"):
        open_dataset(store, "nothing")
