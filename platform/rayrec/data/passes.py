"""One pass of Ray Data over a list of work items: files, partitions or shards."""

from __future__ import annotations

import io
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from rayrec.artifacts import Json
from rayrec.errors import RayrecError

Row = dict[str, Any]


def run_pass(work: Callable[[Row], Row], items: Iterable[Row]) -> list[Row]:
    """Apply ``work`` to each item, in parallel; results in the order of the items.

    Items and results are flat dictionaries of numbers, text and bytes. A `RayrecError` raised by ``work`` comes back
    as itself; anything else is a bug and comes back as RuntimeError with the worker's traceback. Either way no work is
    going on any more when this raises, so that its caller can clean up.
    """

    def one(batch: dict[str, Any]) -> dict[str, list[Any]]:
        row = {key: values[0] for key, values in batch.items()}
        try:
            result = {"position": row["position"], "error": "", "error_class": "", **work(row)}
        except RayrecError as error:
            # Raised inside an operator it would arrive wrapped in a traceback.
            result = {"position": row["position"], "error": str(error), "error_class": type(error).__name__}
        except Exception:
            result = {"position": row["position"], "error": traceback.format_exc(), "error_class": ""}
        return {key: [value] for key, value in result.items()}

    rows = [{**item, "position": position} for position, item in enumerate(items)]
    if not rows:
        return []
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(one, batch_size=1)
    results = sorted(dataset.take_all(), key=lambda row: int(row["position"]))
    failed = next((row for row in results if row["error"]), None)
    if failed:
        if not failed["error_class"]:
            raise RuntimeError(f"a worker failed; this is a bug of rayrec:\n{failed['error']}")
        raise _error_class(failed["error_class"])(failed["error"])
    return cast("list[Row]", results)


@dataclass(frozen=True)
class Shared:
    """A value in the object store: large, and read by every worker that wants it."""

    reference: Any

    @property
    def value(self) -> Any:
        """The value; its arrays are the store's own memory."""
        return ray.get(self.reference)


def share(value: Any) -> Shared:
    """Put a value where workers reach it without a copy of their own each."""
    return Shared(ray.put(value))


def _error_class(name: str) -> type[RayrecError]:
    known, waiting = {RayrecError.__name__: RayrecError}, [RayrecError]
    while waiting:
        children: list[type[RayrecError]] = waiting.pop().__subclasses__()
        known.update({child.__name__: child for child in children})
        waiting += children
    return known.get(name, RayrecError)


def to_bytes(table: pa.Table) -> bytes:
    """An Arrow table as bytes of the IPC format."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def from_bytes(data: bytes) -> pa.Table:
    """The table that `to_bytes` wrote."""
    return pa.ipc.open_stream(data).read_all()


def parquet_bytes(table: pa.Table) -> bytes:
    """An Arrow table as a Parquet file; equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(None), sink, compression="zstd")
    return sink.getvalue()


def part(path: str, data: bytes, sha256: str, rows: int) -> Json:
    """How a manifest lists a file."""
    return {"path": path, "sha256": sha256, "bytes": len(data), "rows": rows}
