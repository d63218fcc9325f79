"""SASRec: self-attention over the history predicts the next item.

Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018 (https://arxiv.org/abs/1808.09781).

Differences: the objective is the full softmax over all items at every position unless the recipe says otherwise, not
binary cross entropy with one sampled negative (Klenitskiy and Vasilev, RecSys 2023, https://arxiv.org/abs/2309.07602,
show that this is what makes SASRec strong); normalisation stands before attention and feed-forward on the residual
branch only (pre-norm); GELU instead of ReLU, and a feed-forward width that can be set; attention weights are not
dropped, only what is added to the residual stream; positions count from the latest event.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrec.models.checks import require
from rayrec.models.embedding import ReplicatedTable
from rayrec.models.sequence import SequenceModel, attention_mask, until_the_end

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


PARTS = 4
"""Of a history, when it is attended to for an answer."""
NEVER = -1e9


class Attention(nn.Module):
    """Multi-head self-attention; queries may be fewer than keys (only the last position at inference)."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.dim, config.dim)
        self.key_value = nn.Linear(config.dim, 2 * config.dim)
        self.output = nn.Linear(config.dim, config.dim)

    def forward(self, states: Tensor, mask: Tensor | None, last: int) -> Tensor:
        """Attend.

        Args:
            states: ``[B, L, D]``.
            mask: ``[B, 1, Q, L]`` bool, True where a position may look; None where each looks at what is not after it.
            last: How many positions, from the end, look at all of them; 0: every one.

        Returns:
            ``[B, Q, D]``.
        """
        if mask is not None and not last:
            return self._in_parts(states, mask)
        queries = states[:, -last:]
        key, value = self.key_value(states).chunk(2, dim=-1)
        query = self._split(self.query(queries))
        # Without weights dropped and without a mask to read, the kernel keeps to half of the square.
        attended = functional.scaled_dot_product_attention(
            query, self._split(key), self._split(value), attn_mask=mask, is_causal=mask is None
        )  # [B, H, Q, D / H]
        merged: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return merged

    def _in_parts(self, states: Tensor, mask: Tensor) -> Tensor:
        """All positions, a part after the other, each of which is compared with no events after it.

        Nearly half of the square of positions is not worked out: .38 in place of .51 ms for a history of 200 (ONNX
        Runtime, one thread, d = 64).

        Args:
            states: ``[B, L, D]`` with at least `PARTS` positions.
            mask: ``[B, 1, L, L]`` bool, without an empty row.

        Returns:
            ``[B, L, D]``.
        """
        key, value = map(self._split, self.key_value(states).chunk(2, dim=-1))
        query = self._split(self.query(states)) * key.shape[-1] ** -0.5
        ends = [states.shape[1] * part // PARTS for part in range(PARTS + 1)]
        attended = []
        for begin, end in pairwise(ends):
            likeness = query[:, :, begin:end] @ key[:, :, :end].transpose(-1, -2)
            # A number in place of minus infinity: exported graphs would look for rows that are empty.
            weights = torch.softmax(likeness.masked_fill(~mask[:, :, begin:end, :end], NEVER), dim=-1)
            attended.append(weights @ value[:, :, :end])
        merged: Tensor = self.output(torch.cat(attended, dim=2).transpose(1, 2).flatten(2))
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

    def forward(self, states: Tensor, mask: Tensor | None, last: int) -> Tensor:
        """Update the ``last`` positions.

        Args:
            states: ``[B, L, D]``.
            mask: As `Attention` takes it.
            last: How many positions, from the end, to compute; 0: all.

        Returns:
            ``[B, last, D]``.
        """
        attended = self.attention(self.attention_norm(states), mask, last)
        states = states[:, -last:] + self.dropout(attended)
        updated: Tensor = states + self.dropout(self.feed_forward(self.feed_forward_norm(states)))
        return updated


class SASRec(SequenceModel):
    """Decoder-only self-attention with learned positions and an output tied to the item table.

    Example::

        >>> model = SASRec(SASRecConfig(max_length=4), num_items=10).eval()
        >>> model.score(torch.tensor([[0, 0, 3, 7]])).shape
        torch.Size([1, 11])
    """

    kind = "sasrec"
    Config = SASRecConfig
    block: ClassVar[type[nn.Module]] = Block

    def __init__(self, config: SASRecConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.item = ReplicatedTable(num_items + 1, config.dim)
        # Counted from the end: position 0 is the latest event, whatever the length of the history.
        self.position = nn.Parameter(torch.randn(config.max_length, config.dim) * 0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(self.block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)

    def states(self, history: Tensor, times: Tensor | None = None) -> Tensor:
        """See `SequenceModel.states`."""
        states = self._embedded(history)
        for block in self.blocks:
            states = block(states, None, 0)
        normed: Tensor = self.norm(states)
        return normed

    def latest(self, history: Tensor, times: Tensor | None = None) -> Tensor:
        """See `SequenceModel.latest`; of the last block, only the last position is computed."""
        # As many empty positions as make each part of the shortest history have one.
        states = functional.pad(self._embedded(history), (0, 0, PARTS - 1, 0))
        mask = attention_mask(functional.pad(history, (PARTS - 1, 0)))
        for block in self.blocks[:-1]:
            states = block(states, mask, 0)
        states = self.blocks[-1](states, mask[:, :, -1:], 1)
        normed: Tensor = self.norm(states[:, 0])
        return normed

    def _embedded(self, history: Tensor) -> Tensor:
        """Item and position: ``[B, L]`` int64 to ``[B, L, D]``."""
        positions = functional.embedding(until_the_end(history), self.position)
        embedded: Tensor = self.dropout(self.item.lookup(history) + positions)
        return embedded
