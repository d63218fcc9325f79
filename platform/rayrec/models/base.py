"""What every model offers, whatever its architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from rayrec.models.embedding import EmbeddingTable


class Recommender(nn.Module, ABC):
    """A model that scores every item for a history of items.

    Rows: item rows run from 1 to ``num_items``; row 0 is padding. The mapping from item keys to rows belongs to the
    bundle, not to the model.
    """

    kind: ClassVar[str]
    Config: ClassVar[type]

    config: Any
    num_items: int

    @abstractmethod
    def score(self, history: Tensor) -> Tensor:
        """Scores of all items as the next one.

        Args:
            history: ``[B, L]`` int64 item rows, oldest first, left-padded with 0.

        Returns:
            ``[B, num_items + 1]`` float32; column 0 stands for padding and means nothing.
        """

    def tables(self) -> Mapping[str, EmbeddingTable]:
        """The named embedding tables, stored apart from the dense weights. None by default."""
        return {}

    @property
    def max_length(self) -> int:
        """How many of the latest events the model reads."""
        return 1


@runtime_checkable
class GradientTrained(Protocol):
    """A model trained by following the gradient of a loss."""

    def forward(self, history: Tensor, targets: Tensor) -> Tensor:
        """Summed loss over the positions with a target.

        Args:
            history: ``[B, L]`` int64 item rows, left-padded with 0.
            targets: ``[B, L]`` int64, the item that follows each position; 0 where there is none.

        Returns:
            A scalar: the sum, so that workers with uneven batches can divide by the global number of targets.
        """


@runtime_checkable
class Fitted(Protocol):
    """A model fitted in one pass over the training events."""

    def fit(self, items: np.ndarray) -> None:
        """Fit to the training events.

        Args:
            items: ``[N]`` int64 item rows, one an event.
        """
