"""Releases that must not stay live: one gives other answers than when it was published, one fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
from onnx import helper, numpy_helper

from rayrec.artifacts import Json, publish_folder
from rayrec.inference.bundle import MANIFEST
from rayrec.inference.release import Release, publish_release

GOLDEN = "golden.arrow"


def wrong_release(release: Release, folder: Path) -> Release:
    """A Release whose model does not give its golden answers, made in a folder that is not there yet."""

    def other_scores(golden: pa.Table) -> pa.Table:
        column = golden.schema.get_field_index("scores")
        scores = pa.array([[one + 1 for one in row] for row in golden["scores"].to_pylist()], golden["scores"].type)
        return golden.set_column(column, "scores", scores)

    return _changed(release, folder, lambda: _change_golden(folder, other_scores))


def failing_release(release: Release, folder: Path) -> Release:
    """A Release whose model gives its golden answers, and fails for histories of two events and more."""

    def shortest(golden: pa.Table) -> pa.Table:
        return golden.filter([len(history) < 2 for history in golden["history"].to_pylist()])

    def change() -> None:
        _change_golden(folder, shortest)
        graph = folder / "variants" / "onnx" / "model.onnx"
        graph.write_bytes(_fails_beyond(graph.read_bytes(), 1))

    return _changed(release, folder, change)


def _changed(release: Release, folder: Path, change: Callable[[], None]) -> Release:
    bundle = release.bundle()
    shutil.copytree(bundle.folder, folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    manifest: Json = {key: value for key, value in bundle.manifest.items() if key != "files"}
    change()
    path = publish_folder(release.storage, "models/changed", folder, manifest, MANIFEST)
    return publish_release(release.storage, {**release.content, "models": {**release.content["models"], "main": path}})


def _change_golden(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    with pa.OSFile(str(folder / GOLDEN)) as file:
        golden = change(pa.ipc.open_file(file).read_all())
    with pa.OSFile(str(folder / GOLDEN), "wb") as sink, pa.ipc.new_file(sink, golden.schema) as writer:
        writer.write_table(golden)


def _fails_beyond(graph: bytes, length: int) -> bytes:
    """A graph that cannot compute histories above a length."""
    model = onnx.load_from_string(graph)
    # A table that has so many rows is asked for the row after the last event's.
    table = numpy_helper.from_array(np.zeros((length + 1, 1), np.float32), "only_so_many")
    model.graph.initializer.append(table)
    for node in model.graph.node:
        node.output[:] = ["scores_before" if name == "scores" else name for name in node.output]
    model.graph.node.extend(
        [
            helper.make_node("Shape", ["history"], ["its_length"], start=1, end=2),
            helper.make_node("Gather", ["only_so_many", "its_length"], ["nothing"], axis=0),
            helper.make_node("Squeeze", ["nothing"], ["zero"]),
            helper.make_node("Add", ["scores_before", "zero"], ["scores"]),
        ]
    )
    return bytes(model.SerializeToString())
