"""Where a training run stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Metrics = dict[str, float]

PHASES = ("data", "forward", "backward", "optimizer")
BESIDE = ("checkpoint", "validation")
MEASURED = frozenset({"seconds", "tokens_per_second", "peak_memory_mb", *PHASES, *BESIDE})
"""What an epoch's entry says of the machine, not of the model: the same training says otherwise each time."""


@dataclass(frozen=True, order=True)
class Position:
    """How far a run has come: epochs, and steps of the epoch that is under way."""

    epoch: int = 0
    step: int = 0

    def __str__(self) -> str:
        return f"epoch {self.epoch}" + (f" and {self.step} steps" if self.step else "")


@dataclass
class Progress:
    """Where a run stands. It goes into checkpoints as JSON.

    Attributes:
        epoch: Epochs done.
        step: Steps done of the epoch that is under way.
        sums: What these steps add up to: ``loss`` and ``tokens`` (targets) of all workers, ``gradient_norm``,
            ``skipped`` steps, and ``seconds``, each of which went into one of `PHASES`; what
            went into `BESIDE` is not in them.
        best_epoch: The epoch (counted from 1) with the best validation metric so far; 0 before the first.
        best: That metric's value.
        history: One entry an epoch: ``epoch``, ``loss`` (mean, a target), ``learning_rate`` (of the last step),
            ``gradient_norm`` (mean, a step, before it is clipped), ``skipped`` steps where they are counted, what is
            `MEASURED` (``peak_memory_mb`` is the most that was held; ``checkpoint`` is how long it was waited for those
            amid the epoch, and the one after the epoch before) and the validation metrics.
    """

    epoch: int = 0
    step: int = 0
    sums: Metrics = field(default_factory=dict)
    best_epoch: int = 0
    best: float = -math.inf
    history: list[Metrics] = field(default_factory=list)

    @property
    def position(self) -> Position:
        """How far the run has come."""
        return Position(self.epoch, self.step)
