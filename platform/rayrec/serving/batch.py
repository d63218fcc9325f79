"""Recommendations for everybody at once, by the engine that answers over HTTP."""

from __future__ import annotations

import glob
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data

from rayrec.artifacts import Storage
from rayrec.data.dataset import open_dataset
from rayrec.data.passes import Shared, share
from rayrec.data.tasks import result
from rayrec.errors import StorageError
from rayrec.inference.release import Release
from rayrec.serving.engine import Engine, histories_of
from rayrec.serving.state import DatasetHistories

SCHEMA = pa.schema(
    [
        ("user", pa.string()),
        ("rank", pa.int32()),
        ("item", pa.string()),
        ("score", pa.float32()),
        ("source", pa.string()),
    ]
)
"""A row for each user and place: ``rank`` counts from 1, ``source`` is ``model`` or ``popular``."""
RELEASE = b"rayrec.release"
"""Of the file's metadata: the Release that answered."""
USERS_AT_A_TIME = 1024


def recommend_all(release: Release, count: int, out: Path) -> int:
    """Write the best items of every user of a Release's Dataset into a Parquet file, users in the Dataset's order.

    The file is put in place whole, or not at all.

    Args:
        release: Whose model answers.
        count: Items of each user; fewer where no more are left.
        out: The file; what was there is replaced.

    Returns:
        How many users there are.

    Raises:
        ModelError: The Release is damaged.
        StorageError: The file cannot be written.
    """
    dataset = release.content["dataset"]
    keys = open_dataset(release.storage, dataset["name"], dataset["manifest"]).vocabulary("user")["key"]
    histories = Shared(ray.remote(_by_position).remote(release))
    # Once alone first: an error in one of Ray Data's processes arrives wrapped in several others.
    result(ray.remote(_check).remote(release.storage, release.digest, histories))
    blocks = max(1, math.ceil(len(keys) / USERS_AT_A_TIME))
    settings = {"storage": release.storage, "digest": release.digest, "count": count}
    shared = {"histories": histories, "keys": share(keys.combine_chunks())}
    answers = ray.data.range(len(keys), override_num_blocks=blocks).map_batches(
        _answers, fn_kwargs=settings | shared, batch_size=USERS_AT_A_TIME, num_cpus=1
    )
    answers.context.execution_options.preserve_order = True
    written = 0
    with _whole(out) as path, pq.ParquetWriter(path, SCHEMA.with_metadata({RELEASE: release.digest})) as writer:
        for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
            writer.write_table(batch.cast(SCHEMA).replace_schema_metadata())
            written += pc.sum(pc.equal(batch["rank"], 1)).as_py() or 0
    return written


def is_ours(path: Path) -> bool:
    """Whether `recommend_all` wrote a file, which it may then write over."""
    try:
        return RELEASE in (pq.read_schema(path).metadata or {})
    except (pa.ArrowInvalid, OSError):
        return False


def _answers(batch: dict[str, np.ndarray], **settings: Any) -> pa.Table:
    return answers_of(**settings)(batch)


@lru_cache(maxsize=1)
def answers_of(storage: Storage, digest: str, count: int, histories: Shared, keys: Shared) -> Answers:
    """What a process answers with, loaded once. Not an actor of Ray Data: it warns of each one that has arguments."""
    known = histories.value
    return Answers(Engine.load(storage, digest, known=lambda *_: known), known, keys.value, count)


@dataclass(frozen=True)
class Answers:
    """The engine, and whom it answers.

    Attributes:
        engine: The engine.
        histories: Of all users.
        keys: Of all users, ``[U]`` strings; null where they were erased.
        count: Items of each.
    """

    engine: Engine
    histories: DatasetHistories
    keys: pa.Array
    count: int

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """Positions of users, ``id``, to `SCHEMA`; erased users have no rows."""
        places = [int(place) for place in batch["id"] if self.keys[int(place)].is_valid]
        queries = [self.engine.history_query(self.histories.at(place), self.count, 0) for place in places]
        found = self.engine.ranked(queries)
        lengths = [len(ranked.keys) for ranked in found]
        items = [key for ranked in found for key in ranked.keys]
        columns: dict[str, Any] = {
            "user": self.keys.take(pa.array(np.repeat(places, lengths).astype(np.int64))),
            "rank": np.concatenate([np.arange(1, length + 1) for length in [0, *lengths]]),
            "item": pa.array(items, pa.string()),
            "score": np.concatenate([np.zeros(0, np.float32), *(ranked.scores for ranked in found)]),
            "source": pa.array(np.repeat([ranked.source for ranked in found], lengths).tolist(), pa.string()),
        }
        return pa.table(columns).cast(SCHEMA)


def _by_position(release: Release) -> DatasetHistories:
    """Without the keys, of which each process would have a copy of its own."""
    found = histories_of(release)
    return replace(found, users=replace(found.users, users={}))


def _check(storage: Storage, digest: str, histories: Shared) -> None:
    """Whether the engine loads."""
    Engine.load(storage, digest, known=lambda *_: histories.value)


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A file beside ``out``, or beside what that links to, that takes its place when the block ends well."""
    target, here = out.resolve(), f".rayrec-{socket.gethostname()}-"
    beside = target.with_name(f"{here}{os.getpid()}.part")
    try:
        for left in target.parent.glob(f"{glob.escape(here)}*.part"):
            # A command that was killed could not remove its own.
            if not psutil.pid_exists(int(left.stem.removeprefix(here))):
                left.unlink(missing_ok=True)
        yield beside
        beside.replace(target)
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"{out} cannot be written: {reason}. Choose another file, or make room.") from error
    finally:
        beside.unlink(missing_ok=True)
