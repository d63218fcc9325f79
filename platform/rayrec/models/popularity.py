"""Popularity: every user gets the items with most events. The baseline that every other model has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayrec.models.base import Recommender


@dataclass(frozen=True)
class PopularityConfig:
    """Popularity has nothing to set."""


class Popularity(Recommender):
    """Scores an item by its number of training events, the same for everybody.

    Example::

        >>> model = Popularity(PopularityConfig(), num_items=3)
        >>> model.fit(np.array([2, 2, 3]))
        >>> model.score(torch.zeros(1, 1, dtype=torch.int64))
        tensor([[0., 0., 2., 1.]])
    """

    kind = "popularity"
    Config = PopularityConfig

    counts: Tensor

    def __init__(self, config: PopularityConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.register_buffer("counts", torch.zeros(num_items + 1))

    def fit(self, items: np.ndarray) -> None:
        """Count ``items``: ``[N]`` int64 rows, one an event."""
        counts = np.bincount(items, minlength=self.num_items + 1)
        counts[0] = 0
        self.counts.copy_(torch.from_numpy(counts))

    def score(self, history: Tensor) -> Tensor:
        """``[B, L]`` int64 to ``[B, num_items + 1]`` float32: the counts, whatever the history."""
        # Adding zeros made from the history keeps it an input of the exported graph.
        return self.counts.unsqueeze(0) + history[:, -1:].to(self.counts.dtype) * 0.0
