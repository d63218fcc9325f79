"""Views: the sequences a model sees, after filters, each event with its fold. Rebuildable from the log at any time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rayrec.artifacts import Json
from rayrec.data.dataset import Dataset, read_part
from rayrec.errors import DataError
from rayrec.features.histories import Empty, Histories


@dataclass(frozen=True)
class Sequences:
    """A view, its events in memory or on disk.

    Attributes:
        users: ``[U]`` int64, index of each user in the vocabulary.
        histories: The events of these users as item rows, from 1 to ``len(item_indexes)``.
        folds: ``[N]`` int8, the fold of each event: 0 train, 1 validation, 2 test.
        item_indexes: ``[V]`` int64, index in the vocabulary of each item row from 1 on.
        item_keys: The key of each item row from 1 on.
        empty: Makes arrays where those of the events are.
    """

    users: np.ndarray
    histories: Histories
    folds: np.ndarray
    item_indexes: np.ndarray
    item_keys: list[str]
    empty: Empty = np.empty

    def fold(self, *folds: int) -> Histories:
        """The events of these folds; users stay, if need be with none."""
        return self.histories.keep(self.folds, folds, self.empty)


def latest_view(dataset: Dataset) -> str:
    """The view of this version of a Dataset that was written last.

    Raises:
        DataError: There is none.
    """
    base = f"{dataset.path}/views"
    mine = [view for view in dataset.storage.list(base) if _is_of(dataset, f"{base}/{view}/view.json")]
    if not mine:
        raise DataError(f"Dataset '{dataset.name}' has no view of its manifest {dataset.number}. Run `rayrec prepare`.")
    return max(mine, key=lambda view: dataset.storage.modified(f"{base}/{view}/view.json"))


def _is_of(dataset: Dataset, manifest: str) -> bool:
    exists = dataset.storage.exists(manifest)
    return exists and bool(dataset.storage.read_json(manifest)["dataset"] == dataset.digest)


def open_view(dataset: Dataset, view: str) -> Json:
    """The manifest of a view.

    Raises:
        DataError: It is not there.
    """
    try:
        return dataset.storage.read_json(f"{dataset.path}/views/{view}/view.json")
    except FileNotFoundError as error:
        raise DataError(f"Dataset '{dataset.name}' has no view {view}. Run `rayrec prepare` again.") from error


def load_view(dataset: Dataset, view: str, empty: Empty = np.empty) -> Sequences:
    """A whole view, users in the order of their index.

    Args:
        dataset: The Dataset.
        view: Digest of the view.
        empty: Makes the arrays of its events: in memory by default, or `rayrec.data.on_disk.on_disk`.

    Raises:
        DataError: It is not there, or damaged.
        StorageError: There is no room for it.
    """
    manifest = open_view(dataset, view)
    item_indexes = read_part(dataset.storage, manifest["items"], ["index"])["index"].to_numpy()
    vocabulary = dataset.vocabulary("item")
    rows = np.zeros(vocabulary.num_rows + 1, dtype=np.int64)
    rows[item_indexes] = np.arange(1, len(item_indexes) + 1)
    fold = f"fold_{manifest['split']['kind'].replace('-', '_')}"
    columns = {"items": np.int64, fold: np.int8}
    if dataset.manifest["order"] == "timestamp":
        columns["timestamps"] = np.int64
    users, offsets, places = _layout(dataset, manifest, fold)
    events = {name: empty(int(offsets[-1]), dtype) for name, dtype in columns.items()}
    written = 0
    for shard in manifest["shards"]:
        table = read_part(dataset.storage, shard, list(columns))
        where = _spread(places[written : written + len(table)], table[fold].combine_chunks())
        for name, array in events.items():
            values = table[name].combine_chunks().flatten().to_numpy()
            array[where] = rows[values] if name == "items" else values // 1000 if name == "timestamps" else values
        written += len(table)
    return Sequences(
        users=users,
        histories=Histories(offsets, events["items"], events.get("timestamps")),
        folds=events[fold],
        item_indexes=item_indexes,
        item_keys=vocabulary["key"].take(pa.array(item_indexes - 1)).to_pylist(),
        empty=empty,
    )


def _layout(dataset: Dataset, manifest: Json, fold: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the events of each user go, when users stand in the order of their index.

    Returns:
        The users (``[U]`` int64, rising), their offsets (``[U + 1]`` int64), and where the events of each row of the
        shards, one shard after the other, begin (``[U]`` int64).
    """
    # Folds are the shortest of what has an entry for each event.
    tables = (read_part(dataset.storage, shard, ["user", fold]) for shard in manifest["shards"])
    read = [(table["user"].to_numpy(), table[fold].combine_chunks().value_lengths().to_numpy()) for table in tables]
    users, lengths = (np.concatenate(column) for column in zip(*read, strict=True))
    order = np.argsort(users, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(lengths[order], dtype=np.int64)])
    places = np.empty_like(users)
    places[order] = offsets[:-1]
    return users[order], offsets, places


def _spread(places: np.ndarray, lists: pa.ListArray) -> np.ndarray:
    """Where each value of lists goes, from where the first of each list does: ``[N]`` int64."""
    lengths = lists.value_lengths().to_numpy().astype(np.int64)
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(places - before, lengths)
