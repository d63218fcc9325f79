"""Files: what a source calls a file, a folder or a glob, in the order that breaks ties."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rayrec.artifacts import Storage
from rayrec.data import files
from rayrec.data.files import list_files, provide_sample
from rayrec.data.readers import read_blocks
from rayrec.errors import DataError
from rayrec.recipe_data import TableSource


@pytest.fixture
def folder(logs: Path) -> Path:
    """A folder as people have them."""
    for name in (
        "b.csv",
        "a.csv.gz",
        "sub/c.jsonl",
        "sub/empty.csv",
        "README.md",
        "_SUCCESS",
        ".hidden.csv",
        "_temporary/0/part.csv",
        ".ipynb_checkpoints/b.csv",
    ):
        path = logs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if "empty" in name else "user,item\n")
    return logs


def names(path: Path | str, store: Storage) -> list[str]:
    return [file.name for file in list_files([TableSource(path=str(path))], store)]


def test_a_file_is_itself(folder: Path, store: Storage) -> None:
    assert names(folder / "b.csv", store) == ["b.csv"]
    assert names(folder / "README.md", store) == ["README.md"]


def test_a_folder_is_its_readable_files_sorted_by_path(folder: Path, store: Storage) -> None:
    assert names(folder, store) == ["a.csv.gz", "b.csv", "sub/c.jsonl"]


def test_a_glob_is_what_matches_folders_included(folder: Path, store: Storage) -> None:
    assert names(folder / "*.csv*", store) == ["a.csv.gz", "b.csv"]
    assert names(folder / "s*", store) == ["sub/c.jsonl"]
    assert names(folder / "**" / "*.jsonl", store) == ["sub/c.jsonl"]


def test_a_name_with_the_characters_of_a_glob_is_a_name(logs: Path, store: Storage) -> None:
    (logs / "log[1] 100%#.csv").write_text("user,item\n")
    assert names(logs / "log[1] 100%#.csv", store) == ["log[1] 100%#.csv"]


def test_files_are_numbered_by_source_then_path(folder: Path, store: Storage) -> None:
    found = list_files([TableSource(path=str(folder / "sub")), TableSource(path=str(folder))], store)
    assert [(file.source, file.ordinal, file.name) for file in found] == [
        (0, 0, "c.jsonl"),
        (1, 1, "a.csv.gz"),
        (1, 2, "b.csv"),
        (1, 3, "sub/c.jsonl"),
    ]


@pytest.mark.parametrize("path", ["missing.csv", "missing/*.csv", "_temporary", "https://[broken"])
def test_what_leads_to_no_file_is_refused(folder: Path, store: Storage, path: str) -> None:
    (folder / "_temporary" / "0" / "part.csv").unlink()
    with pytest.raises(DataError, match="Check `path` in the recipe"):
        names(path if "://" in path else folder / path, store)


def test_links_that_lead_in_circles_are_not_followed(folder: Path, store: Storage) -> None:
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "again").symlink_to(folder)
    assert names(folder, store) == ["a.csv.gz", "b.csv", "sub/c.jsonl"]
    assert names(folder / "again", store) == ["a.csv.gz", "b.csv", "sub/c.jsonl"]


@pytest.mark.parametrize("target", ["nowhere", "link.csv"])
def test_a_link_that_leads_nowhere_is_refused(folder: Path, store: Storage, target: str) -> None:
    (folder / "link.csv").symlink_to(target)
    for path in (folder, folder / "link.csv"):
        with pytest.raises(DataError, match="Check `path` in the recipe"):
            names(path, store)


def test_a_folder_may_be_named_like_a_file(folder: Path, store: Storage) -> None:
    (folder / "sub").rename(folder / "sub.csv")
    assert names(folder / "sub.csv", store) == ["c.jsonl"]
    assert names(folder, store) == ["a.csv.gz", "b.csv", "sub.csv/c.jsonl"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["sub", "b.csv"])
def test_what_may_not_be_read_is_refused_and_not_passed_over(folder: Path, store: Storage, name: str) -> None:
    (folder / name).chmod(0)
    source = TableSource(path=str(folder))
    with pytest.raises(DataError, match="Permission denied"):
        for file in list_files([source], store):
            list(read_blocks(file.uri, source, None))
    (folder / name).chmod(0o755)


def test_variables_in_a_path_are_read_when_it_is_opened_and_never_shown(
    folder: Path, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGS", str(folder))
    source = TableSource(path="${LOGS}/sub")
    (file,) = list_files([source], store)
    assert (file.uri, file.name) == ("file://${LOGS}/sub/c.jsonl", "c.jsonl")
    with pytest.raises(DataError, match=r"^file://\$\{LOGS\}/sub/c.jsonl: there is no column '0'"):
        list(read_blocks(file.uri, source, [0]))
    monkeypatch.delenv("LOGS")
    with pytest.raises(DataError, match="the environment has no LOGS"):
        list_files([source], store)


def test_only_empty_files_are_refused(folder: Path, store: Storage) -> None:
    with pytest.raises(DataError, match="the file is empty"):
        names(folder / "sub" / "empty.csv", store)


def test_an_interrupted_simulation_is_made_again(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SIMULATION", {"users": 20, "items": 20, "events": 200, "seed": 1})

    def interrupted(_simulation: object, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "events.csv").write_text("user_id,it")
        raise KeyboardInterrupt

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(files.simulator, "write", interrupted)
        provide_sample("simulated", store)
    folder = Path(provide_sample("simulated", store))
    assert (folder / "events.csv").read_text().count("\n") == 201
    assert {path.name for path in folder.iterdir()} == {"events.csv", "items.csv", "SIMULATED.txt"}
