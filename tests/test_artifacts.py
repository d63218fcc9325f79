"""Storage and artifacts: written whole or not at all, named by what they hold, checked when they are read."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import fsspec
import pytest

import rayrec.artifacts
from rayrec.artifacts import Storage, canonical, code_version, open_folder, publish_folder, short_digest
from rayrec.errors import ModelError, StorageError

FILES = {"weights.bin": b"w" * 1000, "tables/item.bin": b"i" * 10, "empty": b""}


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """A storage on this machine, and two that are not."""
    monkeypatch.setenv("RAYREC_HOME", str(tmp_path / "home"))
    if request.param == "s3":
        request.getfixturevalue("object_store")
    uris = {"memory": f"memory://{tmp_path.name}", "s3": f"s3://rayrec/{tmp_path.name}"}
    yield Storage.open(uris.get(request.param, tmp_path / "storage"))
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "storage")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files to publish."""
    made = tmp_path / "made"
    for name, data in FILES.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(data)
    return made


def everything_below(storage: Storage) -> set[str]:
    root = Path(storage.root)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


# ---- single files


def test_a_new_file_is_written_once(place: Storage) -> None:
    assert place.write_new("a/b.txt", b"first")
    assert not place.write_new("a/b.txt", b"second")
    assert place.read("a/b.txt") == b"first"


def test_replacing_writes_over_what_is_there(place: Storage) -> None:
    place.replace("a/b.txt", b"first")
    place.replace("a/b.txt", b"second")
    assert place.read("a/b.txt") == b"second"
    assert place.list("a") == ["b.txt"]


def test_of_many_writers_exactly_one_wins(local: Storage) -> None:
    writers = 16
    gate = Barrier(writers)

    def write(number: int) -> bool:
        gate.wait()
        return local.write_new("manifest.json", bytes([number]) * 100_000)

    with ThreadPoolExecutor(writers) as pool:
        won = list(pool.map(write, range(writers)))
    assert won.count(True) == 1
    assert local.read("manifest.json") == bytes([won.index(True)]) * 100_000
    assert everything_below(local) == {"manifest.json"}


