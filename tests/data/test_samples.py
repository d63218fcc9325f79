"""Public samples: fetched once, verified, unpacked whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest

from rayrec.data import samples
from rayrec.errors import DataError

NAME = "movielens-100k"
FILES = {"LICENSE.txt", "items.tsv", "ratings.tsv", "sample.json", "users.tsv"}


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.fetch(NAME, tmp_path_factory.mktemp("samples") / NAME)


@pytest.fixture
def folder(downloaded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(downloaded, tmp_path / "sample"))


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise AssertionError("pip was called")

    monkeypatch.setattr(subprocess, "run", refuse)


def answer_with_failure(monkeypatch: pytest.MonkeyPatch, stderr: str) -> None:
    failure = subprocess.CompletedProcess(["pip"], returncode=1, stdout="", stderr=stderr)
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_kwargs: failure)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def test_movielens_100k_has_all_ratings_items_and_users(downloaded: Path) -> None:
    assert {path.name for path in downloaded.iterdir()} == FILES
    header = 1
    assert lines(downloaded / "ratings.tsv") == 100_000 + header
    assert lines(downloaded / "items.tsv") == 1_682 + header
    assert lines(downloaded / "users.tsv") == 943 + header


def test_the_terms_of_the_dataset_lie_next_to_it(downloaded: Path) -> None:
    notice = (downloaded / "LICENSE.txt").read_text(encoding="utf-8")
    assert "research purposes" in notice
    assert "no redistribution" in notice
    assert "Harper" in notice
    assert samples.SAMPLES[NAME].terms_url in notice


def test_the_manifest_names_the_sample_and_its_source(downloaded: Path) -> None:
    manifest = json.loads((downloaded / "sample.json").read_text(encoding="utf-8"))
    assert manifest["name"] == NAME
    assert manifest["source"]["wheel"] == "recbole==1.2.1"
    assert manifest["files"].keys() == FILES - {"sample.json"}


@pytest.mark.usefixtures("no_downloads")
def test_an_unchanged_sample_is_not_downloaded_again(folder: Path) -> None:
    assert samples.fetch(NAME, folder) == folder


def test_a_changed_file_is_fetched_again_and_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    original = (folder / "ratings.tsv").read_bytes()
    (folder / "ratings.tsv").write_text("edited\n")
    with caplog.at_level(logging.WARNING):
        samples.fetch(NAME, folder)
    assert (folder / "ratings.tsv").read_bytes() == original
    assert "were changed" in caplog.text


def test_concurrent_callers_both_get_the_whole_sample(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = list(pool.map(lambda _: samples.fetch(NAME, folder), range(2)))
    assert results == [folder, folder]
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


def test_a_wheel_with_another_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tampered = dataclasses.replace(samples.SAMPLES[NAME], sha256="0" * 64)
    monkeypatch.setattr(samples, "SAMPLES", {NAME: tampered})
    with pytest.raises(DataError, match=r"has sha256 9c99.*expected 0000.*--data simulated"):
        samples.fetch(NAME, tmp_path / "sample")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_pip_is_reported_with_its_last_line_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with_failure(monkeypatch, "WARNING: retrying\nERROR: No matching distribution found\n")
    with pytest.raises(DataError, match=r": ERROR: No matching distribution found\..*--data simulated") as caught:
        samples.fetch(NAME, tmp_path / "sample")
    assert "retrying" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_silent_index_is_reported_as_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise subprocess.TimeoutExpired("pip", 300)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(DataError, match=r"no answer within 300 s.*--data simulated"):
        samples.fetch(NAME, tmp_path / "sample")


def test_a_missing_interpreter_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples.sys, "executable", str(tmp_path / "absent"))  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"pip could not be started"):
        samples.fetch(NAME, tmp_path / "sample")


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Did you mean 'movielens-100k'"):
        samples.fetch("movielens100k", tmp_path / "sample")


@pytest.mark.usefixtures("no_downloads")
def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ratings.tsv").write_text("my own\n")
    with pytest.raises(DataError, match="not empty and holds no sample"):
        samples.fetch(NAME, tmp_path)
    assert (tmp_path / "ratings.tsv").read_text() == "my own\n"


@pytest.mark.usefixtures("no_downloads")
def test_a_folder_with_another_sample_is_left_alone(folder: Path) -> None:
    with pytest.raises(DataError, match="holds sample 'movielens-100k'"):
        samples.fetch("movielens-1m", folder)


@pytest.mark.usefixtures("no_downloads")
def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sample").write_text("")
    with pytest.raises(DataError, match="it is a file"):
        samples.fetch(NAME, tmp_path / "sample")


@pytest.mark.usefixtures("no_downloads")
def test_an_unwritable_place_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Choose a writable folder"):
        samples.fetch(NAME, tmp_path / "file" / "sample")


def test_target_names_are_plain_file_names() -> None:
    for sample in samples.SAMPLES.values():
        assert sample.members.keys() == {"ratings.tsv", "items.tsv", "users.tsv"}
