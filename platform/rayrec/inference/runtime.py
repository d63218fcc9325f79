"""Runtimes: what computes the scores of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from rayrec.artifacts import Json
from rayrec.errors import ModelError
from rayrec.inference.inputs import Inputs
from rayrec.inference.mapped import mapped

if TYPE_CHECKING:
    from torch import Tensor

    from rayrec.models.base import Recommender

Output = Literal["scores", "query"]
"""What a model is asked for: scores of all items, or the vector of the request (`Factorized`)."""
METHODS: Mapping[Output, str] = {"scores": "score", "query": "query"}
NO_TABLES: Mapping[str, np.ndarray] = MappingProxyType({})


class Runtime(Protocol):
    """Scores of all items, or vectors of requests.

    Attributes:
        alike: Histories of one pass are best no shorter than this share of the longest; 0: of any lengths.
    """

    alike: float

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """A batch of requests to ``[B, V + 1]`` float32, of which column 0 means nothing; or to ``[B, D]``."""


class Product:
    """Scores as products of requests' vectors with those of all items.

    Args:
        queries: Gives the vectors of requests, ``[B, D]`` float32.
        matrix: ``[V + 1, D]`` float32, the vectors of the items; row 0 means nothing.
    """

    def __init__(self, queries: Runtime, matrix: np.ndarray) -> None:
        self.queries = queries
        self.matrix = matrix
        self.alike = queries.alike

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """See `Runtime`."""
        scores: np.ndarray = self.queries(inputs) @ self.matrix.T
        return scores


class Everybody:
    """The vector 1 for every request: `Product` with one column of scores gives those to everybody."""

    alike = 0.0

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """See `Runtime`."""
        return np.ones((len(inputs["history"]), 1), np.float32)


class OnnxRuntime:
    """ONNX Runtime on the CPU, where padding costs as much as events, and a pass more costs little.

    Args:
        graph: The exported graph.
        threads: Threads of one pass; 0 takes all cores.
        output: What it gives.
        tables: The embedding tables that it reads as inputs, by name: ``[rows, dim]`` float32. They are not copied.
    """

    alike = 0.8

    def __init__(
        self, graph: Path, threads: int = 0, output: Output = "scores", tables: Mapping[str, np.ndarray] = NO_TABLES
    ) -> None:
        # Here, so that the training loop runs on machines without it.
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Idle threads would spin on cores that other replicas need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._output, self._tables = output, tables
        self._reads = [read.name for read in self._session.get_inputs() if read.name not in tables]

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """See `Runtime`."""
        read = {name: inputs[name] for name in self._reads}
        found: np.ndarray = self._session.run([self._output], {**read, **self._tables})[0]
        return found


class TorchRuntime:
    """The model itself, in eager mode, on the device where it is.

    Args:
        model: The model.
        threads: Threads of this process from now on; 0 leaves them as they are.
        output: What it is asked for.
    """

    alike = 0.0

    def __init__(self, model: Recommender, threads: int = 0, output: Output = "scores") -> None:
        self._model = model.eval()
        self._compute = getattr(model, METHODS[output])
        if threads:
            import torch

            torch.set_num_threads(threads)

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """See `Runtime`."""
        found: np.ndarray = self.on_device(inputs).cpu().numpy()
        return found

    def on_device(self, inputs: Inputs) -> Tensor:
        """The same, left where the model is."""
        import torch

        device = next(iter([*self._model.parameters(), *self._model.buffers()])).device
        read = {name: torch.from_numpy(inputs[name]).to(device) for name in self._model.reads}
        with torch.inference_mode():
            found: Tensor = self._compute(**read)
            return found.float()


def exported_product(folder: Path, graph: Path, variant: Json, threads: int = 0) -> Product:
    """Scores by a graph that gives vectors of requests.

    Args:
        folder: Of the bundle.
        graph: The graph.
        variant: What the bundle's manifest says of it: which ``tables`` it reads, and where the ``matrix`` is.
        threads: Threads of one pass; 0 takes all cores.
    """
    tables = {name: mapped(folder / "tables" / f"{name}.safetensors", "weight") for name in variant["tables"]}
    matrix = variant["matrix"]
    return Product(OnnxRuntime(graph, threads, "query", tables), mapped(folder / matrix["file"], matrix["name"]))


def factorized(model: Recommender, threads: int = 0) -> Product:
    """Scores of a model by its two factors, in torch.

    Raises:
        ModelError: It has none.
    """
    import torch

    from rayrec.models.base import Factorized

    if not isinstance(model, Factorized):
        raise ModelError(f"scores of '{model.kind}' are no products of vectors: there can be no index of its items.")
    with torch.inference_mode():
        return Product(TorchRuntime(model, threads, "query"), model.item_matrix().numpy())
