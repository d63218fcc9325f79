"""Popularity: every user gets the items with most events. The baseline that every other model has to beat.

With a half-life, recent events count more than old ones, by exponential decay (as "recently popular" in Ji, Sun, Zhang
and Li, "A Re-visit of the Popularity Baseline in Recommender Systems", SIGIR 2020, https://arxiv.org/abs/2005.13829,
who decay by days too).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayrec.errors import DataError
from rayrec.models.base import Recommender
from rayrec.models.checks import require
from rayrec.models.interactions import Each, Interactions, blocks_of

DAY = 24 * 3600
"""In seconds."""
BLOCK = 5_000_000
"""Events counted at a time."""


@dataclass(frozen=True)
class PopularityConfig:
    """How events are counted.

    Attributes:
        half_life: Days after which an event counts half; by default all events count alike.
    """

    half_life: float | None = None

    def __post_init__(self) -> None:
        allowed = self.half_life is None or 0 < self.half_life < math.inf
        require(allowed, f"half_life is a number of days above 0, not {self.half_life}")


class Popularity(Recommender):
    """Scores an item by its training events, the same for everybody.

    Example::

        >>> model = Popularity(PopularityConfig(), num_items=3)
        >>> model.fit(Interactions(Histories.of([[2, 2, 3]]), 3), here, seed=0)
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

    @property
    def max_length(self) -> int:
        """One event, which is not looked at."""
        return 1

    def fit(self, interactions: Interactions, each: Each, seed: int) -> None:
        """Count the events of each item, or their weights; see `Fitted`.

        Raises:
            DataError: A half-life is asked for, and the log has no times.
        """
        if self.config.half_life and interactions.histories.times is None:
            raise DataError(
                f"model.half_life = {self.config.half_life:g}: the log has no times. Give data.sources a timestamp "
                "column, or leave half_life out."
            )
        blocks = blocks_of(len(interactions.histories.items), BLOCK)
        counted = each(_count, (interactions, self.config.half_life), blocks)
        counts = sum(counted, np.zeros(self.num_items + 1))
        self.counts.copy_(torch.from_numpy(counts))

    def score(self, history: Tensor) -> Tensor:
        """``[B, L]`` int64 to ``[B, num_items + 1]`` float32: the counts, whatever the history."""
        # Adding zeros made from the history keeps it an input of the exported graph.
        return self.counts.unsqueeze(0) + history[:, -1:].to(self.counts.dtype) * 0.0


def _count(shared: tuple[Interactions, float | None], block: range) -> np.ndarray:
    """What the events of a block add to each item: ``[num_items + 1]`` float64."""
    interactions, half_life = shared
    chosen = slice(block.start, block.stop)
    weights = np.ones(len(block)) if interactions.weights is None else interactions.weights[chosen].astype(np.float64)
    if half_life:
        times = interactions.histories.times
        assert times is not None  # noqa: S101 - `fit` has looked
        age = (times.max() - times[chosen]) / DAY
        weights *= np.exp2(-age / half_life)
    return np.bincount(interactions.histories.items[chosen], weights, minlength=interactions.num_items + 1)
