"""GF-CF: collaborative filtering as a low-pass filter of the graph of users and items. Nothing is trained.

Shen, Wu, Zhang, Shan, Zhang, Letaief and Li, "How Powerful is Graph Convolution for Recommendation?", CIKM 2021
(https://arxiv.org/abs/2108.07567).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rayrec.models.base import Recommender, had
from rayrec.models.checks import require
from rayrec.models.interactions import Each, Interactions
from rayrec.models.neighbours import Bipartite
from rayrec.models.svd import LARGEST, right_singular_vectors


@dataclass(frozen=True)
class GFCFConfig:
    """The filter.

    Attributes:
        rank: Singular vectors of the ideal low-pass filter.
        alpha: How much it counts beside the linear filter.
    """

    rank: int = 256
    alpha: float = 0.3

    def __post_init__(self) -> None:
        require(1 <= self.rank <= LARGEST, f"rank must be at least 1 and at most {LARGEST}, not {self.rank}")
        require(0 <= self.alpha <= 1e6, f"alpha must be between 0 and 1e6, not {self.alpha}")


class GFCF(Recommender):
    """Scores are ``h (N^T N + alpha D^-1/2 U U^T D^1/2)``.

    R says who had what (whatever the weights), D how many users had each item, D_u how many items each user had;
    ``N = D_u^-1/2 R D^-1/2``, and U are its first right singular vectors.

    Example::

        >>> model = GFCF(GFCFConfig(), num_items=3)
        >>> model.fit(Interactions(Histories.of([[1, 2], [1, 2], [3]]), 3), here, seed=0)
        >>> model.score(torch.tensor([[1]]))
        tensor([[0.0000, 0.6500, 0.6500, 0.0000]])
    """

    kind = "gf-cf"
    Config = GFCFConfig
    exports = False

    degrees: Tensor
    vectors: Tensor

    def __init__(self, config: GFCFConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.graph = Bipartite(num_items)
        self.register_buffer("degrees", torch.zeros(num_items + 1))
        self.register_buffer("vectors", torch.zeros(num_items + 1, config.rank))

    def fit(self, interactions: Interactions, each: Each, seed: int) -> None:
        """Normalise the graph and decompose it; see `Fitted`."""
        matrix = interactions.matrix
        degrees = np.bincount(matrix.columns, minlength=matrix.width)
        lengths = np.diff(matrix.offsets)
        normalised = 1 / np.sqrt(lengths[matrix.rows] * degrees[matrix.columns])
        self.graph.fill(replace(matrix, values=normalised.astype(np.float32)))
        self.degrees.copy_(torch.from_numpy(degrees))
        self.vectors.copy_(right_singular_vectors(self.graph, self.config.rank, seed))

    def score(self, history: Tensor) -> Tensor:
        """``[B, L]`` int64 to ``[B, num_items + 1]`` float32."""
        return torch.cat([self._score(part) for part in history.split(self.graph.part_length())])

    def _score(self, history: Tensor) -> Tensor:
        mine = had(history, self.num_items)
        linear = self.graph.to_items(self.graph.to_users(mine.T.contiguous())).T
        # An item that nobody had is in no singular vector, whatever it is divided by.
        spread = self.degrees.clamp(min=1).sqrt()
        ideal = (mine / spread) @ self.vectors @ self.vectors.T * spread
        return linear + self.config.alpha * ideal
