"""Caser: convolutions over the latest items, taken as a picture of events by dimensions, predict the next one.

Tang and Wang, "Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding", WSDM 2018
(https://arxiv.org/abs/1809.07426).

Differences: no vector of the user, since our models read no user ids: what lies before the window is not known; the
output is tied to the item table and items have no bias; every event is learnt from, and only the item after it (the
paper's T = 1), by the recipe's objective (full softmax unless it says otherwise) instead of binary cross entropy with
three sampled negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrec.models.checks import require
from rayrec.models.embedding import ReplicatedTable
from rayrec.models.sequence import SequenceModel

LARGEST = 16_384
"""Beyond it a setting is a typing error."""
WIDEST = 64
"""Largest window: there are filters of every height up to it, so that the work grows with its square."""


@dataclass(frozen=True)
class CaserConfig:
    """The architecture.

    Attributes:
        dim: Width of item vectors (the paper's d).
        window: How many of the latest events are read (L).
        horizontal: Horizontal filters of each height from 1 to ``window`` (n over the number of heights).
        vertical: Vertical filters (n tilde).
        dropout: Share of what the filters find that is dropped while training.
        max_length: How many events of a history are learnt from at once.
    """

    dim: int = 64
    window: int = 5
    horizontal: int = 16
    vertical: int = 4
    dropout: float = 0.3
    max_length: int = 200

    def __post_init__(self) -> None:
        for name in ("dim", "horizontal", "vertical", "max_length"):
            size = getattr(self, name)
            require(1 <= size <= LARGEST, f"{name} must be at least 1 and at most {LARGEST}, not {size}")
        require(1 <= self.window <= WIDEST, f"window must be at least 1 and at most {WIDEST}, not {self.window}")
        require(0.0 <= self.dropout < 1.0, f"dropout must be at least 0 and below 1, not {self.dropout}")


class Caser(SequenceModel):
    """Horizontal and vertical convolutions and one layer that joins what they find.

    Example::

        >>> model = Caser(CaserConfig(window=3), num_items=10).eval()
        >>> model.score(torch.tensor([[0, 0, 3, 7]])).shape
        torch.Size([1, 11])
    """

    kind = "caser"
    Config = CaserConfig

    def __init__(self, config: CaserConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.item = ReplicatedTable(num_items + 1, config.dim)
        heights = range(1, config.window + 1)
        self.horizontal = nn.ModuleList(nn.Conv1d(config.dim, config.horizontal, height) for height in heights)
        self.vertical = nn.Linear(config.window, config.vertical, bias=False)
        found = config.horizontal * config.window + config.vertical * config.dim
        self.dropout = nn.Dropout(config.dropout)
        self.join = nn.Linear(found, config.dim)

    def states(self, history: Tensor, times: Tensor | None = None) -> Tensor:
        """See `SequenceModel.states`."""
        return self._convolved(functional.pad(history, (self.config.window - 1, 0)))

    def latest(self, history: Tensor, times: Tensor | None = None) -> Tensor:
        """See `SequenceModel.latest`."""
        window = self.config.window
        # With padding first there is a whole window, whatever the length.
        return self._convolved(functional.pad(history, (window, 0))[:, -window:]).squeeze(1)

    def _convolved(self, history: Tensor) -> Tensor:
        """The state of each window: ``[B, window - 1 + L]`` int64, 0 where there is no event, to ``[B, L, D]``."""
        window = self.config.window
        events = self.item.lookup(history).transpose(1, 2)  # [B, D, window - 1 + L]
        # Each filter runs over the history once; a window's largest value is among those that begin and end in it.
        found = [
            functional.max_pool1d(filters(events), window + 1 - height, stride=1)
            for height, filters in enumerate(self.horizontal, start=1)
        ]
        across = functional.relu(torch.cat(found, 1)).transpose(1, 2)  # [B, L, horizontal * window]
        along = self.vertical(events.unfold(2, window, 1)).permute(0, 2, 3, 1).flatten(2)  # [B, L, vertical * D]
        state: Tensor = functional.relu(self.join(self.dropout(torch.cat([across, along], 2))))
        return state
