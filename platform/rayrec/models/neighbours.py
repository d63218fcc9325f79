"""What models of co-occurrence share: products of sparse matrices in blocks, the nearest of many, and the graph."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from rayrec.models.interactions import SparseRows, blocks_of
from rayrec.models.sparse import SparseMatrix

CELLS = 1 << 26
"""Cells of a dense block: 256 MB in float32."""
MOST_NEIGHBOURS = 1_000_000
"""Beyond it a number of neighbours is a typing error."""
MOST_ROWS = 1024
"""Rows of a block at most, so that a small catalogue too is shared out."""
SHARED = 1 << 17
"""Rows of the second matrix that are multiplied at a time: with 100 entries each, 13 million."""


def block_length(width: int) -> int:
    """Rows of a dense block over ``width`` columns, so that it stays within `CELLS`."""
    return max(1, min(MOST_ROWS, CELLS // max(1, width)))


def product(left: SparseRows, right: SparseRows, block: range) -> Tensor:
    """Some rows of the product of two sparse matrices, in memory of the order of those rows.

    Args:
        left: ``[R, M]``.
        right: ``[M, C]``.
        block: Which rows of ``left``.

    Returns:
        ``[len(block), C]`` float32, dense.
    """
    part = left.part(block)
    found, places = np.unique(part.columns, return_inverse=True)
    by_found = replace(part, columns=places, width=len(found)).transposed()
    total = torch.zeros(len(block), right.width)
    for few in blocks_of(len(found), SHARED):
        rows = _chosen(right, found[few.start : few.stop])
        with warnings.catch_warnings():
            # As in `SparseMatrix.times`.
            warnings.simplefilter("ignore")
            total += torch.sparse.mm(_coo(by_found.part(few)).t(), _coo(rows))
    return total


def _chosen(matrix: SparseRows, rows: np.ndarray) -> SparseRows:
    """The rows ``rows`` (``[n]`` int64) of a matrix, in that order."""
    lengths = np.diff(matrix.offsets)[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    entries = np.arange(offsets[-1]) + np.repeat(matrix.offsets[rows] - offsets[:-1], lengths)
    return SparseRows(offsets, matrix.columns[entries], matrix.values[entries], matrix.width)


def _coo(matrix: SparseRows) -> Tensor:
    places = torch.from_numpy(np.stack([matrix.rows, matrix.columns]))
    size = (len(matrix), matrix.width)
    return torch.sparse_coo_tensor(places, torch.from_numpy(matrix.values), size, check_invariants=False)


def nearest(similarities: Tensor, most: int) -> Tensor:
    """Which columns are the best of their row; of equal ones the first, and none that is not above 0.

    Args:
        similarities: ``[R, C]`` float32.
        most: How many of a row at most.

    Returns:
        ``[R, C]`` bool.
    """
    limits = similarities.topk(min(most, similarities.shape[1])).values[:, -1:]
    above = similarities > limits
    tied = similarities == limits
    places = most - above.sum(dim=1, keepdim=True, dtype=torch.int32)
    chosen = above | (tied & (tied.cumsum(dim=1, dtype=torch.int32) <= places))
    return chosen & (similarities > 0)


class Bipartite(nn.Module):
    """Users and items as a graph, an edge for what a user had; saved with the model, without edges until `fill`.

    Args:
        num_items: Items; their rows run from 1.
    """

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.by_user = SparseMatrix()
        self.by_item = SparseMatrix()
        none = np.zeros(0, np.int64)
        self.by_item.fill(SparseRows.of(none, none, none, num_items + 1, 0))

    def fill(self, edges: SparseRows) -> None:
        """Take over the edges: ``[U, num_items + 1]``."""
        self.by_user.fill(edges)
        self.by_item.fill(edges.transposed())

    @property
    def events(self) -> Tensor:
        """Edges of each user: ``[U]`` int64."""
        return self.by_user.offsets.diff()

    def to_users(self, items: Tensor) -> Tensor:
        """What each user gets from their items: ``[num_items + 1, B]`` float32 to ``[U, B]``."""
        return self.by_user.times(items)

    def to_items(self, users: Tensor) -> Tensor:
        """What each item gets from its users: ``[U, B]`` float32 to ``[num_items + 1, B]``."""
        return self.by_item.times(users)

    def part_length(self) -> int:
        """Histories to answer at a time, so that a value for each user and each of them stays within `CELLS`."""
        return max(1, CELLS // max(1, self.by_user.height))
