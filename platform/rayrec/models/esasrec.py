"""eSASRec: SASRec with gated blocks.

Tikhonovich et al., "eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion", RecSys 2025
(https://arxiv.org/abs/2508.06450): SASRec's shifted sequence with the blocks of LiGR (Borisyuk et al., "From Features
to Transformers: Redefining Ranking for Scalable Impact", 2025, https://arxiv.org/abs/2502.03417) and a SwiGLU
feed-forward layer. The paper's objective is a sampled softmax; here it is the recipe's (``training.objective``).

Differences: those of `rayrec.models.sasrec`, and its normalisation after the last block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrec.models.sasrec import Attention, SASRec, SASRecConfig


@dataclass(frozen=True)
class ESASRecConfig(SASRecConfig):
    """The architecture: SASRec's settings, with the paper's defaults."""

    feed_forward: int = 4
    dropout: float = 0.2


class SwiGLU(nn.Module):
    """A gated feed-forward layer: Shazeer, "GLU Variants Improve Transformer", 2020 (https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        width = config.feed_forward * config.dim
        self.gate_and_value = nn.Linear(config.dim, 2 * width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(width, config.dim, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """``[B, L, D]`` to ``[B, L, D]``."""
        gate, value = self.gate_and_value(states).chunk(2, dim=-1)
        transformed: Tensor = self.output(self.dropout(functional.silu(gate) * value))
        return transformed


class LiGRBlock(nn.Module):
    """One pre-norm block; its input says, value by value, how much of attention and of feed-forward is added to it."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = Attention(config)
        self.attention_gate = nn.Linear(config.dim, config.dim)
        self.feed_forward_norm = nn.LayerNorm(config.dim)
        self.feed_forward = SwiGLU(config)
        self.feed_forward_gate = nn.Linear(config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: Tensor, mask: Tensor | None, last: int) -> Tensor:
        """Update the ``last`` positions; see `rayrec.models.sasrec.Block`."""
        attended = self.dropout(self.attention(self.attention_norm(states), mask, last))
        states = states[:, -last:]
        states = states + attended * torch.sigmoid(self.attention_gate(states))
        transformed = self.dropout(self.feed_forward(self.feed_forward_norm(states)))
        updated: Tensor = states + transformed * torch.sigmoid(self.feed_forward_gate(states))
        return updated


class ESASRec(SASRec):
    """SASRec of LiGR blocks.

    Example::

        >>> model = ESASRec(ESASRecConfig(max_length=4), num_items=10).eval()
        >>> model.score(torch.tensor([[0, 0, 3, 7]])).shape
        torch.Size([1, 11])
    """

    kind = "esasrec"
    Config = ESASRecConfig
    block = LiGRBlock
