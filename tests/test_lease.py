"""Leases: one at a time, and nobody waits for the dead."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rayrec.lease
from rayrec.artifacts import Storage
from rayrec.errors import StorageError
from rayrec.lease import SILENT_SECONDS, lease

HOLDER = """
import sys, time
from rayrec.artifacts import Storage
from rayrec.lease import lease
with lease(Storage.open(sys.argv[1]), "room/lease", "it"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_process_at_a_time_and_nobody_waits_for_one_that_was_killed(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with (
                pytest.raises(StorageError, match=f"^it is under way by process {holder.pid} on .*Wait for it"),
                lease(storage, "room/lease", "it is under way"),
            ):
                pytest.fail("two of them")
        finally:
            holder.send_signal(signal.SIGKILL)
    with lease(storage, "room/lease", "it"):
        assert json.loads(storage.read("room/lease"))["process"] == os.getpid()
    assert not storage.exists("room/lease")


def test_a_process_of_the_same_number_is_not_the_one_that_was_killed(storage: Storage) -> None:
    with lease(storage, "lease", "it"):
        held = storage.read_json("lease")
    storage.replace("lease", json.dumps({**held, "began": held["began"] - 100}).encode())
    with lease(storage, "lease", "it"):
        assert storage.read_json("lease")["began"] == held["began"]


def test_a_lease_that_says_nothing_is_nobodys(storage: Storage) -> None:
    storage.replace("lease", b"{}")
    with lease(storage, "lease", "it"):
        assert storage.read_json("lease")["process"] == os.getpid()


def test_what_fails_under_a_lease_is_what_is_told(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        with lease(storage, "room/lease", "it"):
            shutil.rmtree(storage.full("room"))
            Path(storage.full("room")).touch()
            raise StorageError("what matters")

    with pytest.raises(StorageError, match="what matters"):
        fail()
    assert "cannot remove" in caplog.text


def test_a_holder_elsewhere_is_there_as_long_as_it_says_so(storage: Storage) -> None:
    other = {"host": "elsewhere", "process": os.getpid(), "began": 0.0, "since": "2026-01-01T00:00:00+00:00"}
    storage.replace("lease", json.dumps(other).encode())
    with pytest.raises(StorageError, match=r"on elsewhere.*60 seconds after"), lease(storage, "lease", "it"):
        pytest.fail("two of them")
    silent = time.time() - SILENT_SECONDS - 1
    os.utime(storage.full("lease"), (silent, silent))
    with lease(storage, "lease", "it"):
        assert storage.read_json("lease")["host"] != "elsewhere"


def test_a_holder_says_that_it_is_there(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rayrec.lease, "BEAT_SECONDS", 0.05)
    with lease(storage, "lease", "it"):
        os.utime(storage.full("lease"), (0, 0))
        deadline = time.monotonic() + 10
        while storage.modified("lease") == 0 and time.monotonic() < deadline:
            time.sleep(0.01)  # polls what another thread writes
        assert storage.modified("lease") > 0
