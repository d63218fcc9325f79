"""Working files of a shuffle: rows grouped by partition, so that each partition can be read alone.

A file holds one record batch a partition, in order; the Arrow IPC footer says where each begins. So there are as many
files as batches of input, and not times the number of partitions.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from rayrec.artifacts import Storage
from rayrec.features.hashing import hash64

COMPRESSION = "lz4"


def partition_of(keys: pa.Array | pa.ChunkedArray, partitions: int) -> np.ndarray:
    """The partition of each key: ``[N]`` uint16, the same in every process and on every machine."""
    return (hash64(keys) % np.uint64(partitions)).astype(np.uint16)


def write_spill(storage: Storage, folder: str, table: pa.Table, of: np.ndarray, partitions: int) -> str:
    """Write rows grouped by partition, in their order within each. Returns the path.

    Args:
        storage: Where to.
        folder: The folder in it.
        table: ``[N]`` rows.
        of: ``[N]`` the partition of each.
        partitions: How many there are.
    """
    # A stable sort of 16-bit numbers is a radix sort.
    grouped = table.take(pa.array(np.argsort(of, kind="stable"))).unify_dictionaries().combine_chunks()
    bounds = np.concatenate([[0], np.cumsum(np.bincount(of, minlength=partitions))])
    # Its name is unlike that of a worker that does the same after this one was given up.
    path = f"{folder}/{uuid.uuid4().hex}.arrow"
    batch = grouped.to_batches()[0] if len(grouped) else pa.RecordBatch.from_pylist([], schema=grouped.schema)
    options = pa.ipc.IpcWriteOptions(compression=COMPRESSION, use_threads=False)
    with storage.scratch(path) as file, pa.ipc.new_file(file, grouped.schema, options=options) as writer:
        for first, end in pairwise(bounds.tolist()):
            writer.write_batch(batch.slice(first, end - first))
    return path


def read_spills(
    storage: Storage, paths: Sequence[str], partition: int, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """A partition's rows of each file that has any, in the order of the files."""
    for path in paths:
        with storage.random_access(path) as file:
            fields = None if columns is None else _positions(file, columns)
            options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
            batch = pa.ipc.open_file(file, options=options).get_batch(partition)
        if batch.num_rows:
            yield batch


def _positions(file: object, columns: Sequence[str]) -> list[int]:
    schema = pa.ipc.open_file(file).schema
    return [schema.get_field_index(column) for column in columns]