@pytest.mark.parametrize("there", [False, True])
def test_a_write_that_dies_leaves_what_was_there(local: Storage, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if there:
        local.replace("file", b"before")

    def dies(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", dies)
    for write in (local.replace, local.write_new):
        with pytest.raises(StorageError, match="No space left on device"):
            write("file", b"after")
    assert everything_below(local) == ({"file"} if there else set())
    assert not there or local.read("file") == b"before"


def test_content_names_its_file(place: Storage) -> None:
    path = place.write_content("events", b"rows", ".parquet")
    assert place.write_content("events", b"rows", ".parquet") == path
    assert place.write_content("events", b"other rows", ".parquet") != path
    assert place.read(path) == b"rows"
    assert len(place.list("events")) == 2


def test_equal_values_have_equal_names() -> None:
    assert short_digest({"a": 1, "b": [2]}) == short_digest({"b": [2], "a": 1})
    assert short_digest({"a": 1}) != short_digest({"a": 2})
    assert canonical({"ü": 1}) == '{"ü":1}'.encode()


def test_a_missing_file_is_a_missing_file(place: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        place.read("absent")
    assert place.list("absent") == []
    assert not place.exists("absent")


def test_what_is_no_json_is_called_damaged(place: Storage) -> None:
    place.replace("x.json", b"{")
    with pytest.raises(StorageError, match=r"x\.json is damaged"):
        place.read_json("x.json")


def test_removing_takes_a_folder_with_all_it_holds(place: Storage) -> None:
    place.replace("a/b/c", b"1")
    place.remove("a")
    assert not place.exists("a/b/c")


# ---- places that cannot be written


def test_below_a_regular_file_nothing_can_be_written(local: Storage) -> None:
    local.replace("file", b"")
    for path in ("file/x", "file/deep/er/x"):
        for write in (local.write_new, local.replace):
            with pytest.raises(StorageError, match=f"cannot write .*{path}"):
                write(path, b"")


@pytest.mark.parametrize("below", ["", "x", "x/y"])
def test_a_storage_at_a_regular_file_is_one_message(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot open .*Check the path"):
        Storage.open(tmp_path / "file" / below)


def test_an_unknown_kind_of_storage_is_one_message() -> None:
    with pytest.raises(StorageError, match="carrier-pigeon"):
        Storage.open("carrier-pigeon://loft")


# ---- folders


def test_what_was_published_opens(place: Storage, folder: Path) -> None:
    path = publish_folder(place, "models/m", folder, {"kind": "m"}, "model.json")
    opened, manifest = open_folder(place, path, "model.json")
    assert {name: (opened / name).read_bytes() for name in FILES} == FILES
    assert manifest["kind"] == "m"
    assert manifest["files"].keys() == FILES.keys()
    assert publish_folder(place, "models/m", folder, {"kind": "m"}, "model.json") == path
    assert publish_folder(place, "models/m", folder, {"kind": "n"}, "model.json") != path


@pytest.mark.parametrize("name", [name for name, data in FILES.items() if data])
def test_one_changed_byte_is_refused(local: Storage, folder: Path, name: str) -> None:
    path = publish_folder(local, "models/m", folder, {}, "model.json")
    file = Path(local.full(f"{path}/{name}"))
    file.write_bytes(b"?" + file.read_bytes()[1:])
    with pytest.raises(ModelError, match=f"{name} is missing or was changed"):
        open_folder(local, path, "model.json")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(place: Storage, folder: Path, name: str) -> None:
    path = publish_folder(place, "models/m", folder, {}, "model.json")
    place.remove(f"{path}/{name}")
    with pytest.raises(ModelError, match=f"{name} is missing or was changed"):
        open_folder(place, path, "model.json")


@pytest.mark.parametrize("changed", [b"{}", b"[]", b"{", b"\xff"])
def test_a_changed_manifest_is_refused(place: Storage, folder: Path, changed: bytes) -> None:
    path = publish_folder(place, "models/m", folder, {}, "model.json")
    place.replace(f"{path}/model.json", changed)
    with pytest.raises(ModelError, match=r"model\.json"):
        open_folder(place, path, "model.json")


def test_without_its_manifest_nothing_is_published(place: Storage, folder: Path) -> None:
    path = publish_folder(place, "models/m", folder, {}, "model.json")
    place.remove(f"{path}/model.json")
    with pytest.raises(ModelError, match="not a published artifact"):
        open_folder(place, path, "model.json")


def test_a_publication_that_dies_leaves_no_manifest(
    local: Storage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Storage.replace

    def dies(self: Storage, path: str, data: bytes) -> None:
        if path.endswith("weights.bin"):
            raise KeyboardInterrupt
        written(self, path, data)

    monkeypatch.setattr(Storage, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        publish_folder(local, "models/m", folder, {}, "model.json")
    assert not any(name.endswith("model.json") for name in everything_below(local))


def test_a_damaged_copy_of_a_remote_artifact_is_fetched_again(tmp_path: Path, folder: Path, home: Path) -> None:
    remote = Storage.open(f"memory://{tmp_path.name}")
    path = publish_folder(remote, "models/m", folder, {}, "model.json")
    copy, _ = open_folder(remote, path, "model.json")
    assert copy.is_relative_to(home)
    (copy / "weights.bin").write_bytes(b"rotten")
    (copy / "tables/item.bin").unlink()
    assert open_folder(remote, path, "model.json")[0] == copy
    assert {name: (copy / name).read_bytes() for name in FILES} == FILES


# ---- the code's own version


def test_a_changed_line_changes_the_version_of_its_room_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(rayrec.artifacts.__file__).parent
    copy = Path(shutil.copytree(package, tmp_path / "rayrec", ignore=shutil.ignore_patterns("__pycache__")))
    monkeypatch.setattr(rayrec.artifacts, "__file__", str(copy / "artifacts.py"))
    rooms = ("models", "metrics", "errors")
    before = {room: code_version(room) for room in rooms}
    (copy / "models" / "sasrec.py").write_text((copy / "models" / "sasrec.py").read_text() + "# changed\n")
    assert [room for room in rooms if code_version(room) != before[room]] == ["models"]
    assert code_version("models", "metrics") == code_version("metrics", "models")


def test_what_was_cut_off_is_no_artifact_but_is_found(place: Storage) -> None:
    place.write_new("datasets/d/.tmp-0123456789ab/partition/x.parquet", b"half")
    place.write_new("datasets/d/.tmp-0123456789ab/y.parquet", b"half")
    place.write_new("others/.tmp-0123456789ab", b"of another program")
    place.write_new("datasets/d/manifests/000001.json", b"{}")
    assert place.list("datasets/d") == ["manifests"]
    assert place.temporaries() == ["datasets/d/.tmp-0123456789ab"]


# ---- places that cannot be used


def test_a_bucket_that_is_not_there_is_not_made(object_store: dict[str, str]) -> None:
    with pytest.raises(StorageError, match="there is no such bucket"):
        Storage.open("s3://no-such-bucket/folder")


def test_an_object_store_that_does_not_answer_is_one_message(
    object_store: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3").clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="Could not connect to the endpoint"):
        Storage.open("s3://rayrec/folder")
    fsspec.filesystem("s3").clear_instance_cache()


def test_a_home_is_a_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYREC_HOME", "s3://bucket/home")
    with pytest.raises(StorageError, match="Set RAYREC_STORAGE to it instead"):
        Storage.open()


def test_the_default_storage_is_that_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYREC_HOME", str(tmp_path / "home"))
    assert Storage.open().uri == str(tmp_path / "home")
    monkeypatch.setenv("RAYREC_STORAGE", str(tmp_path / "elsewhere"))
    assert Storage.open().uri == str(tmp_path / "elsewhere")
