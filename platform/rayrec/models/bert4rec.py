"""BERT4Rec: attention over the whole history, in both directions, fills in items that were hidden from it.

Sun et al., "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer", CIKM 2019
(https://arxiv.org/abs/1904.06690). Petrov and Macdonald, RecSys 2022 (https://arxiv.org/abs/2207.07483) show that its
figures need many more epochs than other models do; with the same loss SASRec is better and learns faster (Klenitskiy
and Vasilev, RecSys 2023, https://arxiv.org/abs/2309.07602).

Differences: normalisation stands on the residual branch (pre-norm), which needs no long warm-up; attention weights are
not dropped; positions count from the latest event; what is hidden is drawn anew each epoch instead of ten times
beforehand; the objective is the recipe's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrec.models.checks import require
from rayrec.models.embedding import ReplicatedTable
from rayrec.models.sasrec import Block, SASRecConfig
from rayrec.models.sequence import SequenceModel, until_the_end

MASK = -1
"""Stands in a history for an event that is hidden. No item row: the item table does not know it."""


@dataclass(frozen=True)
class BERT4RecConfig(SASRecConfig):
    """The architecture.

    Attributes:
        mask: Share of the events of a history that are hidden while training, at least one.
        last: Share of the histories of which only the last event is hidden, as it is when recommending.
    """

    heads: int = 2
    feed_forward: int = 4
    dropout: float = 0.2
    mask: float = 0.2
    last: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0.0 < self.mask < 1.0, f"mask must be above 0 and below 1, not {self.mask}")
        require(0.0 <= self.last <= 1.0, f"last is a share: between 0 and 1, not {self.last}")


class BERT4Rec(SequenceModel):
    """Encoder-only self-attention with learned positions and an output tied to the item table.

    Example::

        >>> model = BERT4Rec(BERT4RecConfig(max_length=4), num_items=10).eval()
        >>> model.score(torch.tensor([[0, 0, 3, 7]])).shape
        torch.Size([1, 11])
    """

    kind = "bert4rec"
    Config = BERT4RecConfig
    causal: ClassVar[bool] = False

    def __init__(self, config: BERT4RecConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.item = ReplicatedTable(num_items + 1, config.dim)
        self.mask = nn.Parameter(torch.randn(config.dim) * 0.02)
        # Position 0 is what is asked for, so that the latest event of a history stands at 1 when recommending.
        self.position = nn.Parameter(torch.randn(config.max_length + 1, config.dim) * 0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)
        self.output = nn.Sequential(nn.Linear(config.dim, config.dim), nn.GELU(), nn.LayerNorm(config.dim))
        self.bias = nn.Parameter(torch.zeros(num_items + 1))

    def states(self, history: Tensor, times: Tensor | None = None) -> Tensor:
        """The state of each event, hidden ones (`MASK`) included, knowing all that are not; else as the base says."""
        return self.output(self._encoded(history, until_the_end(history), history.shape[1]))

    def latest(self, history: Tensor, times: Tensor | None = None) -> Tensor:
        """See `SequenceModel.latest`; the state of a hidden event after the history."""
        asked = functional.pad(history, (0, 1), value=MASK)
        state: Tensor = self.output(self._encoded(asked, until_the_end(asked), 1)[:, 0])
        return state

    def examples(self, history: Tensor, targets: Tensor, times: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `SequenceModel.examples`; what there is to predict are the hidden events of each window."""
        window = torch.cat([history[:, :1], targets], dim=1)
        hidden = drawn(window, self.config.mask, self.config.last)
        # Attention knows of no order but positions'. With what is hidden put last, the last block computes only that.
        order = hidden.to(torch.uint8).argsort(dim=1, stable=True)
        window, hidden, positions = (each.gather(1, order) for each in (window, hidden, until_the_end(window)))
        most = max(1, int(hidden.sum(1).max()))
        states = self._encoded(window.masked_fill(hidden, MASK), positions, most)
        window, hidden = window[:, -most:], hidden[:, -most:]
        return self.output(states[hidden]), window[hidden]

    def _encoded(self, history: Tensor, positions: Tensor, last: int) -> Tensor:
        """Encode.

        Args:
            history: ``[B, L]`` int64 item rows and `MASK`, in any order; padding (0) anywhere.
            positions: ``[B, L]`` int64, how many events come after each.
            last: How many places, from the end, to compute.

        Returns:
            ``[B, last, D]``.
        """
        items = self.item.lookup(history.clamp(min=0))
        items = torch.where((history == MASK).unsqueeze(-1), self.mask, items)
        states = self.dropout(items + functional.embedding(positions, self.position))
        real = history != 0
        # A history of nothing sees its padding: a row of the softmax without a key would be NaN.
        seen = (real | ~real.any(dim=1, keepdim=True))[:, None, None]  # [B, 1, 1, L]
        for block in self.blocks[:-1]:
            states = block(states, seen, history.shape[1])
        normed: Tensor = self.norm(self.blocks[-1](states, seen, last))
        return normed


def drawn(window: Tensor, mask: float, last: float) -> Tensor:
    """Which events to hide, by torch's global generator: ``[B, L]`` bool, at least one of each window with events.

    Args:
        window: ``[B, L]`` int64 item rows, padded with 0 at the end.
        mask: Share of the events.
        last: Share of the windows of which only the last event is hidden.
    """
    real = window != 0
    draws = torch.rand(window.shape, device=window.device).masked_fill(~real, 2.0)
    some = (draws < mask) | (draws == draws.amin(dim=1, keepdim=True))
    only_last = torch.rand(len(window), 1, device=window.device) < last
    return torch.where(only_last, until_the_end(window) == 0, some) & real
