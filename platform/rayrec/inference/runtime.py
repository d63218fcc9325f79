"""Runtimes: what computes the scores of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rayrec.inference.inputs import Inputs

if TYPE_CHECKING:
    from torch import Tensor

    from rayrec.models.base import Recommender


class Runtime(Protocol):
    """Scores of all items.

    Attributes:
        alike: Histories of one pass are best no shorter than this share of the longest; 0: of any lengths.
    """

    alike: float

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """A batch of requests to ``[B, V + 1]`` float32; column 0 means nothing."""


class OnnxRuntime:
    """ONNX Runtime on the CPU, where padding costs as much as events, and a pass more costs little.

    Args:
        graph: The exported graph.
        threads: Threads of one pass; 0 takes all cores.
    """

    alike = 0.8

    def __init__(self, graph: Path, threads: int = 0) -> None:
        # Here, so that the training loop runs on machines without it.
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Idle threads would spin on cores that other replicas need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._reads = [read.name for read in self._session.get_inputs()]

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """See `Runtime`."""
        scores: np.ndarray = self._session.run(["scores"], {name: inputs[name] for name in self._reads})[0]
        return scores


class TorchRuntime:
    """The model itself, in eager mode, on the device where it is.

    Args:
        model: The model.
        threads: Threads of this process from now on; 0 leaves them as they are.
    """

    alike = 0.0

    def __init__(self, model: Recommender, threads: int = 0) -> None:
        self._model = model.eval()
        if threads:
            import torch

            torch.set_num_threads(threads)

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """See `Runtime`."""
        found: np.ndarray = self.on_device(inputs).cpu().numpy()
        return found

    def on_device(self, inputs: Inputs) -> Tensor:
        """The same scores, left where the model is."""
        import torch

        device = next(iter([*self._model.parameters(), *self._model.buffers()])).device
        read = {name: torch.from_numpy(inputs[name]).to(device) for name in self._model.reads}
        with torch.inference_mode():
            return self._model.score(**read).float()
