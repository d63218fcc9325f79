"""What models of sequences share: the history becomes a vector, and items are scored by their product with it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from rayrec.models.base import Recommender, with_column
from rayrec.models.embedding import EmbeddingTable


class SequenceModel(Recommender):
    """A model that learns which item comes next, by any objective (`rayrec.models.losses`).

    Items are scored by the product of the history's state with their vectors, divided by ``sqrt(dim)`` as attention
    scales its own products: the order is the same, and scores of order one agree between runtimes and batch sizes in
    the digits that people compare (docs/decisions.md).

    Attributes:
        item: The vectors of the items.
        bias: ``[num_items + 1]`` float32, added to the products; None for models without.
        timed: Whether the model reads when events were. Then ``times`` is given everywhere: of each event, and of the
            moment that is asked for. Only differences may count, so that any origin will do.
        causal: Whether a state knows only its event and those before it. The others hide events and fill them in: they
            have `examples` of their own, and states after an event are not what they recommend by.
    """

    timed: ClassVar[bool] = False
    causal: ClassVar[bool] = True

    item: EmbeddingTable
    bias: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        # Not None in the class: that would be in the way of a parameter of this name.
        self.register_parameter("bias", None)

    @property
    def max_length(self) -> int:
        """How many of the latest events are read."""
        return int(self.config.max_length)

    def tables(self) -> Mapping[str, EmbeddingTable]:
        """The item table."""
        return {"item": self.item}

    @property
    def reads(self) -> tuple[str, ...]:
        """The history, times if they matter, and declared features."""
        return ("history", *(["times"] if self.timed else []), *self.widths)

    @property
    def outputs(self) -> EmbeddingTable:
        """What states are compared with, in the objective and in scores: the item table, or a view of it."""
        return self.item

    @abstractmethod
    def states(self, history: Tensor, times: Tensor | None = None) -> Tensor:
        """The state after each event, while training.

        Args:
            history: ``[B, L]`` int64 item rows, oldest first; shorter histories are padded with 0 AT THE END, so that
                no event of a causal model needs a mask.
            times: ``[B, L + 1]`` int64 seconds, of each event and of the one after it; None for models that read none.

        Returns:
            ``[B, L, D]``; what stands at padding means nothing.
        """

    @abstractmethod
    def latest(self, history: Tensor, times: Tensor | None = None) -> Tensor:
        """The state that the next item is recommended by.

        Args:
            history: ``[B, L]`` int64 item rows, oldest first, padded with 0 at the BEGINNING.
            times: ``[B, L + 1]`` int64 seconds, of each event and, last, of the moment that is asked for.

        Returns:
            ``[B, D]``.
        """

    def examples(self, history: Tensor, targets: Tensor, times: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What there is to predict, and the states it is predicted from: by default, at each event the next one.

        Args:
            history: As for `states`.
            targets: ``[B, L]`` int64, the item after each event, 0 where there is none.
            times: As for `states`.

        Returns:
            States ``[T, D]`` and items ``[T]`` int64.
        """
        real = targets != 0
        return self.states(history, times)[real], targets[real]

    def score(self, history: Tensor, times: Tensor | None = None) -> Tensor:
        """``[B, L]`` int64 (and times, see `latest`) to ``[B, num_items + 1]`` float32."""
        scores = (self.latest(history, times) * self.scale) @ self.outputs.all_rows().T
        return scores if self.bias is None else scores + self.bias * self.scale

    @property
    def scale(self) -> float:
        """What products are multiplied by."""
        return 1.0 / math.sqrt(self.item.dim)

    def query(self, history: Tensor, times: Tensor | None = None) -> Tensor:
        """See `Factorized`."""
        scaled = self.latest(history, times) * self.scale
        return scaled if self.bias is None else with_column(scaled, self.scale)

    def item_matrix(self) -> Tensor:
        """See `Factorized`."""
        vectors = self.outputs.all_rows()
        return vectors if self.bias is None else with_column(vectors, self.bias)


def until_the_end(history: Tensor) -> Tensor:
    """How many events come after each: ``[B, L]`` int64, 0 for the latest; padding may stand at either side.

    Example::

        >>> until_the_end(torch.tensor([[0, 7, 8, 9], [7, 8, 0, 0]]))
        tensor([[3, 2, 1, 0],
                [1, 0, 0, 0]])
    """
    real = (history != 0).to(torch.int64)
    return (real.sum(1, keepdim=True) - real.cumsum(1)).clamp(max=history.shape[1] - 1)


def attention_mask(history: Tensor) -> Tensor:
    """``[B, L]`` int64 to ``[B, 1, L, L]`` bool: a position sees the events up to its own.

    A padded position sees itself, so that no row of the softmax is empty (which would be NaN).
    """
    length = history.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=history.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=history.device)
    return ((history != 0).unsqueeze(1) & causal | itself).unsqueeze(1)
