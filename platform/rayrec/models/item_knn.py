"""Item-based nearest neighbours: what goes with the items of the history.

Sarwar, Karypis, Konstan and Riedl, "Item-Based Collaborative Filtering Recommendation Algorithms", WWW 2001
(https://doi.org/10.1145/371920.372071), in the form for implicit feedback of Deshpande and Karypis, "Item-Based Top-N
Recommendation Algorithms", TOIS 2004 (https://doi.org/10.1145/963770.963776): each item keeps its most similar items,
and a candidate's score is the sum of its similarities with the items of the history that keep it.

The weightings are those of the `implicit` library, whose scores these are when it is given K = ``neighbours`` + 1: it
counts an item among its own neighbours, which here it is not. Of equally similar items those of lower rows are kept;
`implicit` leaves open which. ``shrink`` is the significance weighting of Bell and Koren, "Scalable Collaborative
Filtering with Jointly Derived Neighborhood Interpolation Weights", ICDM 2007 (https://doi.org/10.1109/ICDM.2007.90).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rayrec.models.base import Recommender, had
from rayrec.models.checks import require
from rayrec.models.interactions import Each, Interactions, SparseRows, blocks_of
from rayrec.models.neighbours import MOST_NEIGHBOURS, block_length, nearest, product
from rayrec.models.sparse import SparseMatrix

SIMILARITIES = ("cosine", "tfidf", "bm25", "jaccard")


@dataclass(frozen=True)
class ItemKNNConfig:
    """How alike two items are, and how many are kept.

    Attributes:
        similarity: ``cosine``, of the users' weights; ``tfidf``, the same with users of many items counting less;
            ``bm25``, not normalised, with popular items counting less; ``jaccard``, of sets, whatever the weights.
        neighbours: How many similar items each item keeps.
        shrink: A similarity is multiplied by n / (n + shrink), where n users had both items.
        k1: Of ``bm25``: how much more a larger weight says; unimportant where events have none.
        b: Of ``bm25``: how strongly popular items are discounted, from 0 to 1.
    """

    similarity: str = "bm25"
    neighbours: int = 100
    shrink: float = 0.0
    k1: float = 1.2
    b: float = 0.75

    def __post_init__(self) -> None:
        require(
            self.similarity in SIMILARITIES,
            f"similarity must be one of {', '.join(SIMILARITIES)}, not '{self.similarity}'",
        )
        known = 1 <= self.neighbours <= MOST_NEIGHBOURS
        require(known, f"neighbours must be between 1 and {MOST_NEIGHBOURS:,}, not {self.neighbours}")
        require(0 <= self.shrink < np.inf, f"shrink must not be negative or infinite, not {self.shrink}")
        require(0 < self.k1 < np.inf, f"k1 must be above 0, not {self.k1}")
        require(0 <= self.b <= 1, f"b must be between 0 and 1, not {self.b}")


class ItemKNN(Recommender):
    """Scores an item by its similarity to the items of the history.

    Example::

        >>> model = ItemKNN(ItemKNNConfig(similarity="cosine"), num_items=3)
        >>> model.fit(Interactions(Histories.of([[1, 2], [1, 2, 3]]), 3), here, seed=0)
        >>> model.score(torch.tensor([[0, 1]]))
        tensor([[0.0000, 0.0000, 1.0000, 0.7071]])
    """

    kind = "item-knn"
    Config = ItemKNNConfig
    exports = False

    def __init__(self, config: ItemKNNConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        # A row each candidate, a column each item of the history.
        self.similarity = SparseMatrix()
        self.similarity.fill(_joined([], num_items + 1))

    def fit(self, interactions: Interactions, each: Each, seed: int) -> None:
        """Compare all items, in blocks of items; see `Fitted`. Weights of events count, except with ``jaccard``."""
        matrix = interactions.matrix
        if self.config.similarity == "jaccard":
            matrix = replace(matrix, values=np.ones_like(matrix.values))
        blocks = blocks_of(matrix.width, block_length(matrix.width))
        weighted = weigh(matrix, self.config)
        found = each(_neighbours, (weighted, weighted.transposed(), self.config), blocks)
        self.similarity.fill(_joined(list(found), matrix.width).transposed())

    def score(self, history: Tensor) -> Tensor:
        """``[B, L]`` int64 to ``[B, num_items + 1]`` float32: summed similarities."""
        return self.similarity.times(had(history, self.num_items).T.contiguous()).T


def weigh(matrix: SparseRows, config: ItemKNNConfig) -> SparseRows:
    """Users' weights as the similarity wants them.

    N items, of which user u had n_u, with weights w; |i| is the Euclidean norm of an item's column, s_i its sum::

        jaccard  w
        cosine   w / |i|
        tfidf    w' / |i|, where w' = sqrt(w) idf_u and idf_u = log(N / (1 + n_u))
        bm25     w (k1 + 1) / (k1 (1 - b + b s_i / mean s) + w) idf_u
    """
    values = matrix.values.astype(np.float64)
    if config.similarity in ("tfidf", "bm25"):
        idf = (np.log(matrix.width - 1) - np.log1p(np.diff(matrix.offsets)))[matrix.rows]
    if config.similarity == "tfidf":
        values = np.sqrt(values) * idf
    if config.similarity == "bm25":
        sums = np.bincount(matrix.columns, values, minlength=matrix.width)
        length = 1 - config.b + config.b * sums / max(sums[1:].mean(), np.finfo(np.float64).tiny)
        values = values * (config.k1 + 1) / (config.k1 * length[matrix.columns] + values) * idf
    if config.similarity in ("cosine", "tfidf"):
        norms = np.sqrt(np.bincount(matrix.columns, values**2, minlength=matrix.width))
        values = values / np.maximum(norms, np.finfo(np.float64).tiny)[matrix.columns]
    return replace(matrix, values=values.astype(np.float32))


def _neighbours(shared: tuple[SparseRows, SparseRows, ItemKNNConfig], block: range) -> SparseRows:
    """The items kept by each item of a block: ``[len(block), num_items + 1]``."""
    matrix, transposed, config = shared
    similarities = product(transposed, matrix, block)
    if config.similarity == "jaccard":
        counts = torch.from_numpy(np.diff(transposed.offsets))
        together = similarities
        similarities = together / (counts[block.start : block.stop, None] + counts - together).clamp(min=1)
    elif config.shrink:
        together = product(_ones(transposed), _ones(matrix), block)
    if config.shrink:
        similarities = similarities * (together / (together + config.shrink))
    similarities[torch.arange(len(block)), torch.arange(block.start, block.stop)] = 0.0
    rows, columns = nearest(similarities, config.neighbours).nonzero(as_tuple=True)
    values = similarities[rows, columns]
    return SparseRows.of(rows.numpy(), columns.numpy(), values.numpy(), len(block), matrix.width)


def _ones(matrix: SparseRows) -> SparseRows:
    return replace(matrix, values=np.ones_like(matrix.values))


def _joined(parts: list[SparseRows], width: int) -> SparseRows:
    """Blocks of rows below each other; ``[width, width]`` without entries if there are none."""
    if not parts:
        return SparseRows(np.zeros(width + 1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), width)
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return SparseRows(
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([part.columns for part in parts]),
        np.concatenate([part.values for part in parts]),
        width,
    )
