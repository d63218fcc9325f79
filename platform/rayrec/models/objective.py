"""What a sequence model learns to do with an item and all the others. No torch: recipes are read without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rayrec.models.checks import require


@dataclass(frozen=True)
class Objective:
    """The loss of a sequence model, and the items that a target is set against.

    Attributes:
        loss: ``softmax`` sets each target against all items; the others draw some (negatives). ``sampled-softmax``
            comes close to it at a price that does not grow with the items: for a million of them. ``bce`` says yes to
            the target and no to the negatives, ``gbce`` undoes the overconfidence that this teaches, ``bpr`` ranks the
            target above each negative, ``mse`` wants 1 for the target and 0 for the negatives.
        negatives: Items drawn, for a step where ``shared``, else for each target. Of no effect on ``softmax`` and
            ``in-batch``.
        sampling: How negatives are drawn: each item alike (``uniform``), by its training events (``popularity``), or
            the other targets of the worker's step (``in-batch``): thousands, so that it pays only where items are many
            times more; and what is learnt depends on the number of workers.
        shared: Whether all targets of a step have the same negatives: one matrix product, many times faster than items
            of their own for each.
        correction: Of ``sampled-softmax``: take the logarithm of an item's chance of being drawn off its score while
            training. Without it ``popularity`` and ``in-batch`` teach that popular items are bad ones.
        calibration: Of ``gbce``: its t, from 0 (the same as ``bce``) to 1 (no overconfidence left).
        label_smoothing: Share of each target that goes to all items alike, for ``softmax`` and ``sampled-softmax``
            (where these are the negatives).
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    loss: Literal["softmax", "sampled-softmax", "gbce", "bce", "bpr", "mse"] = "softmax"
    negatives: int = 256
    sampling: Literal["uniform", "popularity", "in-batch"] = "uniform"
    shared: bool = True
    correction: bool = True
    calibration: float = 0.75
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        require(1 <= self.negatives <= 65_536, f"negatives must be at least 1 and at most 65536, not {self.negatives}")
        require(0 <= self.calibration <= 1, f"calibration must be between 0 and 1, not {self.calibration}")
        smoothing = self.label_smoothing
        require(0 <= smoothing < 1, f"label_smoothing must be at least 0 and below 1, not {smoothing}")
        require(
            not smoothing or self.loss in {"softmax", "sampled-softmax"},
            f"label_smoothing goes with loss softmax or sampled-softmax, not with {self.loss}: set it to 0",
        )
        require(
            self.sampling == "uniform" or self.loss != "softmax",
            f"sampling = {self.sampling} draws negatives, and loss softmax has none: set loss to sampled-softmax",
        )
        require(
            self.sampling == "uniform" or self.loss != "gbce",
            f"gbce is worked out for sampling uniform, not {self.sampling}: set sampling to uniform, or loss to bce",
        )
        require(
            self.shared or self.sampling != "in-batch",
            "in-batch negatives are the same for all targets of a step: leave shared at true",
        )
