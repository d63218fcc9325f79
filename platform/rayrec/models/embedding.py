"""Embedding tables: the protocol that models see, and the table that lives whole on every worker."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class EmbeddingTable(Protocol):
    """A named table of vectors, one a row; row 0 is padding.

    Replicated, sharded and quantized tables are interchangeable behind it. ``all_rows`` is what a full softmax needs;
    a table that is not whole on this worker refuses it.
    """

    num_rows: int
    dim: int

    def lookup(self, rows: Tensor) -> Tensor:
        """Vectors of ``rows``: ``[...]`` int64 to ``[..., dim]`` float32."""

    def all_rows(self) -> Tensor:
        """Every vector: ``[num_rows, dim]``. A ModelError where the table is sharded."""

    def optimizer_parameters(self) -> list[nn.Parameter]:
        """What the row optimizer updates."""

    def changed_rows(self, rows: Tensor) -> Tensor:
        """The distinct rows, padding left out, that a step over ``rows`` changes: ``[n]`` int64."""


class ReplicatedTable(nn.Module):
    """A table that is whole on every worker.

    Args:
        num_rows: Rows, padding included.
        dim: Length of a vector.
        std: Standard deviation of the initial values (padding starts, and stays, at zero).

    Attributes:
        sparse: Whether the gradient of `lookup` holds only the rows that were looked up.
    """

    sparse = False

    def __init__(self, num_rows: int, dim: int, std: float = 0.02) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.dim = dim
        weight = torch.randn(num_rows, dim) * std
        weight[0] = 0.0
        self.weight = nn.Parameter(weight)

    def lookup(self, rows: Tensor) -> Tensor:
        """Vectors of ``rows``: ``[...]`` int64 to ``[..., dim]``."""
        return functional.embedding(rows, self.weight, padding_idx=0, sparse=self.sparse)

    def all_rows(self) -> Tensor:
        """Every vector: ``[num_rows, dim]``."""
        return self.weight

    def optimizer_parameters(self) -> list[nn.Parameter]:
        """The one weight matrix."""
        return [self.weight]

    def changed_rows(self, rows: Tensor) -> Tensor:
        """The distinct rows, padding left out: ``[n]`` int64."""
        distinct = torch.unique(rows)
        return distinct[distinct != 0]


class NormalizedTable:
    """A view of a table in which every vector has length 1, so that products are cosines; padding stays at zero.

    Args:
        table: The table whose vectors are learnt.
    """

    def __init__(self, table: EmbeddingTable) -> None:
        self.table = table
        self.num_rows = table.num_rows
        self.dim = table.dim

    def lookup(self, rows: Tensor) -> Tensor:
        """Vectors of ``rows``: ``[...]`` int64 to ``[..., dim]``."""
        return functional.normalize(self.table.lookup(rows), dim=-1)

    def all_rows(self) -> Tensor:
        """Every vector: ``[num_rows, dim]``."""
        return functional.normalize(self.table.all_rows(), dim=-1)

    def optimizer_parameters(self) -> list[nn.Parameter]:
        """Those of the table."""
        return self.table.optimizer_parameters()

    def changed_rows(self, rows: Tensor) -> Tensor:
        """Those of the table."""
        return self.table.changed_rows(rows)
