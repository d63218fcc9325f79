"""Training batches as a pure function of (view, seed, epoch, step), so that any run can be taken up at any step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayrec.features.histories import Histories


@dataclass(frozen=True)
class Batch:
    """One worker's part of a step.

    Attributes:
        history: ``[b, L]`` int64 item rows, left-padded with 0.
        targets: ``[b, L]`` int64, the item after each position; 0 where there is none.
        global_targets: Targets of the whole step, over all workers: the divisor of the summed loss.
    """

    history: Tensor
    targets: Tensor
    global_targets: int


class ResidentFeed:
    """Batches of next-item prediction from sequences held in memory.

    Each user with at least two training events is in exactly one batch an epoch, on exactly one worker; the latest
    ``max_length + 1`` events are used.

    Args:
        histories: The training events of every user.
        max_length: Longest history of a batch.
        batch_size: Users a step, over all workers together.
        seed: Seed of the order.
    """

    def __init__(self, histories: Histories, max_length: int, batch_size: int, seed: int) -> None:
        self.histories = histories
        self.max_length = max_length
        self.batch_size = batch_size
        self.seed = seed
        self.users = np.flatnonzero(histories.lengths >= 2)
        self._targets = np.minimum(histories.lengths - 1, max_length)

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return -(-len(self.users) // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """The users in the order of an epoch: ``[U]`` int64."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.users)

    def batch(self, order: np.ndarray, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The part of worker ``rank`` in a step of the epoch with this ``order``."""
        chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
        mine = chosen[rank::world_size]
        # A worker without a user still has to take part in the exchange of gradients: one row with no target.
        width = int(self._targets[mine].max()) if len(mine) else 1
        rows = self.histories.last(mine, width + 1) if len(mine) else np.zeros((1, 2), np.int64)
        history, targets = rows[:, :-1], np.where(rows[:, :-1] != 0, rows[:, 1:], 0)
        return Batch(
            torch.from_numpy(np.ascontiguousarray(history)),
            torch.from_numpy(np.ascontiguousarray(targets)),
            int(self._targets[chosen].sum()),
        )
