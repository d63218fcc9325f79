"""Item2Vec: items that are had together have vectors that point the same way.

Barkan and Koenigstein, "Item2Vec: Neural Item Embedding for Collaborative Filtering", MLSP 2016
(https://arxiv.org/abs/1603.04259): skip-gram with negative sampling (Mikolov et al., NIPS 2013,
https://arxiv.org/abs/1310.4546) over what each user had.

Differences: the paper compares items, and takes all that a user had as one set; here a window over the order of events
may be narrower, and people are answered by the mean of their latest items' vectors. What a vector's product with that
of a context learns is log P(context | item) - 0.75 log P(context), but for a constant (Levy and Goldberg, "Neural Word
Embedding as Implicit Matrix Factorization", NIPS 2014, with noise of that power), so the second term is added again:
without it rare items win. The events of a history share its negatives, frequent items are not thinned out, and the
optimizer is the platform's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rayrec.models.base import WHOLE_HISTORY, Recommender, with_column
from rayrec.models.checks import require
from rayrec.models.embedding import EmbeddingTable, ReplicatedTable
from rayrec.models.interactions import Interactions

SMOOTHING = 0.75
"""Power of an item's events by which it is drawn as a negative (Mikolov et al.)."""
DRAWN = 64
"""Negatives that the events of one history share: a matrix product, where some for each would be as many look-ups."""


@dataclass(frozen=True)
class Item2VecConfig:
    """The model.

    Attributes:
        dim: Width of the vectors.
        window: How many events before and after one are its context; the paper's own is the whole history.
        negatives: Weight of what is drawn against the context: as many as the paper draws for each event of it.
        recent: How many of the latest events a person is taken for.
        max_length: Longest history that is learnt from at once.
    """

    dim: int = 64
    window: int = 3
    negatives: int = 5
    recent: int = 3
    max_length: int = 100

    def __post_init__(self) -> None:
        for name, most in (("dim", 4096), ("window", WHOLE_HISTORY), ("negatives", 1024), ("max_length", 1024)):
            size = getattr(self, name)
            require(1 <= size <= most, f"{name} must be at least 1 and at most {most}, not {size}")
        known = 1 <= self.recent <= self.max_length
        require(known, f"recent must be at least 1 and at most max_length ({self.max_length}), not {self.recent}")


class Item2Vec(Recommender):
    """Vectors of items as themselves and as context of others.

    On MovieLens 100K it learns more, and faster, with a learning rate of 0.003 and 32 users a step.

    Example::

        >>> model = Item2Vec(Item2VecConfig(dim=8), num_items=3)
        >>> model.score(torch.tensor([[0, 1]])).shape
        torch.Size([1, 4])
    """

    kind = "item2vec"
    Config = Item2VecConfig

    drawn: Tensor
    prior: Tensor

    def __init__(self, config: Item2VecConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.item = ReplicatedTable(num_items + 1, config.dim)
        self.context = ReplicatedTable(num_items + 1, config.dim)
        # Only training draws negatives, and it begins with `observe`: not part of the weights.
        self.register_buffer("drawn", torch.linspace(0, 1, num_items + 1, dtype=torch.float64), persistent=False)
        self.register_buffer("prior", torch.zeros(num_items + 1))

    @property
    def max_length(self) -> int:
        """Longest history that is learnt from at once."""
        return int(self.config.max_length)

    def tables(self) -> Mapping[str, EmbeddingTable]:
        """Vectors of items as themselves and as context."""
        return {"item": self.item, "context": self.context}

    def observe(self, interactions: Interactions) -> None:
        """Draw negatives by how often items occur, and undo it when scoring."""
        counts = torch.from_numpy(interactions.counts).double()
        weights = counts**SMOOTHING
        # What never occurs counts as half an event: its vector says nothing, and minus infinity is no score.
        self.prior.copy_(SMOOTHING * counts.clamp_min(0.5).log())
        self.drawn.copy_((weights.cumsum(0) / weights.sum()).to(self.drawn.device))

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Summed loss over the events of the windows: mean over the context of each, and its negatives."""
        window = torch.cat([inputs[:, :1], targets], 1)  # [B, L + 1]
        vectors = self.item.lookup(window)
        near = context_mask(window, self.config.window)  # [B, L + 1, L + 1]
        found = functional.softplus(-vectors @ self.context.lookup(window).transpose(1, 2))
        contexts = near.sum(2)
        positive = (found * near).sum(2) / contexts.clamp_min(1)
        drawn = self.context.lookup(self._draw(len(window) * DRAWN).view(-1, DRAWN))  # [B, DRAWN, D]
        negative = self.config.negatives * functional.softplus(vectors @ drawn.transpose(1, 2)).mean(2)
        return ((positive + negative) * (contexts != 0)).sum()

    def _draw(self, count: int) -> Tensor:
        """Item rows by their smoothed frequency: ``[count]`` int64."""
        chances = torch.rand(count, dtype=torch.float64, device=self.drawn.device)
        return torch.searchsorted(self.drawn, chances, right=True).clamp(1, self.num_items)

    def score(self, history: Tensor) -> Tensor:
        """``[B, L]`` int64 to ``[B, num_items + 1]`` float32; the prior where the history is empty."""
        return self._mean(history) @ self.context.all_rows().T + self.prior

    def query(self, history: Tensor) -> Tensor:
        """See `Factorized`."""
        return with_column(self._mean(history), 1.0)

    def item_matrix(self) -> Tensor:
        """See `Factorized`."""
        return with_column(self.context.all_rows(), self.prior)

    def _mean(self, history: Tensor) -> Tensor:
        """Of the vectors of the latest events: ``[B, L]`` int64 to ``[B, D]``."""
        recent = history[:, -self.config.recent :]
        events = (recent != 0).sum(1, keepdim=True).clamp_min(1)
        return self.item.lookup(recent).sum(1) / events


def context_mask(window: Tensor, reach: int) -> Tensor:
    """Which events are context of which.

    Args:
        window: ``[B, L]`` int64, 0 = padding.
        reach: How many events before and after one.

    Returns:
        ``[B, L, L]`` bool; an event, or a repetition of its item, is not its own context.
    """
    places = torch.arange(window.shape[1], device=window.device)
    close = (places.unsqueeze(0) - places.unsqueeze(1)).abs() <= reach
    real = window != 0
    other = window.unsqueeze(1) != window.unsqueeze(2)
    return close & real.unsqueeze(1) & real.unsqueeze(2) & other
