"""Export: a model to a graph that runs without torch."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import torch

from rayrec.errors import ModelError
from rayrec.inference.inputs import Inputs
from rayrec.inference.runtime import OnnxRuntime, TorchRuntime
from rayrec.models.base import Recommender

TOLERANCE = 1e-5
"""Largest difference allowed between the scores of the exported graph and of torch."""


class _ScoreOnly(torch.nn.Module):
    """`torch.export` starts at ``forward``, which for a model under training is the loss."""

    def __init__(self, model: Recommender) -> None:
        super().__init__()
        self.model = model

    def forward(self, *read: torch.Tensor) -> torch.Tensor:
        # By name: a model may skip an input that `score` has in between.
        return self.model.score(**dict(zip(self.model.reads, read, strict=True)))


def export_onnx(model: Recommender, target: Path) -> None:
    """Write the scoring pass of ``model``, the last position only, as ONNX; batch and length stay free."""
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
            _ScoreOnly(model).eval().cpu(),
            tuple(examples[name] for name in model.reads),
            dynamo=True,
            input_names=list(model.reads),
            output_names=["scores"],
            dynamic_shapes=(tuple(shapes[name] for name in model.reads),),
            verbose=False,
        )
        assert program is not None  # noqa: S101 - for the type checker: dynamo=True always returns a program
        _forget_how(program)
        program.save(str(target), external_data=False)


def _forget_how(program: torch.onnx.ONNXProgram) -> None:
    """Drop the notes on where each node comes from, addresses in this process's memory among them."""
    graph = program.model.graph
    for node in graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    graph.metadata_props.clear()


def measure_parity(model: Recommender, graph: Path, asked: Inputs) -> float:
    """Largest absolute difference between the graph's scores and torch's.

    Raises:
        ModelError: It is above `TOLERANCE`, in units of the larger of 1 and the largest score.
    """
    expected = TorchRuntime(model)(asked)[:, 1:]
    difference = float(np.abs(OnnxRuntime(graph)(asked)[:, 1:] - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise ModelError(
            f"the exported graph of '{model.kind}' differs from torch by {difference:.2e}, more than {TOLERANCE}. "
            "This is a fault of the export; please report it with the recipe."
        )
    return difference
