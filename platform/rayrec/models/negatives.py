"""Which items a target is set against, and how likely each of them was to be drawn."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from rayrec.errors import ModelError
from rayrec.models.objective import Objective


class Sampler(nn.Module, ABC):
    """Draws negatives with torch's global generator, which the training loop seeds at each step.

    A target may be among its own negatives: whoever uses them leaves it out.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    @abstractmethod
    def forward(self, targets: Tensor) -> Tensor:
        """Item rows: ``[T]`` int64 targets to ``[K]`` int64 for all of them, or ``[T, K]`` for each."""

    @abstractmethod
    def log_probability(self, rows: Tensor) -> Tensor:
        """The logarithm of each row's chance in one draw: ``[...]`` int64 to float32 that broadcasts with it."""

    def _shape(self, targets: Tensor) -> tuple[int, ...]:
        each = () if self.objective.shared else (len(targets),)
        return (*each, self.objective.negatives)


class Uniform(Sampler):
    """Every item alike."""

    def __init__(self, objective: Objective, num_items: int, counts: np.ndarray | None) -> None:
        super().__init__(objective)
        self.num_items = num_items

    def forward(self, targets: Tensor) -> Tensor:
        """See `Sampler`."""
        return torch.randint(1, self.num_items + 1, self._shape(targets), device=targets.device)

    def log_probability(self, rows: Tensor) -> Tensor:
        """See `Sampler`."""
        return torch.full((), -math.log(self.num_items), device=rows.device)


class Counted(Sampler):
    """Knows how often each item occurs.

    Raises:
        ModelError: There are no counts.
    """

    cumulative: Tensor
    log_chances: Tensor

    def __init__(self, objective: Objective, num_items: int, counts: np.ndarray | None) -> None:
        super().__init__(objective)
        if counts is None or not counts[1:].any():
            raise ModelError(
                f"training.objective.sampling = '{objective.sampling}' goes by how often items occur in the training "
                "events, and there are none to count. Set it to uniform."
            )
        events = torch.from_numpy(counts.astype(np.int64))
        events[0] = 0
        self.total = int(events.sum())
        # Worked out again from the data wherever training begins: not part of the weights.
        self.register_buffer("cumulative", events.cumsum(0), persistent=False)
        # What never occurs is never drawn; counted as once, its logarithm is a number.
        self.register_buffer("log_chances", (events.clamp_min(1) / self.total).log().float(), persistent=False)

    def log_probability(self, rows: Tensor) -> Tensor:
        """See `Sampler`."""
        return self.log_chances[rows]


class Popularity(Counted):
    """By how often items occur: an event is drawn, and its item is the negative."""

    def forward(self, targets: Tensor) -> Tensor:
        """See `Sampler`."""
        events = torch.randint(self.total, self._shape(targets), device=targets.device)
        return torch.searchsorted(self.cumulative, events, right=True)


class InBatch(Counted):
    """The step's targets, of this worker; as they are training events, their counts say how likely they were."""

    def forward(self, targets: Tensor) -> Tensor:
        """See `Sampler`."""
        return targets


SAMPLERS: Mapping[str, Callable[[Objective, int, np.ndarray | None], Sampler]] = {
    "uniform": Uniform,
    "popularity": Popularity,
    "in-batch": InBatch,
}
