"""Export: a model to a graph that runs without torch."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from rayrec.artifacts import Json
from rayrec.errors import ModelError
from rayrec.inference.inputs import Inputs
from rayrec.inference.runtime import METHODS, OnnxRuntime, Output, Runtime, TorchRuntime, exported_product
from rayrec.models.base import Factorized, Recommender
from rayrec.recipe_data import LARGE_CATALOGUE

TOLERANCE = 1e-5
"""Largest difference allowed between the scores of the exported graph and of torch."""

GRAPH = Path("variants", "onnx", "model.onnx")


def export_variant(model: Recommender, folder: Path, asked: Inputs) -> tuple[Runtime, Json]:
    """Write the ONNX graph of a model into its bundle, measured against torch on some requests.

    For catalogues so large that one copy of the items' vectors is enough, a graph of a `Factorized` model gives vectors
    of requests, and the tables that `save_weights` wrote are its inputs; one of them may be what is multiplied with,
    too.

    Args:
        model: The model.
        folder: Of the bundle; weights are there already.
        asked: The requests.

    Returns:
        What computes scores from what was written, and what the manifest says of it.
    """
    graph, about = folder / GRAPH, Json(runtime="onnxruntime")
    graph.parent.mkdir(parents=True)
    runtime: Runtime
    if isinstance(model, Factorized) and model.num_items >= LARGE_CATALOGUE:
        about |= {
            "output": "query",
            "tables": export_onnx(model, graph, "query"),
            "matrix": _matrix(model, model.item_matrix(), folder),
        }
        runtime = exported_product(folder, graph, about)
    else:
        export_onnx(model, graph)
        runtime = OnnxRuntime(graph)
    return runtime, {**about, "parity": parity_of(model, runtime, asked), "bytes": graph.stat().st_size}


def _matrix(model: Recommender, items: torch.Tensor, folder: Path) -> Json:
    """Where the item matrix of a model is among its weights; it is written where it is not there as it is."""
    for name, table in model.tables().items():
        if table.all_rows().data_ptr() == items.data_ptr():
            return {"file": f"tables/{name}.safetensors", "name": "weight"}
    save_file({"vectors": items.detach().contiguous()}, folder / "items.safetensors")
    return {"file": "items.safetensors", "name": "vectors"}


class _OutputOnly(torch.nn.Module):
    """`torch.export` starts at ``forward``, which for a model under training is the loss."""

    def __init__(self, model: Recommender, output: Output) -> None:
        super().__init__()
        self.model = model
        self.compute = getattr(model, METHODS[output])

    def forward(self, *read: torch.Tensor) -> torch.Tensor:
        # By name: a model may skip an input that `score` has in between.
        found: torch.Tensor = self.compute(**dict(zip(self.model.reads, read, strict=True)))
        return found


def export_onnx(model: Recommender, target: Path, output: Output = "scores") -> list[str]:
    """Write the scoring pass of ``model``, the last position only, as ONNX; batch and length stay free.

    Args:
        model: The model.
        target: The file.
        output: Scores of all items, or of a `Factorized` model the vector of the request. Then the embedding tables
            that are read are inputs of the graph, so that who runs it can give it what is in memory anyway.

    Returns:
        Names of the tables that are inputs of the graph.
    """
    length = min(model.max_length, 8)
    batch, events = torch.export.Dim("batch"), torch.export.Dim("length", max=model.max_length)
    shapes = {name: {0: batch} for name in model.reads}
    if model.max_length > 1:
        shapes |= {"history": {0: batch, 1: events}, "times": {0: batch, 1: events + 1}}
    examples = {name: torch.ones(2, width) for name, width in model.widths.items()}
    examples |= {"history": torch.ones(2, length).long(), "times": torch.ones(2, length + 1).long()}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _OutputOnly(model, output).eval().cpu(),
            tuple(examples[name] for name in model.reads),
            dynamo=True,
            input_names=list(model.reads),
            output_names=[output],
            dynamic_shapes=(tuple(shapes[name] for name in model.reads),),
            verbose=False,
        )
        assert program is not None  # noqa: S101 - for the type checker: dynamo=True always returns a program
        _forget_how(program)
        given = _tables_as_inputs(program, model) if output == "query" else []
        program.save(str(target), external_data=False)
    return given


def _tables_as_inputs(program: torch.onnx.ONNXProgram, model: Recommender) -> list[str]:
    """Take the embedding tables out of a graph; it reads them as inputs of their names. Returns which."""
    graph, given = program.model.graph, []
    for name in model.tables():
        table = graph.initializers.pop(f"model.{name}.weight", None)
        if table is not None and table.uses():
            table.name, table.const_value = name, None
            graph.inputs.append(table)
            given.append(name)
    return given


def _forget_how(program: torch.onnx.ONNXProgram) -> None:
    """Drop the notes on where each node comes from, addresses in this process's memory among them."""
    graph = program.model.graph
    for node in graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    graph.metadata_props.clear()


def measure_parity(model: Recommender, graph: Path, asked: Inputs) -> float:
    """Largest absolute difference between the scores of a graph and torch's; see `parity_of`."""
    return parity_of(model, OnnxRuntime(graph), asked)


def parity_of(model: Recommender, runtime: Runtime, asked: Inputs) -> float:
    """Largest absolute difference between the scores of an exported graph, at work in a runtime, and torch's.

    Raises:
        ModelError: It is above `TOLERANCE`, in units of the larger of 1 and the largest score.
    """
    expected = TorchRuntime(model)(asked)[:, 1:]
    difference = float(np.abs(runtime(asked)[:, 1:] - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise ModelError(
            f"the exported graph of '{model.kind}' differs from torch by {difference:.2e}, more than {TOLERANCE}. "
            "This is a fault of the export; please report it with the recipe."
        )
    return difference
