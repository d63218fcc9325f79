"""The optimizers and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rayrec.models.base import Recommender
from rayrec.models.optimization import Optimization
from rayrec.training.row_wise_adagrad import RowWiseAdagrad

Group = dict[str, Any]


class Optimizers:
    """Optimizers of different parameters of a model, stepped together.

    Args:
        parts: The optimizers. Each of their groups has an ``lr_scale``: its learning rate over that of the schedule.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[Group]:
        """The groups of all."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Tensor]:
        """What they remember, copied, as ``PART.PARAMETER.KEY`` to tensor; their settings come from the recipe."""
        return {
            f"{number}.{parameter}.{key}": value.detach().to("cpu", copy=True).contiguous()
            for number, part in enumerate(self.parts)
            for parameter, values in part.state_dict()["state"].items()
            for key, value in values.items()
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        states = [part.state_dict() for part in self.parts]
        for name, tensor in tensors.items():
            number, parameter, key = name.split(".")
            states[int(number)]["state"].setdefault(int(parameter), {})[key] = tensor
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def build_optimizer(model: Recommender, settings: Optimization) -> Optimizers:
    """What the settings ask for; vectors (norms, biases) are not decayed."""
    tables = model.table_parameters()
    known = {id(p) for p in tables}
    dense = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    rate, table_rate = settings.learning_rate, settings.table_learning_rate or settings.learning_rate
    groups = [
        _group([p for p in dense if p.ndim > 1], settings.weight_decay, rate, 1.0),
        _group([p for p in dense if p.ndim <= 1], 0.0, rate, 1.0),
    ]
    table_group = _group(tables, settings.table_weight_decay, table_rate, table_rate / rate)
    if settings.table_optimizer == "same":
        return Optimizers(_optimizer([*groups, table_group], settings))
    return Optimizers(_optimizer(groups, settings), RowWiseAdagrad([table_group]))


def _group(params: list[nn.Parameter], weight_decay: float, rate: float, scale: float) -> Group:
    return {"params": params, "weight_decay": weight_decay, "lr": rate, "lr_scale": scale}


def _optimizer(groups: list[Group], settings: Optimization) -> torch.optim.Optimizer:
    """The optimizer of a name. Fused takes a third of the time of foreach with AdamW (docs/decisions.md)."""
    match settings.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, betas=settings.betas, fused=True)
        case "adam":
            return torch.optim.Adam(groups, betas=settings.betas, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, momentum=settings.momentum, foreach=True)
        case "adagrad":
            return torch.optim.Adagrad(groups, foreach=True)


def learning_rate(step: int, total_steps: int, settings: Optimization) -> float:
    """The learning rate of a step: a linear warm-up, then the decay.

    ``inverse-sqrt`` is the schedule of Vaswani et al., "Attention Is All You Need", NIPS 2017
    (https://arxiv.org/abs/1706.03762): four times as many steps as the warm-up's halve the peak.

    Example::

        >>> learning_rate(0, 100, Optimization(learning_rate=1e-3, warmup=0.1))
        0.0001
    """
    warmup_steps = round(settings.warmup * total_steps)
    if step < warmup_steps:
        return settings.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    match settings.decay:
        case "none":
            share = 1.0
        case "cosine":
            share = 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
        case "linear":
            share = 1 - progress
        case "inverse-sqrt":
            share = math.sqrt(max(1, warmup_steps) / (step + 1))
    return settings.learning_rate * share
