"""Arrays too large for memory: in files of this machine, of which no more is held than was asked for last."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rayrec.errors import StorageError


class OnDisk(np.ndarray):
    """An array in a file. What is read of it is a copy, after which its pages may leave memory again."""

    pages: mmap.mmap

    def __array_finalize__(self, whole: np.ndarray | None) -> None:
        if isinstance(whole, OnDisk):
            self.pages = whole.pages

    def __getitem__(self, where: Any) -> Any:
        found = np.array(super().__getitem__(where))[()]
        self._forget()
        return found

    def __setitem__(self, where: Any, values: Any) -> None:
        # Of a subclass numpy writes to what `__getitem__` returns, which is a copy here.
        self.view(np.ndarray)[where] = values
        self._forget()

    def __reduce__(self) -> Any:
        """Another process gets a copy, in memory."""
        return np.array(self.view(np.ndarray)).__reduce__()

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> Any:
        """What is computed from it is in memory."""
        return array[()] if return_scalar else array

    def _forget(self) -> None:
        # Of a file's pages nothing is lost by it: what was written is the kernel's to bring to the disk.
        self.pages.madvise(mmap.MADV_DONTNEED)


def on_disk(length: int, dtype: npt.DTypeLike) -> np.ndarray:
    """An array of zeros in the folder for temporary files (``TMPDIR``).

    The file has no name: its room is free again when the array or the process is gone.

    Raises:
        StorageError: There is no room for it.
    """
    if not length:
        return np.empty(0, dtype)
    size, wanted = length * np.dtype(dtype).itemsize, os.environ.get("TMPDIR")
    if wanted and Path(wanted).resolve() != Path(tempfile.gettempdir()).resolve():
        # Python takes another folder without a word; `/tmp` may well be memory.
        raise StorageError(f"TMPDIR = {wanted} cannot be written to. Set it to a folder with room for a view's events.")
    try:
        with tempfile.TemporaryFile(prefix="rayrec-") as file:
            _reserve(file.fileno(), size)
            pages = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise StorageError(
            f"There is no room for {size / 1e6:,.1f} MB of a view's events in {tempfile.gettempdir()} "
            f"({error.strerror}). Set TMPDIR to a folder on a larger disk, or raise training.memory_mb, which has them "
            "held in memory."
        ) from error
    array = np.frombuffer(pages, dtype).view(OnDisk)
    array.pages = pages
    return array


def _reserve(file: int, size: int) -> None:
    """Make a file so long, with room on the disk: a disk found full when a page is written to ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        # macOS has none.
        os.ftruncate(file, size)
