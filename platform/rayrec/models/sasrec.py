"""SASRec: self-attention over the history predicts the next item.

Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018 (https://arxiv.org/abs/1808.09781).

Differences: the loss is the full softmax over all items at every position instead of binary cross entropy with one
sampled negative (Klenitskiy and Vasilev, RecSys 2023, https://arxiv.org/abs/2309.07602, show that this is what makes
SASRec strong); normalisation stands before attention and feed-forward on the residual branch only (pre-norm); GELU
instead of ReLU, and a feed-forward width that can be set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrec.models.base import Recommender
from rayrec.models.checks import require
from rayrec.models.embedding import EmbeddingTable, ReplicatedTable

LARGEST = 16_384
"""Beyond it a setting is a typing error: attention over so many events takes gigabytes a user."""


@dataclass(frozen=True)
class SASRecConfig:
    """The architecture.

    Attributes:
        dim: Width of item vectors and of every hidden state.
        blocks: Number of attention blocks.
        heads: Attention heads; divides ``dim``.
        feed_forward: Width of the feed-forward layer, in multiples of ``dim``.
        dropout: Share of hidden values dropped while training.
        max_length: How many of the latest events are read.
    """

    dim: int = 64
    blocks: int = 2
    heads: int = 1
    feed_forward: int = 1
    dropout: float = 0.3
    max_length: int = 200

    def __post_init__(self) -> None:
        for name in ("dim", "blocks", "heads", "feed_forward", "max_length"):
            size = getattr(self, name)
            require(1 <= size <= LARGEST, f"{name} must be at least 1 and at most {LARGEST}, not {size}")
        require(0.0 <= self.dropout < 1.0, f"dropout must be at least 0 and below 1, not {self.dropout}")
        require(self.dim % self.heads == 0, f"dim ({self.dim}) must be a multiple of heads ({self.heads})")


class Attention(nn.Module):
    """Multi-head self-attention; queries may be fewer than keys (only the last position at inference)."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.query = nn.Linear(config.dim, config.dim)
        self.key_value = nn.Linear(config.dim, 2 * config.dim)
        self.output = nn.Linear(config.dim, config.dim)

    def forward(self, queries: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Attend.

        Args:
            queries: ``[B, Q, D]``.
            states: ``[B, L, D]``, what is attended to.
            mask: ``[B, 1, Q, L]`` bool, True where a query may look.

        Returns:
            ``[B, Q, D]``.
        """
        key, value = self.key_value(states).chunk(2, dim=-1)
        attended = functional.scaled_dot_product_attention(
            self._split(self.query(queries)),
            self._split(key),
            self._split(value),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )  # [B, H, Q, D / H]
        merged: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return merged

    def _split(self, states: Tensor) -> Tensor:
        """``[B, L, D]`` to ``[B, H, L, D / H]``."""
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """One pre-norm block: attention, then a feed-forward layer, each added to its input."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        width = config.feed_forward * config.dim
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.dim, width), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(width, config.dim)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: Tensor, mask: Tensor, last: int) -> Tensor:
        """Update the ``last`` positions.

        Args:
            states: ``[B, L, D]``.
            mask: ``[B, 1, L, L]`` bool.
            last: How many positions, from the end, to compute.

        Returns:
            ``[B, last, D]``.
        """
        normed = self.attention_norm(states)
        states = states[:, -last:]
        states = states + self.dropout(self.attention(normed[:, -last:], normed, mask[:, :, -last:]))
        updated: Tensor = states + self.dropout(self.feed_forward(self.feed_forward_norm(states)))
        return updated


class SASRec(Recommender):
    """Decoder-only self-attention with learned positions and an output tied to the item table.

    Example::

        >>> model = SASRec(SASRecConfig(max_length=4), num_items=10).eval()
        >>> model.score(torch.tensor([[0, 0, 3, 7]])).shape
        torch.Size([1, 11])
    """

    kind = "sasrec"
    Config = SASRecConfig

    def __init__(self, config: SASRecConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.item = ReplicatedTable(num_items + 1, config.dim)
        # Counted from the end: position 0 is the latest event, whatever the length of the history.
        self.position = nn.Parameter(torch.randn(config.max_length, config.dim) * 0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)

    @property
    def max_length(self) -> int:
        """How many of the latest events are read."""
        return int(self.config.max_length)

    def tables(self) -> Mapping[str, EmbeddingTable]:
        """The item table."""
        return {"item": self.item}

    def encode(self, history: Tensor, last: int) -> Tensor:
        """Hidden states of the ``last`` positions.

        Args:
            history: ``[B, L]`` int64, left-padded with 0, L at most ``max_length``.
            last: How many positions, from the end, to return.

        Returns:
            ``[B, last, D]``.
        """
        length = history.shape[1]
        states = self.item.lookup(history) + self.position[:length].flip(0)
        states = self.dropout(states)
        mask = attention_mask(history)
        for block in self.blocks[:-1]:
            states = block(states, mask, length)
        states = self.blocks[-1](states, mask, last)
        normed: Tensor = self.norm(states)
        return normed

    def forward(self, history: Tensor, targets: Tensor) -> Tensor:
        """Summed cross entropy of the next item over all items; see `GradientTrained`."""
        hidden = self.encode(history, history.shape[1])[targets != 0]  # [T, D]
        logits = hidden @ self.item.all_rows()[1:].T  # [T, num_items]
        return functional.cross_entropy(logits.float(), targets[targets != 0] - 1, reduction="sum")

    def score(self, history: Tensor) -> Tensor:
        """``[B, L]`` int64 to ``[B, num_items + 1]`` float32, computing the last position only.

        The logits over ``sqrt(dim)``, as attention scales its own products: the order is the same, and scores of order
        one agree between runtimes and batch sizes in the digits that people compare (docs/decisions.md).
        """
        hidden = self.encode(history, 1)[:, 0] / math.sqrt(self.config.dim)  # [B, D]
        return hidden @ self.item.all_rows().T


def attention_mask(history: Tensor) -> Tensor:
    """``[B, L]`` int64 to ``[B, 1, L, L]`` bool: a position sees the events up to its own.

    A padded position sees itself, so that no row of the softmax is empty (which would be NaN).
    """
    length = history.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=history.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=history.device)
    return ((history != 0).unsqueeze(1) & causal | itself).unsqueeze(1)
