"""Datasets and views as their readers see them: by the keys of the logs, whatever indexes and files they have."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from rayrec.artifacts import Json, digest
from rayrec.data.dataset import Dataset, manifest_numbers, open_dataset, read_part, read_statistics
from rayrec.data.segments import read_partition
from rayrec.data.views import load_view, open_view


def keys_of(dataset: Dataset, table: str) -> list[str | None]:
    """Each key at the place of its index."""
    return [None, *dataset.vocabulary(table)["key"].to_pylist()]


def events_of(dataset: Dataset) -> dict[str | None, list[tuple[Any, ...]]]:
    """Of each user the events, in order: item, type, value, timestamp and context."""
    users, items = keys_of(dataset, "user"), keys_of(dataset, "item")
    segments = dataset.manifest["events"]
    context = sorted({name for segment in segments for name in segment["context"]})
    columns = ["item", "type", "value", "timestamp", *context]
    found: dict[str | None, list[tuple[Any, ...]]] = {}
    for partition in sorted({segment["partition"] for segment in segments}):
        log = read_partition(dataset.storage, segments, partition, dataset.ranks, columns)
        for row in log.to_pylist():
            event = (items[row["item"]], *(row[name] for name in columns[1:]))
            found.setdefault(users[row["user"]], []).append(event)
    return found


def vocabulary_of(dataset: Dataset, table: str) -> dict[str | None, tuple[Any, ...]]:
    """Of each key: first and last seen, events, state."""
    rows = dataset.vocabulary(table).to_pylist()
    return {row["key"]: (row["first_seen"], row["last_seen"], row["events"], row["state"]) for row in rows}


def quarantine_of(dataset: Dataset) -> list[tuple[Any, ...]]:
    """Every rejected row."""
    tables = [read_part(dataset.storage, listed) for listed in dataset.manifest["quarantine"]]
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    return sorted((row["source"], row["file"], row["row"], row["reason"], row["text"]) for row in rows)


def sequences_of(dataset: Dataset, view: str) -> dict[str | None, list[tuple[str, int]]]:
    """Of each user of a view the sequence: item and fold."""
    loaded, users = load_view(dataset, view), keys_of(dataset, "user")
    found = {}
    for place, user in enumerate(loaded.users.tolist()):
        folds = loaded.folds[loaded.histories.offsets[place] : loaded.histories.offsets[place + 1]].tolist()
        items = [loaded.item_keys[item - 1] for item in loaded.histories[place]]
        found[users[user]] = list(zip(items, folds, strict=True))
    return found


def item_counts_of(dataset: Dataset, view: str) -> dict[str | None, int]:
    """Of each item of a view its events."""
    rows = read_part(dataset.storage, open_view(dataset, view)["items"]).to_pylist()
    return {keys_of(dataset, "item")[row["index"]]: row["events"] for row in rows}


def everything(dataset: Dataset, view: str) -> Json:
    """All that must not depend on how a Dataset came to be."""
    manifest, of_view = dataset.manifest, open_view(dataset, view)
    return {
        "events": events_of(dataset),
        "users": vocabulary_of(dataset, "user"),
        "items": vocabulary_of(dataset, "item"),
        "quarantine": quarantine_of(dataset),
        "statistics": read_statistics(dataset),
        **{key: manifest[key] for key in ("counts", "reasons", "time_range_ms", "order", "deduplicate")},
        "files": {(file["source"], file["name"]): (file["size"], file["rows"]) for file in manifest["files"]},
        "sequences": sequences_of(dataset, view),
        "item counts": item_counts_of(dataset, view),
        "view": {key: of_view[key] for key in ("counts", "filtered")},
    }


def read_all(dataset: Dataset) -> None:
    """Read every file that every version lists; a DataError or another digest says what is not whole."""
    for number in manifest_numbers(dataset.storage, dataset.name):
        version = open_dataset(dataset.storage, dataset.name, number)
        for listed in version.parts():
            if listed["path"].endswith(".parquet"):
                assert read_part(dataset.storage, listed).num_rows == listed["rows"]
            else:
                assert digest(dataset.storage.read(listed["path"])) == listed["sha256"]
