"""Checkpoints: weights and optimizer state as safetensors, everything else as JSON. No pickle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rayrec.inference.bundle import load_weights, save_weights
from rayrec.models.base import Recommender
from rayrec.training.loop import Run

State = dict[str, Tensor]


def save_checkpoint(run: Run, best: State, folder: Path) -> None:
    """Write where ``run`` stands into an empty folder.

    Args:
        run: The run after an epoch.
        best: The state of the model at its best epoch.
        folder: Gets ``last/`` and ``best.safetensors`` (weights), ``optimizer.safetensors`` and ``progress.json``.
    """
    save_weights(run.model, folder / "last")
    save_file(best, folder / "best.safetensors")
    save_file(_optimizer_tensors(run.optimizer), folder / "optimizer.safetensors")
    (folder / "progress.json").write_text(json.dumps(dataclasses.asdict(run.progress)), encoding="utf-8")


def load_checkpoint(run: Run, folder: Path) -> State:
    """Put a fresh run where the saved one stood. Returns the best state."""
    load_weights(run.model, folder / "last")
    state = run.optimizer.state_dict()
    for name, tensor in load_file(folder / "optimizer.safetensors").items():
        parameter, _, key = name.partition(".")
        state["state"].setdefault(int(parameter), {})[key] = tensor
    run.optimizer.load_state_dict(state)
    saved = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    for field, value in saved.items():
        setattr(run.progress, field, value)
    return load_file(folder / "best.safetensors")


def snapshot(model: Recommender) -> State:
    """A copy of the model's state on the CPU."""
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in model.state_dict().items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> State:
    """The optimizer's state as ``PARAMETER.KEY`` to tensor. Its settings come from the recipe, not from here."""
    return {
        f"{parameter}.{key}": value.detach().cpu().contiguous()
        for parameter, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }
