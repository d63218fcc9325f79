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
        batch_tokens: Instead: targets a step, over all workers together, so that steps weigh and take the same however
            long histories are. At least the model's ``max_length``.
        accumulate: Work a step out in so many pieces, one after the other, which takes as much less memory. One worker
            that accumulates over n is as n workers are, to what is drawn at random.
        optimizer: What turns gradients into steps.
        learning_rate: Its peak learning rate.
        betas: Of ``adamw`` and ``adam``: how much of the running means of the gradient and of its square a step keeps.
        momentum: Of ``sgd``: how much of the running sum of gradients a step keeps.
        weight_decay: Weight decay of the matrices (not of item vectors, norms and biases): decoupled from the gradient
            with ``adamw`` (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101), a penalty in it with the others.
        table_optimizer: What updates the embedding tables: the ``same``, or ``row-wise-adagrad``, which keeps one
            number a row where Adam keeps two a value (see `RowWiseAdagrad`).
        table_learning_rate: Peak learning rate of the tables; by default ``learning_rate``. It follows the same
            schedule.
        table_weight_decay: Weight decay of the tables, decoupled where ``adamw`` updates them, else a penalty.
        warmup: Share of all steps over which the learning rates rise from 0.
        decay: How they fall afterwards: not at all, along a ``cosine`` to a tenth of the peak, along a line to 0, or
            with the ``inverse-sqrt`` of the steps taken, which does not depend on when training ends.
        averaging: Decay, a step, of the moving average of the weights that is then validated, kept and published
            instead of the weights themselves, such as 0.999; 0 keeps none.
        clip: Largest gradient norm; larger gradients are scaled down.
        nonfinite: What a gradient that is infinite or no number does: ``stop`` the training, or have its step ``skip``
            the update, which is counted. To skip, a GPU is waited for at each step.
        patience: Stop after so many epochs without a better validation metric.
        metric: The validation metric that is watched.
        precision: ``bf16`` and ``fp16`` run forward and backward under autocast, weights stay fp32; ``auto`` is bf16 on
            a GPU and fp32 on a CPU. ``fp16``, for GPUs without bf16, scales the loss, so that small gradients are not
            lost; a step in which the scale proves too large is worked out again with half of it.
        random_windows: Share of the histories longer than ``max_length`` that are cut at a random event instead of at
            the latest, drawn anew each epoch; 0 learns from everybody's latest events only.
        checkpoint_steps: Where an epoch takes long: write a checkpoint after so many of its steps too. By default only
            after each epoch. It changes nothing of what is learnt.
        objective: What models of sequences learn: their loss, and which items a target is set against.
        seed: Seed of initial weights, batch order, windows, dropout and negatives.
    """

    epochs: int = 100
    batch_size: int = 128
    batch_tokens: int | None = None
    accumulate: int = 1
    optimizer: Literal["adamw", "adam", "adagrad", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    momentum: float = 0.9
    weight_decay: float = 0.0
    table_optimizer: Literal["same", "row-wise-adagrad"] = "same"
    table_learning_rate: float | None = None
    table_weight_decay: float = 0.0
    warmup: float = 0.0
    decay: Literal["none", "cosine", "linear", "inverse-sqrt"] = "none"
    averaging: float = 0.0
    clip: float = 1.0
    nonfinite: Literal["stop", "skip"] = "stop"
    patience: int = 10
    metric: str = "ndcg@10"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    random_windows: float = 0.5
    checkpoint_steps: int | None = None
    objective: Objective = field(default_factory=Objective)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "batch_tokens", "accumulate", "checkpoint_steps"):
            number = getattr(self, name)
            fits = number is None or 1 <= number < 1 << 31
            require(fits, f"{name} must be at least 1 and below 2**31, not {number}")
        for name in ("learning_rate", "clip"):
            require(0 < getattr(self, name) < math.inf, f"{name} must be above 0, not {getattr(self, name)}")
        table_rate = self.table_learning_rate
        known = table_rate is None or 0 < table_rate < math.inf
        require(known, f"table_learning_rate must be above 0, not {table_rate}")
        for name in ("weight_decay", "table_weight_decay"):
            allowed = 0 <= getattr(self, name) < math.inf
            require(allowed, f"{name} must not be negative or infinite, as {getattr(self, name)} is")
        for name in ("momentum", "averaging"):
            require(0 <= getattr(self, name) < 1, f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        allowed = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(allowed, f"betas are two numbers, each at least 0 and below 1, not {self.betas}")
        self._require_effect()
        require(0 <= self.warmup <= 1, f"warmup is a share of all steps: between 0 and 1, not {self.warmup}")
        require(0 <= self.random_windows <= 1, f"random_windows is a share: between 0 and 1, not {self.random_windows}")
        require(0 <= self.seed < 1 << 63, f"seed must not be negative and below 2**63, not {self.seed}")

    def _require_effect(self) -> None:
        """Refuse what would be read by nothing: who sets it expects something of it."""
        adam = self.optimizer in {"adamw", "adam"}
        unread = "is set, but the optimizer is"
        require(adam or tuple(self.betas) == Optimization.betas, f"betas {unread} {self.optimizer}, which has none")
        sgd = self.optimizer == "sgd"
        require(sgd or self.momentum == Optimization.momentum, f"momentum {unread} {self.optimizer}, which has none")
        after = self.decay != "inverse-sqrt" or self.warmup > 0
        require(after, "decay = inverse-sqrt begins at the end of a warm-up: set warmup above 0, such as 0.05")
