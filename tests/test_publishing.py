"""Publishing is all or nothing: whoever reads while publishers are killed finds the whole old or new artifact."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest
from tests.publishers import latest_version, publish_forever

from rayrec.artifacts import Storage

KILLS, KILLS_ON_S3 = 10, 5
# Long enough for a few versions on a slow disk, after which nothing new is learned.
LONGEST_LIFE = 0.4

CONTEXT = multiprocessing.get_context("forkserver")


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A storage on disk, and one on a real S3 server."""
    monkeypatch.setenv("RAYREC_HOME", str(tmp_path / "home"))
    if request.param == "local":
        return Storage.open(tmp_path / "storage")
    request.getfixturevalue("object_store")
    return Storage.open(f"s3://rayrec/{tmp_path.name}")


def test_a_reader_never_sees_half_of_what_a_killed_publisher_left(place: Storage) -> None:
    # The children are forked from a process that has imported everything: each is at work at once.
    CONTEXT.set_forkserver_preload(["tests.publishers"])
    version = -1
    for _ in range(KILLS_ON_S3 if place.uri.startswith("s3:") else KILLS):
        publisher = CONTEXT.Process(target=publish_forever, args=(place.uri, version + 1, dict(os.environ)))
        publisher.start()
        deadline = time.monotonic() + 60
        before = len(place.list("datasets/d/events"))
        while len(place.list("datasets/d/events")) == before:
            assert publisher.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)  # polls another process's files
        time.sleep(random.uniform(0, LONGEST_LIFE))
        publisher.kill()
        publisher.join()
        found = latest_version(place)
        assert found >= version, "what was published once is there for good"
        version = found
    assert version > 0, "none lived long enough to publish"


def test_readers_beside_a_publisher_see_whole_versions(place: Storage) -> None:
    publisher = CONTEXT.Process(target=publish_forever, args=(place.uri, 0, dict(os.environ)))
    publisher.start()
    try:
        seen = []
        deadline = time.monotonic() + 60
        while len(set(seen)) < 3:
            assert publisher.is_alive() and time.monotonic() < deadline
            seen.append(latest_version(place))
    finally:
        publisher.kill()
        publisher.join()
    assert seen == sorted(seen)
