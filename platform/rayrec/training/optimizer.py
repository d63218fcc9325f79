"""The optimizer and the learning-rate schedule."""

from __future__ import annotations

import math

import torch

from rayrec.models.base import Recommender
from rayrec.models.optimization import Optimization


def build_optimizer(model: Recommender, settings: Optimization) -> torch.optim.Optimizer:
    """AdamW; vectors (norms, biases) and embedding tables are not decayed."""
    tables = {id(p) for table in model.tables().values() for p in table.optimizer_parameters()}
    decayed = [p for p in model.parameters() if p.ndim > 1 and id(p) not in tables]
    others = [p for p in model.parameters() if p.ndim <= 1 or id(p) in tables]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), foreach=True)


def learning_rate(step: int, total_steps: int, settings: Optimization) -> float:
    """The learning rate of a step: a linear warm-up, then the decay.

    Example::

        >>> learning_rate(0, 100, Optimization(learning_rate=1e-3, warmup=0.1))
        0.0001
    """
    warmup_steps = round(settings.warmup * total_steps)
    if step < warmup_steps:
        return settings.learning_rate * (step + 1) / warmup_steps
    if settings.decay == "none":
        return settings.learning_rate
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return settings.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
