"""What every model offers, whatever its architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrec.models.embedding import EmbeddingTable
from rayrec.models.interactions import Each, Interactions

WHOLE_HISTORY = 16_384
"""The ``max_length`` of models that look at everything a user had, in no order."""


class Recommender(nn.Module, ABC):
    """A model that scores every item for a history of items.

    Rows: item rows run from 1 to ``num_items``; row 0 is padding. The mapping from item keys to rows belongs to the
    bundle, not to the model. No model reads who the user is: what it knows of them is their history, and for a few what
    is declared of them, so that it answers for users who came after it was trained, and for what they did since
    (docs/decisions.md).

    Attributes:
        exports: Whether `score` can be written as an ONNX graph; models with sparse matrices are served by torch.
        learns_from: What a training batch holds, for `GradientTrained` models: windows of ``sequences`` (see
            `SequenceFeed`), or ``pairs`` of a user and an item they had (see `PairFeed`).
        features: What it reads besides histories and times: features of the ``user``, of the ``context``.
        transient: Names of submodules that only training needs: left out of bundles.
    """

    kind: ClassVar[str]
    Config: ClassVar[type]
    exports: ClassVar[bool] = True
    learns_from: ClassVar[Literal["sequences", "pairs"]] = "sequences"
    features: ClassVar[tuple[str, ...]] = ()
    transient: ClassVar[tuple[str, ...]] = ()

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

    def observe(self, interactions: Interactions) -> None:
        """See the training events before training by gradient begins; every worker calls it with the same."""

    def tables(self) -> Mapping[str, EmbeddingTable]:
        """The named embedding tables, stored apart from the dense weights. None by default."""
        return {}

    def table_parameters(self) -> list[nn.Parameter]:
        """What is learnt a row at a time, ``[rows, dim]`` each: the optimizer's settings for tables are of these."""
        return [p for table in self.tables().values() for p in table.optimizer_parameters() if p.requires_grad]

    def rows_of_items(self) -> frozenset[str]:
        """Names of the weights that have a row for each item, padding's first."""
        names = {f"{table}.weight" for table in self.tables()} | {"bias"}
        return frozenset(names & {name for name, _ in self.named_parameters()})

    @property
    def max_length(self) -> int:
        """How many of the latest events the model reads."""
        return WHOLE_HISTORY

    @property
    def widths(self) -> Mapping[str, int]:
        """How many columns there are of each of `features`, where any were declared."""
        return {}

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of what `score` takes, as `rayrec.inference.inputs` describes them."""
        return ("history", *self.widths)


def had(history: Tensor, num_items: int) -> Tensor:
    """What is in each history, for models that know no order.

    Args:
        history: ``[B, L]`` int64 item rows, padded with 0.
        num_items: Items; their rows run from 1.

    Returns:
        ``[B, num_items + 1]`` float32: 1 for each item of the history, 0 for others and for padding.
    """
    present = torch.zeros(history.shape[0], num_items + 1, device=history.device)
    # Not a slice set to zero: that would not export.
    return present.scatter(1, history, (history != 0).to(present.dtype))


def distinct(history: Tensor) -> Tensor:
    """The items of each history, once: ``[B, L]`` int64, in the order of their rows, 0 in place of repetitions."""
    ordered = history.sort(1).values
    repeated = torch.cat([torch.zeros_like(ordered[:, :1], dtype=torch.bool), ordered[:, 1:] == ordered[:, :-1]], 1)
    return ordered.masked_fill(repeated, 0)


@runtime_checkable
class Factorized(Protocol):
    """A model whose scores are inner products, ``score(...) == query(...) @ item_matrix().T``.

    So the best items of a request can be looked up in an index of the item vectors, without a score for every item.
    """

    def query(self, history: Tensor) -> Tensor:
        """The vectors of requests, with all that scores are scaled by.

        Args:
            history: ``[B, L]`` int64, as for `Recommender.score`; what else that takes is taken here too.

        Returns:
            ``[B, D]`` float32; ``D`` may be larger than the tables' ``dim``.
        """

    def item_matrix(self) -> Tensor:
        """``[num_items + 1, D]`` float32, the vectors that queries are multiplied by; row 0 means nothing."""


def with_column(vectors: Tensor, column: Tensor | float) -> Tensor:
    """``[N, D]`` to ``[N, D + 1]``: a bias of each item as one more column, or the 1 of each query that it meets."""
    if isinstance(column, float):
        return functional.pad(vectors, (0, 1), value=column)
    return torch.cat([vectors, column.unsqueeze(1)], 1)


@runtime_checkable
class GradientTrained(Protocol):
    """A model trained by following the gradient of an objective of its own.

    Models of sequences take any objective instead: see `rayrec.models.sequence.SequenceModel`.
    """

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Summed loss over what there is to predict.

        Args:
            inputs: From sequences ``[B, L]`` int64 item rows, padded with 0 at the end; from pairs ``[B]`` int64 user
                rows.
            targets: From sequences ``[B, L]`` int64, the item that follows each position, 0 where there is none; from
                pairs ``[B]`` int64, an item of each user.

        Returns:
            A scalar: the sum, so that workers with uneven batches can divide by the global number of targets.
        """


@runtime_checkable
class Fitted(Protocol):
    """A model that is fitted to all training events at once."""

    def fit(self, interactions: Interactions, each: Each, seed: int) -> None:
        """Fit to the training events.

        Args:
            interactions: The training events.
            each: Where an algorithm works in blocks, what shares them out; the outcome must not depend on it.
            seed: Of what is random, if anything is.
        """
