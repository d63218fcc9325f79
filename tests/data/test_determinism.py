"""The same input gives the same digests: however it is read, spread, listed or interrupted."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from typer.testing import CliRunner

from rayrec.artifacts import Json, Storage
from rayrec.cli import app
from rayrec.data.dataset import manifest_numbers
from rayrec.data.prepare import prepare
from rayrec.data.views import open_view
from rayrec.errors import StorageError
from rayrec.recipe import Recipe
from rayrec.recipe_files import to_yaml

Make = Callable[..., Recipe]
COLUMNS = {"user": "user", "item": "item", "timestamp": "time", "type": "kind", "value": "value"}
VALUES: list[Any] = [1, 1.5, "2", "", "much", None, 1e-7, 3.0, 12345678901234567]
KEYS: list[Any] = [3, 3.0, "3", None, True, "Köln", "o'neil", 2**53 + 1, "2024-01-01"]


def write_logs(logs: Path, seed: int = 0) -> None:
    """CSV and JSON lines with keys of many kinds, repeats, rejected rows, types and context."""
    generator = random.Random(seed)

    def row(**keys: Any) -> Json:
        time = 1_700_000_000 + 600 * generator.randrange(12)
        kind, page = generator.choice("abc"), generator.choice(["home", "", "ü"])
        return {"time": time, "kind": kind, "page": page, "value": generator.choice(VALUES), **keys}

    for name in ("2", "10", "1"):
        rows = [row(user=f"u{generator.randrange(20)}", item=f"i{generator.randrange(15)}") for _ in range(150)]
        lines = [",".join("" if v is None else str(v) for v in r.values()) for r in rows] + [
            "broken",
            "1,a,,much,u1,i1",
        ] * 5
        generator.shuffle(lines)
        path = logs / "csv" / f"day={name}" / "log.csv"
        path.parent.mkdir(parents=True)
        path.write_text("time,kind,page,value,user,item\n" + "\n".join(lines) + "\n")
    lines = [json.dumps(row(user=generator.choice(KEYS), item=generator.choice(KEYS))) for _ in range(150)]
    (logs / "log.jsonl").write_text("\n".join([*lines, "{broken", "[1]"]) + "\n")


def recipe_of(make_recipe: Make) -> Recipe:
    sources = [
        {"path": "csv", "columns": COLUMNS, "context": ["page", "day"]},
        {"path": "log.jsonl", "columns": COLUMNS, "context": ["page"]},
    ]
    features = {"context": {"page": {"kind": "categorical"}, "hour": {"kind": "timestamp", "column": "timestamp"}}}
    clean = {"max_bad_rows": 0.5, "missing": {"value": "mean"}, "outliers": {"value": {"method": "iqr"}}}
    return make_recipe(sources=sources, features=features, clean=clean, view={"min_item_events": 3, "fit": "train"})


def digests(recipe: Recipe, storage: Storage) -> tuple[str, Json]:
    """All that two preparations of the same logs must agree on."""
    prepared = prepare(recipe, storage)
    return prepared.dataset.digest, open_view(prepared.dataset, prepared.view)


def backwards(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    return [*map(work, reversed([*items]))][::-1]


def small_blocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("rayrec.data.blocks.BLOCK_BYTES", 100)


def small_spills(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("rayrec.data.blocks.BLOCK_BYTES", 300)
    patch.setattr("rayrec.data.ingest.SPILL_BYTES", 1)


def other_order_of_work(patch: pytest.MonkeyPatch) -> None:
    for module in ("ingest", "vocabulary", "segments", "selection", "tables", "view_building"):
        patch.setattr(f"rayrec.data.{module}.run_pass", backwards)


def other_order_of_files(patch: pytest.MonkeyPatch) -> None:
    walk = os.walk
    patch.setattr(os, "walk", lambda *args, **kwargs: reversed([*walk(*args, **kwargs)]))


CHANGES = [small_blocks, small_spills, other_order_of_work, other_order_of_files]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_same_logs_give_the_same_digests(
    without_ray: None,
    make_recipe: Make,
    logs: Path,
    store: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
) -> None:
    monkeypatch.setattr("rayrec.data.prepare.PARTITION_BYTES", 5000)
    write_logs(logs)
    recipe = recipe_of(make_recipe)
    expected = digests(recipe, store)
    change(monkeypatch)
    assert digests(recipe, Storage.open(tmp_path / "other")) == expected


# ---- what dies on the way


@pytest.mark.usefixtures("ray_cluster")
def test_workers_that_are_killed_change_nothing(
    make_recipe: Make, logs: Path, store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_logs(logs)
    recipe = recipe_of(make_recipe)
    with monkeypatch.context() as patch:
        other_order_of_work(patch)
        expected = digests(recipe, store)
    for work in ("ingest._ingest_file", "segments._write_segment", "view_building._write_shard"):
        kill_first(monkeypatch, f"rayrec.data.{work}", tmp_path / work)
    disturbed = Storage.open(tmp_path / "disturbed")
    assert digests(recipe, disturbed) == expected
    assert len([*tmp_path.glob("*._*")]) == 3, "workers were killed"
    assert disturbed.temporaries() == []


def kill_first(patch: pytest.MonkeyPatch, name: str, flag: Path) -> None:
    """Let the worker that is the first to do some work die after it, before it tells."""
    module, _, function = name.rpartition(".")
    real = getattr(sys.modules[module], function)

    def work(*args: Any, **kwargs: Any) -> Any:
        done = real(*args, **kwargs)
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    patch.setattr(name, work)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"not allowed to mount a filesystem here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def write_large_log(logs: Path) -> None:
    generator = random.Random(0)
    rows = (f"{generator.random()},{generator.random()},{n}\n" for n in range(150_000))
    (logs / "log.csv").write_text("user,item,time\n" + "".join(rows))


@pytest.mark.usefixtures("ray_cluster")
def test_a_full_disk_is_one_message_and_nothing_is_left(
    make_recipe: Make, home: Path, logs: Path, small_disk: Path
) -> None:
    write_large_log(logs)
    recipe = make_recipe(view={"min_user_events": 1}).model_copy(update={"storage": str(small_disk)})
    (logs / "recipe.yaml").write_text(to_yaml(recipe))
    result = CliRunner().invoke(app, ["prepare", str(logs / "recipe.yaml")])
    assert result.exit_code == 2, result.output
    assert "No space left on device" in result.stderr
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.output
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


def full_at(patch: pytest.MonkeyPatch, call: int) -> list[str]:
    """Let the disk be full at the n-th file that is written. Returns the files so far."""
    written: list[str] = []

    def count(path: str) -> None:
        written.append(path)
        if len(written) > call:
            raise OSError(errno.ENOSPC, "No space left on device", path)

    write, open_file = Storage._write_local, LocalFileSystem.open

    def full_write(storage: Storage, path: str, data: bytes, *, replace: bool) -> bool:
        count(path)
        return write(storage, path, data, replace=replace)

    def full_open(filesystem: LocalFileSystem, path: str, mode: str = "rb", **options: Any) -> Any:
        if "w" in mode:
            count(path)
        return open_file(filesystem, path, mode, **options)

    patch.setattr(Storage, "_write_local", full_write)
    patch.setattr(LocalFileSystem, "open", full_open)
    return written


def test_wherever_the_disk_is_full_nothing_is_published_and_the_same_command_goes_on(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_logs(logs)
    recipe = recipe_of(make_recipe)
    expected = digests(recipe, Storage.open(tmp_path / "large"))
    for call in range(1000):
        with monkeypatch.context() as patch:
            written = full_at(patch, call)
            try:
                prepare(recipe, store)
            except StorageError as error:
                message = str(error)
            else:
                break
        assert "No space left on device" in message
        assert "\n" not in message
        assert manifest_numbers(store, "test") == []
        assert store.temporaries() == [], written
    assert call > 10
    assert digests(recipe, store) == expected


def test_a_target_below_a_regular_file_is_one_message(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage
) -> None:
    write_logs(logs)
    Path(store.root, "datasets").write_text("mine")
    with pytest.raises(StorageError, match=r"cannot list .*/datasets/test/.*: Not a directory") as caught:
        prepare(recipe_of(make_recipe), store)
    assert "\n" not in str(caught.value)
    assert [path.name for path in Path(store.root).rglob("*")] == ["datasets"]
