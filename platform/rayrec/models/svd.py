"""PureSVD: the history, seen through the strongest directions of who had what.

Cremonesi, Koren and Turrin, "Performance of Recommender Algorithms on Top-N Recommendation Tasks", RecSys 2010
(https://doi.org/10.1145/1864708.1864721). The directions are found by a randomised block Lanczos iteration: Musco and
Musco, "Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value Decomposition", NeurIPS 2015
(https://arxiv.org/abs/1504.05477).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rayrec.models.base import Recommender, distinct, had
from rayrec.models.checks import require
from rayrec.models.embedding import EmbeddingTable, ReplicatedTable
from rayrec.models.interactions import Each, Interactions
from rayrec.models.neighbours import Bipartite

LARGEST = 4096
"""Beyond it a number of factors is a typing error."""
STEPS = 24
"""Of the search for directions, each in a block of them."""
LEAST = 12
"""Directions of a block at least; else it is a quarter of those wanted."""
NOTHING = 1e-6
"""Directions below this share of the strongest (as eigenvalues) are rounding errors."""


@dataclass(frozen=True)
class SVDConfig:
    """The architecture.

    Attributes:
        dim: Number of factors.
    """

    dim: int = 128

    def __post_init__(self) -> None:
        require(1 <= self.dim <= LARGEST, f"dim must be at least 1 and at most {LARGEST}, not {self.dim}")


class SVD(Recommender):
    """Scores are ``h V V^T``: the history projected on the first right singular vectors, the item table.

    With weighted events, the matrix that is decomposed holds the summed weights; a history counts as ones.

    Example::

        >>> model = SVD(SVDConfig(dim=1), num_items=3)
        >>> model.fit(Interactions(Histories.of([[1, 2], [1, 2], [3]]), 3), here, seed=0)
        >>> model.score(torch.tensor([[1]])).detach()
        tensor([[0.0000, 0.5000, 0.5000, 0.0000]])
    """

    kind = "svd"
    Config = SVDConfig

    def __init__(self, config: SVDConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.item = ReplicatedTable(num_items + 1, config.dim, std=0.0)

    def tables(self) -> Mapping[str, EmbeddingTable]:
        """The item table."""
        return {"item": self.item}

    def fit(self, interactions: Interactions, each: Each, seed: int) -> None:
        """Decompose who had what; see `Fitted`."""
        graph = Bipartite(self.num_items)
        graph.fill(interactions.matrix)
        with torch.no_grad():
            self.item.weight.copy_(right_singular_vectors(graph, self.config.dim, seed))

    def score(self, history: Tensor) -> Tensor:
        """``[B, L]`` int64 to ``[B, num_items + 1]`` float32."""
        vectors = self.item.all_rows()
        return had(history, self.num_items) @ vectors @ vectors.T

    def query(self, history: Tensor) -> Tensor:
        """See `Factorized`."""
        return self.item.lookup(distinct(history)).sum(1)

    def item_matrix(self) -> Tensor:
        """See `Factorized`."""
        return self.item.all_rows()


def right_singular_vectors(graph: Bipartite, rank: int, seed: int) -> Tensor:
    """Of the matrix of a graph's edges, strongest first: ``[num_items + 1, rank]`` float32.

    Columns beyond the matrix's own rank are 0. Of the two signs of a vector it has the one that makes its entry of
    largest magnitude positive.
    """
    size = graph.by_item.height
    basis, within = _searched(lambda block: graph.to_items(graph.to_users(block)), size, rank, seed)
    strengths, directions = torch.linalg.eigh(within.double(), UPLO="U")
    strengths, directions = strengths.flip(0)[:rank], directions.flip(1)[:, :rank]
    vectors = basis @ (directions * (strengths > NOTHING * strengths[0])).float()
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    signed = torch.where(largest < 0, -vectors, vectors)
    return functional.pad(signed, (0, rank - signed.shape[1]))


def _searched(multiply: Callable[[Tensor], Tensor], size: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Directions in which the strongest eigenvectors of a symmetric matrix lie, and the matrix within them.

    Args:
        multiply: From ``[size, n]`` float32 to its product with the matrix.
        size: Of the matrix.
        rank: How many eigenvectors are wanted.
        seed: Of where the search starts.

    Returns:
        An orthonormal basis ``[size, m]``, and ``[m, m]`` of which only the upper triangle means anything.
    """
    width = max(LEAST, -(-rank // 4))
    total = STEPS * width
    if size <= total + width:
        return torch.eye(size), multiply(torch.eye(size))
    basis, within = torch.zeros(size, total), torch.zeros(total, total)
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(size, width, generator=generator)
    for start in range(0, total, width):
        known, stop = basis[:, :start], start + width
        # Twice: rounding leaves a part in what is known, and where all is known the search goes on from anywhere.
        for _ in range(2):
            block, lengths = torch.linalg.qr(block - known @ (known.T @ block))
            exhausted = lengths.diagonal().abs() <= NOTHING
            block = torch.where(exhausted, torch.randn(size, width, generator=generator), block)
        basis[:, start:stop] = block
        block = multiply(block)
        within[:stop, start:stop] = basis[:, :stop].T @ block
        block = block / within.max().clamp(min=torch.finfo(torch.float32).tiny)
    return basis, within
