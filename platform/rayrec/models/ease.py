"""EASE: the linear model of each item from all others, in closed form.

Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019 (https://arxiv.org/abs/1905.03375).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rayrec.errors import ModelError
from rayrec.models.base import Recommender, had
from rayrec.models.checks import require
from rayrec.models.interactions import Each, Interactions, SparseRows, blocks_of
from rayrec.models.neighbours import block_length, product

LARGEST = 2_000_000_000
"""Bytes of the weights: an ONNX file holds no more than 2 GiB."""


@dataclass(frozen=True)
class EASEConfig:
    """How it is fitted.

    Attributes:
        regularization: Added to the diagonal of the items' co-occurrences: the larger, the less rare items teach.
    """

    regularization: float = 500.0

    def __post_init__(self) -> None:
        allowed = 1e-3 <= self.regularization <= 1e9
        require(allowed, f"regularization must be between 0.001 and 1e9, not {self.regularization}")


class EASE(Recommender):
    """Scores an item by a weight for each item of the history.

    With weighted events, the matrix that is approximated holds the summed weights; a history counts as ones.

    Raises:
        ModelError: The items are too many for a weight for each pair of them.

    Example::

        >>> model = EASE(EASEConfig(regularization=1.0), num_items=2)
        >>> model.fit(Interactions(Histories.of([[1, 2], [1, 2]]), 2), here, seed=0)
        >>> model.score(torch.tensor([[1]]))
        tensor([[0.0000, 0.0000, 0.6667]])
    """

    kind = "ease"
    Config = EASEConfig

    weights: Tensor

    def __init__(self, config: EASEConfig, num_items: int) -> None:
        super().__init__()
        size = 4 * (num_items + 1) ** 2
        if size > LARGEST:
            raise ModelError(
                f"model.name = ease: {num_items:,} items take a matrix of {size / 1e9:.1f} GB, and "
                f"{LARGEST / 1e9:.1f} GB ({math.isqrt(LARGEST // 4) - 1:,} items) is the most. "
                "Use item-knn, gf-cf or lightgcn, or raise data.view.min_item_events."
            )
        self.config = config
        self.num_items = num_items
        self.register_buffer("weights", torch.zeros(num_items + 1, num_items + 1))

    def fit(self, interactions: Interactions, each: Each, seed: int) -> None:
        """Count in blocks of items what occurs together, and solve; see `Fitted`.

        It takes memory for five times the weights at most.
        """
        matrix = interactions.matrix
        blocks = blocks_of(matrix.width, block_length(matrix.width))
        together = torch.empty(matrix.width, matrix.width, dtype=torch.float64)
        counted = each(_together, (matrix.transposed(), matrix), blocks)
        for block, rows in zip(blocks, counted, strict=True):
            together[block.start : block.stop] = rows
        self.weights.copy_(solve(together, self.config.regularization))

    def score(self, history: Tensor) -> Tensor:
        """``[B, L]`` int64 to ``[B, num_items + 1]`` float32: summed weights of the items of the history."""
        return had(history, self.num_items) @ self.weights


def _together(shared: tuple[SparseRows, SparseRows], block: range) -> Tensor:
    """How often the items of a block occur with each item: ``[len(block), num_items + 1]`` float32."""
    return product(*shared, block)


def solve(together: Tensor, regularization: float) -> Tensor:
    """B = I - P diag(P)^-1 where P = (G + regularization I)^-1.

    Args:
        together: G, ``[V + 1, V + 1]`` float64; used up.
        regularization: What is added to its diagonal.

    Returns:
        ``[V + 1, V + 1]`` float64: from each item (row) to each other (column); the diagonal is 0.
    """
    together.diagonal().add_(regularization)
    torch.linalg.cholesky(together, out=together)
    inverse = torch.cholesky_inverse(together)
    weights = inverse.div_(-inverse.diagonal().clone())
    weights.fill_diagonal_(0.0)
    return weights
