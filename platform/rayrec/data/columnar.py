"""Columnar files: Parquet, ORC and Arrow's own, in blocks that fit into memory whatever the file's pieces are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from pyarrow import orc

from rayrec.data import blocks
from rayrec.data.blocks import Block, require_columns
from rayrec.errors import DataError
from rayrec.recipe_data import TableSource

MOST_ROWS = 1 << 17
HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def parquet_names(uri: str, _source: TableSource) -> list[str]:
    """The columns of a Parquet file."""
    with _opened(uri) as file:
        return list(pq.read_schema(file).names)


def read_parquet(uri: str, _source: TableSource, columns: Sequence[str | int] | None) -> Iterator[Block]:
    """See `rayrec.data.readers.read_blocks`."""
    with _opened(uri) as file:
        # As it comes, Arrow loads the whole columns of a row group first, and that may be the whole file.
        parquet = pq.ParquetFile(file, buffer_size=blocks.BLOCK_BYTES, pre_buffer=False)
        wanted = _wanted(uri, parquet.schema_arrow.names, columns)
        yield from _blocks(parquet.iter_batches(_rows_of_a_block(parquet.metadata, wanted), columns=wanted))


def orc_names(uri: str, _source: TableSource) -> list[str]:
    """The columns of an ORC file."""
    with _opened(uri) as file:
        return list(orc.ORCFile(file).schema.names)


def read_orc(uri: str, _source: TableSource, columns: Sequence[str | int] | None) -> Iterator[Block]:
    """See `rayrec.data.readers.read_blocks`. A stripe at a time, mostly 64 MiB."""
    with _opened(uri) as file:
        stored = orc.ORCFile(file)
        wanted = _wanted(uri, stored.schema.names, columns)
        yield from _blocks(stored.read_stripe(number, wanted) for number in range(stored.nstripes))


def arrow_names(uri: str, _source: TableSource) -> list[str]:
    """The columns of an Arrow file or stream."""
    with _mapped(uri) as file:
        return list(_arrow(file, pa.ipc.IpcReadOptions())[0].names)


def read_arrow(uri: str, source: TableSource, columns: Sequence[str | int] | None) -> Iterator[Block]:
    """See `rayrec.data.readers.read_blocks`. A record batch at a time."""
    names = arrow_names(uri, source)
    fields = sorted(names.index(name) for name in _wanted(uri, names, columns))
    with _mapped(uri) as file:
        yield from _blocks(_arrow(file, pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False))[1])


def _arrow(file: Any, options: pa.ipc.IpcReadOptions) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Schema and batches, of the format with an index at the end or of the one without."""
    indexed = file.read(6) == b"ARROW1"
    file.seek(0)
    if not indexed:
        stream = pa.ipc.open_stream(file, options=options)
        return stream.schema, iter(stream)
    reader = pa.ipc.open_file(file, options=options)
    return reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))


@contextmanager
def _opened(uri: str) -> Iterator[Any]:
    filesystem, path = fsspec.core.url_to_fs(uri)
    # fsspec would read ahead wherever a column is read from, in vain: the next read is for another column.
    with filesystem.open(path, "rb", cache_type="none") as file:
        yield file


@contextmanager
def _mapped(uri: str) -> Iterator[Any]:
    """Of this machine's files as memory: some writers make one batch of everything, and it need not be loaded."""
    filesystem, path = fsspec.core.url_to_fs(uri)
    with pa.memory_map(path) if isinstance(filesystem, LocalFileSystem) else _opened(uri) as file:
        yield file


def _wanted(uri: str, names: Sequence[str], columns: Sequence[str | int] | None) -> list[str]:
    if len(set(names)) < len(names):
        raise DataError(f"{uri}: two columns have the same name. Its columns: {', '.join(names)}.")
    return list(dict.fromkeys(require_columns(uri, names, columns)))


def _rows_of_a_block(metadata: pq.FileMetaData, wanted: Sequence[str]) -> int:
    """So many that they fit into a block, going by the first row group."""
    if not metadata.num_row_groups:
        return MOST_ROWS
    group = metadata.row_group(0)
    chunks = [group.column(number) for number in range(group.num_columns)]
    size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in wanted)
    return int(max(1, min(MOST_ROWS, blocks.BLOCK_BYTES * group.num_rows // max(1, size))))


def _blocks(batches: Iterable[pa.RecordBatch]) -> Iterator[Block]:
    first = 0
    for batch in batches:
        size = max(1, min(MOST_ROWS, blocks.BLOCK_BYTES * batch.num_rows // max(1, batch.nbytes)))
        for start in range(0, batch.num_rows, size):
            rows = batch.slice(start, size)
            table = pa.table([_plain(_sound(column)) for column in rows.columns], names=rows.schema.names)
            yield Block(table, np.arange(first, first + rows.num_rows))
            first += rows.num_rows


def _sound(array: pa.Array) -> pa.Array:
    """The array, text as bytes where it is none. Arrow believes a file: offsets that are wrong would end the process.

    Raises:
        pa.ArrowInvalid: It is damaged.
    """
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        if not pa.types.is_string(array.type):
            raise
        array = array.cast(pa.binary())
        array.validate(full=True)
    return array


def _plain(array: pa.Array) -> pa.Array:
    """The array as one of the types that cleaning knows."""
    kind = array.type
    if isinstance(kind, pa.UuidType):
        return _uuids(array.storage)
    if isinstance(kind, pa.BaseExtensionType):
        return array.storage
    if pa.types.is_run_end_encoded(kind):
        return _plain(pc.run_end_decode(array))
    if pa.types.is_dictionary(kind) and (values := _without_view(kind.value_type)) is not None:
        return array.cast(pa.dictionary(kind.index_type, values))
    return array if (plain := _without_view(kind)) is None else array.cast(plain)


def _without_view(kind: pa.DataType) -> pa.DataType | None:
    views: list[tuple[Callable[[pa.DataType], bool], pa.DataType]] = [
        (pa.types.is_string_view, pa.string()),
        (pa.types.is_binary_view, pa.binary()),
    ]
    return next((plain for is_view, plain in views if is_view(kind)), None)


def _uuids(array: pa.Array) -> pa.Array:
    """16 bytes each, ``[N]``, as the text that people write."""
    filled = pc.fill_null(array, bytes(16)).cast(pa.binary())
    raw = np.frombuffer(b"".join(filled.to_pylist()), np.uint8).reshape(-1, 16)
    digits = HEX[np.stack([raw >> 4, raw & 15], axis=2)].reshape(-1, 32)
    text = np.ascontiguousarray(np.insert(digits, [8, 12, 16, 20], ord("-"), axis=1))
    texts = pa.FixedSizeBinaryArray.from_buffers(pa.binary(36), len(array), [None, pa.py_buffer(text)])
    return pc.if_else(array.is_valid(), texts.cast(pa.binary()).cast(pa.string()), None)
