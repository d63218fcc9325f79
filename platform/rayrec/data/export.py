"""A view as a sparse matrix of users by items, for libraries that learn from one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from rayrec.data.dataset import Dataset, read_part
from rayrec.data.splits import FOLDS
from rayrec.data.views import load_view, open_view
from rayrec.errors import DataError, StorageError

Values = Literal["ones", "counts", "sum", "last"]


@dataclass(frozen=True)
class Interactions:
    """A view as a matrix.

    Attributes:
        matrix: ``[U, V]`` float32, of all users and items of the view, also those with nothing in these folds.
        users: The key of each row.
        items: The key of each column.
    """

    matrix: sparse.csr_matrix
    users: pa.Array
    items: pa.Array


def view_csr(dataset: Dataset, view: str, folds: Sequence[str] = ("train",), values: Values = "ones") -> Interactions:
    """Some folds of a view as a matrix.

    Args:
        dataset: The Dataset.
        view: The view's digest.
        folds: Of ``train``, ``validation`` and ``test``.
        values: What stands where a user has events on an item: 1; how many; the sum of their values; or the value of
            the last. Events without a value are left out of the latter two.

    Raises:
        DataError: There is no such view, fold, or value.
    """
    unknown = sorted({*folds} - {*FOLDS})
    if unknown or not folds:
        raise DataError(f"folds to export: {', '.join(unknown) or 'none'}. Give some of {', '.join(FOLDS)}.")
    sequences = load_view(dataset, view)
    rows = np.repeat(np.arange(len(sequences.users)), sequences.histories.lengths)
    columns = sequences.histories.items - 1
    numbers = np.ones(len(rows)) if values in ("ones", "counts") else _values(dataset, view)
    kept = np.isin(sequences.folds, [FOLDS[fold] for fold in folds]) & ~np.isnan(numbers)
    rows, columns, numbers = rows[kept], columns[kept], numbers[kept]
    if values == "last":
        newest = _last(rows * len(sequences.item_keys) + columns)
        rows, columns, numbers = rows[newest], columns[newest], numbers[newest]
    shape = (len(sequences.users), len(sequences.item_keys))
    # Made of triples, a matrix sums those of the same place.
    matrix = sparse.csr_matrix((numbers, (rows, columns)), shape=shape).astype(np.float32)
    if values == "ones":
        matrix.data[:] = 1
    keys = dataset.vocabulary("user")["key"].combine_chunks()
    return Interactions(matrix, keys.take(pa.array(sequences.users - 1)), pa.array(sequences.item_keys, pa.string()))


def export_csr(
    dataset: Dataset, view: str, folder: Path, folds: Sequence[str] = ("train",), values: Values = "ones"
) -> None:
    """Write what `view_csr` makes, over what was there.

    ``interactions.npz`` is read by ``scipy.sparse.load_npz``; ``users.parquet`` and ``items.parquet`` have the ``key``
    of each row and column, in order.

    Raises:
        DataError: There is no such view, fold, or value.
        StorageError: The folder cannot be written.
    """
    found = view_csr(dataset, view, folds, values)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sparse.save_npz(folder / "interactions.npz", found.matrix)
        for name, keys in (("users", found.users), ("items", found.items)):
            pq.write_table(pa.table({"key": keys}), folder / f"{name}.parquet")
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error}. Choose another folder, or make room.") from error


def _values(dataset: Dataset, view: str) -> np.ndarray:
    """The value of each event, as `load_view` orders them: ``[N]`` float64, NaN where there is none."""
    shards = [read_part(dataset.storage, shard) for shard in open_view(dataset, view)["shards"]]
    if any("values" not in shard.column_names for shard in shards):
        raise DataError(
            f"view {view} of Dataset '{dataset.name}' has no values to export. Map `columns.value` of a source and "
            "prepare again, or export ones or counts."
        )
    table = pa.concat_tables([shard.select(["user", "values"]) for shard in shards]).sort_by("user")
    return table["values"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float64)


def _last(places: np.ndarray) -> np.ndarray:
    """Which element is the last of each place, ascending by place: ``[P]`` int64."""
    _, from_end = np.unique(places[::-1], return_index=True)
    return len(places) - 1 - from_end
