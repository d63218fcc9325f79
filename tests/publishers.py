"""Publishers to be killed: they publish versions of a Dataset and of a model, one after the other, until they die."""

from __future__ import annotations

import os
import tempfile
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa

from rayrec.artifacts import Storage, canonical, digest, open_folder, publish_folder
from rayrec.data.dataset import SCHEMA, open_dataset, publish_manifest, read_part, write_table
from rayrec.errors import DataError

ROWS = 50_000
TABLES = ("events", "items", "users", "vocab")
MANIFEST = "model.json"


def publish_forever(uri: str, first: int, environment: dict[str, str]) -> None:
    """Publish versions ``first``, ``first + 1``, ... into a storage."""
    os.environ.update(environment)
    storage = Storage.open(uri)
    for version in count(first):
        tables = {name: write_table(storage, "d", name, _table(name, version)) for name in TABLES}
        statistics = canonical({"version": version})
        path = storage.write_content("datasets/d/statistics", statistics, ".json")
        manifest = {
            "schema": SCHEMA,
            "version": version,
            "files": [],
            "events": [tables["events"]],
            "items": tables["items"],
            "users": tables["users"],
            "vocab": {"item": tables["vocab"]},
            "statistics": {"path": path, "sha256": digest(statistics)},
            "quarantine": [],
            "counts": {},
        }
        publish_manifest(storage, "d", manifest)
        with tempfile.TemporaryDirectory() as folder:
            for part in ("dense", "table"):
                Path(folder, part).write_bytes(_weights(version))
            publish_folder(storage, "models/m", Path(folder), {"version": version}, MANIFEST)


def latest_version(storage: Storage) -> int:
    """Read everything that is published. Returns the Dataset's latest version; -1 when there is none.

    Raises:
        DataError: What is published is not whole.
        ModelError: The same.
        AssertionError: It is a mixture of versions.
    """
    for name in storage.list("models/m"):
        path = f"models/m/{name}"
        if storage.exists(f"{path}/{MANIFEST}"):
            folder, manifest = open_folder(storage, path, MANIFEST)
            assert all(Path(folder, part).read_bytes() == _weights(manifest["version"]) for part in ("dense", "table"))
    if not storage.list("datasets/d/manifests"):
        return -1
    manifest = open_dataset(storage, "d").manifest
    version = int(manifest["version"])
    parts = [*manifest["events"], manifest["items"], manifest["users"], manifest["vocab"]["item"]]
    for name, part in zip(TABLES, parts, strict=True):
        if read_part(storage, part) != _table(name, version):
            raise DataError(f"version {version} holds another version's {name}")
    assert storage.read_json(manifest["statistics"]["path"]) == {"version": version}
    return version


def _table(name: str, version: int) -> pa.Table:
    rng = np.random.default_rng([TABLES.index(name), version])
    return pa.table({name: rng.integers(1 << 60, size=ROWS)})


def _weights(version: int) -> bytes:
    return np.random.default_rng(version).bytes(1 << 20)
