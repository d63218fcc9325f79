"""Weights as they lie in a file: read when they are touched, and shared by all processes of a machine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def mapped(path: Path, name: str) -> np.ndarray:
    """A float32 tensor of a safetensors file, without a copy in memory; it cannot be written to.

    The format: the length of the header in 8 bytes, the header in JSON, the tensors
    (https://huggingface.co/docs/safetensors, "Format").

    Raises:
        ValueError: The tensor is of another type.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        described = json.loads(file.read(length))[name]
    if described["dtype"] != "F32":
        raise ValueError(f"{name} in {path} is {described['dtype']}, not F32")
    first = 8 + length + described["data_offsets"][0]
    return np.asarray(np.memmap(path, np.float32, "r", first, tuple(described["shape"])))
