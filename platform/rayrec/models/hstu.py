"""HSTU: pointwise attention over the history, with a bias by how far back events are and how long ago they were.

Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
Recommendations", ICML 2024 (https://arxiv.org/abs/2402.17152): the sequential recommender of its section 4.1.1, as in
the authors' code. Their objective is a softmax over 128 sampled negatives; here it is the recipe's.

Differences: positions count from the latest event; sums over the history are divided by ``max_length``, where the
authors divide by the padded length, which is the same with them; the biases of gaps begin at 0, not at random, so that
a model trained without times gives the same with and without them; longer gaps than any in training count as the
longest; a moment before an event counts as that of the event.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrec.features.histories import AT_A_TIME, Histories
from rayrec.models.checks import require
from rayrec.models.embedding import EmbeddingTable, NormalizedTable, ReplicatedTable
from rayrec.models.interactions import Interactions, blocks_of
from rayrec.models.sequence import SequenceModel, until_the_end

LARGEST = 16_384
"""Beyond it a setting is a typing error: attention over so many events takes gigabytes a user."""

LARGEST_BUCKET = 128
"""Far more than needed: 64 years are in bucket 71."""

BUCKET_WIDTH = 0.301
"""Of the natural logarithm of a gap in seconds; each bucket reaches 1.35 times as far as the one before."""

NEVER = -1e4
"""Added to what comes after a query: SiLU makes 0 of it, and 0 of its gradient, without a mask to multiply by."""


@dataclass(frozen=True)
class HSTUConfig:
    """The architecture.

    Attributes:
        dim: Width of item vectors and of every hidden state.
        blocks: Number of blocks.
        heads: Attention heads; divides ``dim``.
        dropout: Share of hidden values dropped while training.
        max_length: How many of the latest events are read.
        times: Whether attention depends on how long ago events were, where the log has times.
        temperature: Cosines of states and items are divided by it; None compares by plain products instead.
    """

    dim: int = 64
    blocks: int = 2
    heads: int = 1
    dropout: float = 0.2
    max_length: int = 200
    times: bool = True
    temperature: float | None = 0.05

    def __post_init__(self) -> None:
        for name in ("dim", "blocks", "heads", "max_length"):
            size = getattr(self, name)
            require(1 <= size <= LARGEST, f"{name} must be at least 1 and at most {LARGEST}, not {size}")
        require(0.0 <= self.dropout < 1.0, f"dropout must be at least 0 and below 1, not {self.dropout}")
        require(self.dim % self.heads == 0, f"dim ({self.dim}) must be a multiple of heads ({self.heads})")
        allowed = self.temperature is None or 0 < self.temperature < math.inf
        require(allowed, f"temperature must be above 0, not {self.temperature}")


class Block(nn.Module):
    """One block, the paper's sequential transduction unit: attention and its gate, and no feed-forward layer."""

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__()
        self.config = config
        self.gate_value_query_key = nn.Linear(config.dim, 4 * config.dim, bias=False)
        self.output = nn.Linear(config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.position_bias = nn.Parameter(torch.randn(config.max_length) * 0.02)
        self.gap_bias = nn.Parameter(torch.zeros(LARGEST_BUCKET + 1)) if config.times else None
        nn.init.normal_(self.gate_value_query_key.weight, std=0.02)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(self, states: Tensor, real: Tensor, buckets: Tensor | None, last: int) -> Tensor:
        """Update the ``last`` positions.

        Args:
            states: ``[B, L, D]``.
            real: ``[B, L, 1]`` float32, 0 where nobody may look, else 1.
            buckets: ``[B, last, L]`` int32, from `bucketed`; None without times.
            last: How many positions, from the end, to compute.

        Returns:
            ``[B, last, D]``.
        """
        projected = functional.silu(self.gate_value_query_key(self._normed(states)))
        gate, value, query, key = projected.chunk(4, dim=-1)
        # A value of 0 adds nothing to a sum that no softmax divides: masking values masks keys, in a pass over less.
        value = self._split(value * (real / self.config.max_length))
        products = self._split(query[:, -last:]) @ self._split(key).transpose(-1, -2)  # [B, H, last, L]
        attended = functional.silu(products + self._bias(states.shape[1], last, buckets)) @ value
        gated = gate[:, -last:] * self._normed(attended.transpose(1, 2).flatten(2))
        updated: Tensor = states[:, -last:] + self.output(self.dropout(gated))
        return updated

    def _bias(self, length: int, last: int, buckets: Tensor | None) -> Tensor:
        """What is added to the products, by position and gap: ``[1 or B, 1, last, L]``."""
        steps = torch.arange(length, device=self.position_bias.device)
        back = steps[-last:, None] - steps  # [last, L], below 0 for what comes later
        bias = self.position_bias[back.clamp(min=0)].masked_fill(back < 0, NEVER)[None, None]
        if buckets is None or self.gap_bias is None:
            return bias
        # On a CPU the gradient of this kernel takes a tenth of that of an embedding lookup.
        by_gap = self.gap_bias.index_select(0, buckets.flatten()).view(buckets.shape)
        return bias + by_gap[:, None]

    def _normed(self, states: Tensor) -> Tensor:
        """Mean 0 and variance 1, with nothing learnt, as in the authors' code: ``[..., D]``."""
        return functional.layer_norm(states, [self.config.dim], eps=1e-6)

    def _split(self, states: Tensor) -> Tensor:
        """``[B, L, D]`` to ``[B, H, L, D / H]``."""
        return states.unflatten(-1, (self.config.heads, -1)).transpose(1, 2)


class HSTU(SequenceModel):
    """Gated pointwise attention with learned positions; states and items are compared by their cosine.

    Example::

        >>> model = HSTU(HSTUConfig(max_length=4), num_items=10).eval()
        >>> model.score(torch.tensor([[0, 0, 3, 7]]), torch.tensor([[0, 0, 50, 60, 3600]])).shape
        torch.Size([1, 11])
    """

    kind = "hstu"
    Config = HSTUConfig
    timed = True

    longest: Tensor

    def __init__(self, config: HSTUConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.item = ReplicatedTable(num_items + 1, config.dim)
        self.position = nn.Parameter(torch.randn(config.max_length, config.dim) / math.sqrt(config.dim))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        # The longest gap of training: what is learnt of gaps ends there. Saved with the weights.
        self.register_buffer("longest", torch.tensor(torch.iinfo(torch.int64).max))

    @property
    def outputs(self) -> EmbeddingTable:
        """See `SequenceModel.outputs`: at length 1, where cosines are compared."""
        return self.item if self.config.temperature is None else NormalizedTable(self.item)

    def observe(self, interactions: Interactions) -> None:
        """Remember the longest gap that there is to learn from."""
        if interactions.histories.times is not None:
            self.longest.fill_(longest_gap(interactions.histories, self.config.max_length))
            return
        for block in self.blocks:
            if block.gap_bias is not None:
                # Workers that exchange gradients would wait for those of what takes no part.
                block.gap_bias.requires_grad_(False)

    def states(self, history: Tensor, times: Tensor | None = None) -> Tensor:
        """See `SequenceModel.states`."""
        length = history.shape[1]
        states, real, buckets = self._embedded(history), self._real(history), self._buckets(times, length)
        for block in self.blocks:
            states = block(states, real, buckets, length)
        return self._compared(states)

    def latest(self, history: Tensor, times: Tensor | None = None) -> Tensor:
        """See `SequenceModel.latest`; of the last block, only the last position is computed."""
        length = history.shape[1]
        states, real, buckets = self._embedded(history), self._real(history), self._buckets(times, length)
        for block in self.blocks[:-1]:
            states = block(states, real, buckets, length)
        states = self.blocks[-1](states, real, None if buckets is None else buckets[:, -1:], 1)
        return self._compared(states[:, 0])

    def _embedded(self, history: Tensor) -> Tensor:
        """Item and position: ``[B, L]`` int64 to ``[B, L, D]``."""
        positions = functional.embedding(until_the_end(history), self.position)
        embedded: Tensor = self.dropout(self.item.lookup(history) * math.sqrt(self.config.dim) + positions)
        return embedded

    def _real(self, history: Tensor) -> Tensor:
        """0 at padding, else 1: ``[B, L]`` int64 to ``[B, L, 1]``."""
        return (history != 0).to(self.position.dtype).unsqueeze(-1)

    def _buckets(self, times: Tensor | None, length: int) -> Tensor | None:
        """The bucket of each gap between a moment that is asked for and an event: ``[B, L, L]`` int32."""
        if times is None or not self.config.times:
            return None
        return bucketed((times[:, 1:, None] - times[:, None, :length]).minimum(self.longest))

    def _compared(self, states: Tensor) -> Tensor:
        """As the product with `outputs` is taken: ``[..., D]``."""
        if self.config.temperature is None:
            return states
        return functional.normalize(states, dim=-1) / self.config.temperature


def bucketed(gaps: Tensor) -> Tensor:
    """The bucket of each gap: ``[...]`` int64 seconds to ``[...]`` int32.

    Example::

        >>> bucketed(torch.tensor([-5, 0, 1, 60, 3600, 86_400]))
        tensor([ 0,  0,  0, 13, 27, 37], dtype=torch.int32)
    """
    # In float32, rounding would put some gaps into other buckets on other runtimes; and of integers, ONNX Runtime 1.31
    # clips some above 2**31 to the minimum.
    logarithms = gaps.double().clamp(min=1).log()
    return (logarithms / BUCKET_WIDTH).to(torch.int32).clamp(max=LARGEST_BUCKET)


def longest_gap(histories: Histories, max_length: int) -> int:
    """The longest gap in seconds between an event and one that is at most ``max_length`` events later."""
    times, longest = histories.times, 0
    if times is None:
        return longest
    for block in blocks_of(len(times), AT_A_TIME):
        places = np.arange(block.start, block.stop)
        last = histories.offsets[np.searchsorted(histories.offsets, places, side="right")] - 1
        later = np.minimum(places + max_length, last)
        longest = max(longest, int((times[later] - times[places]).max()))
    return longest
