"""Arrays on disk: what is written is read, little of it is held, and no room is an error before anything is written."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rayrec.data.on_disk import on_disk
from rayrec.errors import StorageError

LENGTH = 1 << 22
"""32 MiB of int64."""


def test_what_is_written_is_read_in_memory_of_its_own() -> None:
    array = on_disk(1000, np.int64)
    assert not array[:].any()
    array[np.arange(0, 1000, 2)] = np.arange(500)
    array[1:4:2] = -1
    assert array[:6].tolist() == [0, -1, 1, -1, 2, 0]
    assert array[np.array([998, 2])].tolist() == [499, 1]
    assert int(array[998]) == 499
    assert type(array + 1) is np.ndarray
    assert (array == -1).sum() == 2
    read = array[:2]
    read[:] = 7
    assert array[:2].tolist() == [0, -1]
    assert not len(on_disk(0, np.int8))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells how much of its files a process holds")
def test_what_was_read_or_written_is_not_held() -> None:
    array, before = on_disk(LENGTH, np.int64), held()
    for first in range(0, LENGTH, LENGTH // 8):
        block = slice(first, first + LENGTH // 8)
        array[block] = np.arange(first, first + LENGTH // 8)
        assert held() - before < 1 << 20
        assert int(array[block].sum()) == sum(range(first, first + LENGTH // 8))
        assert held() - before < 1 << 20


def held() -> int:
    """Bytes of files that this process holds."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) * 1024


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files of at most 1 MiB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_without_room_it_is_said_what_to_do(small_files: None) -> None:
    with pytest.raises(StorageError, match=r"no room for 33\.6 MB of a view's events in .* Set TMPDIR"):
        on_disk(LENGTH, np.int64)


def test_another_folder_than_the_one_asked_for_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(StorageError, match=r"TMPDIR = .*nowhere cannot be written to"):
        on_disk(1, np.int64)


def test_its_file_is_gone_with_the_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    array = on_disk(1000, np.int8)
    array[:] = 1
    assert not list(tmp_path.iterdir())
