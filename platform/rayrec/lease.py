"""Leases: one process at a time does something to a storage, and one that was killed keeps nobody waiting."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import psutil

from rayrec.artifacts import Json, Storage, canonical
from rayrec.errors import StorageError

_LOG = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
"""How often a holder says that it is still there."""
SILENT_SECONDS = 60.0
"""After which a holder on another machine counts as dead."""
CLOCK_SECONDS = 1.0
"""Two times of a process's start that differ by less are the same."""


@contextmanager
def lease(storage: Storage, path: str, what: str) -> Iterator[None]:
    """Hold a lease while the block runs.

    Whether its holder is alive is asked of the system where that is this machine, and known by its last beat elsewhere.

    Args:
        storage: What is done something to.
        path: Of the lease's file there.
        what: What is under way, for whoever comes second.

    Raises:
        StorageError: Another process holds it.
    """
    held = _content()
    while not storage.write_new(path, canonical(held)):
        _give_way(storage, path, held, what)
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(storage, path, held, over), daemon=True)
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join()
        try:
            with suppress(FileNotFoundError):
                storage.remove(path)
        except StorageError as error:
            # What went wrong before is what matters.
            _LOG.warning("%s", error)


def _content() -> Json:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    process = psutil.Process()
    return {"host": socket.gethostname(), "process": process.pid, "began": process.create_time(), "since": since}


def _give_way(storage: Storage, path: str, held: Json, what: str) -> None:
    """Remove a lease that its holder left behind; refuse one that is held."""
    try:
        other, last = storage.read_json(path), storage.modified(path)
    except FileNotFoundError:
        return
    if not held.keys() <= other.keys():
        # Not even that was written whole.
        other = {**held, "process": 0}
    here = other["host"] == socket.gethostname()
    if _runs(other) if here else time.time() - last < SILENT_SECONDS:
        later = "" if here else f" If it was killed, {SILENT_SECONDS:.0f} seconds after that the same command goes on."
        raise StorageError(
            f"{what} by process {other['process']} on {other['host']}, since {other['since']}. Wait for it, or end it."
            f"{later}"
        )
    with suppress(FileNotFoundError):
        storage.remove(path)


def _runs(holder: Json) -> bool:
    try:
        return abs(psutil.Process(holder["process"]).create_time() - holder["began"]) < CLOCK_SECONDS
    except psutil.NoSuchProcess:
        return False


def _beat(storage: Storage, path: str, held: Json, over: threading.Event) -> None:
    while not over.wait(BEAT_SECONDS):
        try:
            storage.replace(path, canonical(held))
        except StorageError as error:
            _LOG.warning("%s", error)
