"""User-based nearest neighbours: what those had who had much of the same.

Resnick, Iacovou, Suchak, Bergstrom and Riedl, "GroupLens: An Open Architecture for Collaborative Filtering of Netnews",
CSCW 1994 (https://doi.org/10.1145/192844.192905), with the choice of neighbours of Herlocker, Konstan, Borchers and
Riedl, "An Algorithmic Framework for Performing Collaborative Filtering", SIGIR 1999
(https://doi.org/10.1145/312624.312682).

Differences: there are no ratings, so that users are compared by the cosine of the sets of what they had, and what a
neighbour had counts as much as the neighbour is similar. A history is compared with all users of the training events:
whoever is one of them is their own nearest neighbour, which adds only to what they already had.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rayrec.models.base import Recommender, had
from rayrec.models.checks import require
from rayrec.models.interactions import Each, Interactions
from rayrec.models.neighbours import MOST_NEIGHBOURS, Bipartite, nearest


@dataclass(frozen=True)
class UserKNNConfig:
    """How many are asked.

    Attributes:
        neighbours: How many of the most similar users; of equally similar ones, those who come first.
    """

    neighbours: int = 100

    def __post_init__(self) -> None:
        known = 1 <= self.neighbours <= MOST_NEIGHBOURS
        require(known, f"neighbours must be between 1 and {MOST_NEIGHBOURS:,}, not {self.neighbours}")


class UserKNN(Recommender):
    """Scores an item by the similarity of the nearest users who had it.

    It keeps the training events, and each answer reads them all.

    Example::

        >>> model = UserKNN(UserKNNConfig(neighbours=1), num_items=3)
        >>> model.fit(Interactions(Histories.of([[1, 2], [3]]), 3), here, seed=0)
        >>> model.score(torch.tensor([[0, 1]]))
        tensor([[0.0000, 0.7071, 0.7071, 0.0000]])
    """

    kind = "user-knn"
    Config = UserKNNConfig
    exports = False

    def __init__(self, config: UserKNNConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.graph = Bipartite(num_items)

    def fit(self, interactions: Interactions, each: Each, seed: int) -> None:
        """Keep who had what, whatever the weights; see `Fitted`."""
        matrix = interactions.matrix
        self.graph.fill(replace(matrix, values=np.ones_like(matrix.values)))

    def score(self, history: Tensor) -> Tensor:
        """``[B, L]`` int64 to ``[B, num_items + 1]`` float32: summed similarities of the neighbours who had it."""
        return torch.cat([self._score(part) for part in history.split(self.graph.part_length())])

    def _score(self, history: Tensor) -> Tensor:
        mine = had(history, self.num_items)
        together = self.graph.to_users(mine.T.contiguous()).T  # [B, U]
        sizes = mine.sum(dim=1, keepdim=True) * self.graph.events
        similarities = (together / sizes.clamp(min=1).sqrt()).contiguous()
        chosen = similarities * nearest(similarities, self.config.neighbours)
        return self.graph.to_items(chosen.T.contiguous()).T
