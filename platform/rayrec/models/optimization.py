"""How a model is optimised: the settings that the training loop reads. No torch: recipes are read without it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from rayrec.models.checks import require
from rayrec.models.objective import Objective


@dataclass(frozen=True)
class Optimization:
    """Settings of the training loop.

    Attributes:
        epochs: Most passes over the training users.
        batch_size: Users a step, over all workers together.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay of the matrices (not of item vectors, norms and biases).
        warmup: Share of all steps over which the learning rate rises from 0.
        decay: How it falls afterwards: along a cosine to a tenth of the peak, or not at all.
        clip: Largest gradient norm; larger gradients are scaled down.
        patience: Stop after so many epochs without a better validation metric.
        metric: The validation metric that is watched.
        precision: ``bf16`` runs forward and backward under autocast on a GPU; ``auto`` does so where there is one.
        random_windows: Share of the histories longer than ``max_length`` that are cut at a random event instead of at
            the latest, drawn anew each epoch; 0 learns from everybody's latest events only.
        objective: What models of sequences learn: their loss, and which items a target is set against.
        seed: Seed of initial weights, batch order, windows, dropout and negatives.
    """

    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.0
    decay: Literal["cosine", "none"] = "none"
    clip: float = 1.0
    patience: int = 10
    metric: str = "ndcg@10"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    random_windows: float = 0.5
    objective: Objective = field(default_factory=Objective)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            require(0 < getattr(self, name) < math.inf, f"{name} must be above 0, not {getattr(self, name)}")
        allowed = 0 <= self.weight_decay < math.inf
        require(allowed, f"weight_decay must not be negative or infinite, as {self.weight_decay} is")
        require(0 <= self.warmup <= 1, f"warmup is a share of all steps: between 0 and 1, not {self.warmup}")
        require(0 <= self.random_windows <= 1, f"random_windows is a share: between 0 and 1, not {self.random_windows}")
        require(0 <= self.seed < 1 << 63, f"seed must not be negative and below 2**63, not {self.seed}")
