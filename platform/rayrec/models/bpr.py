"""BPR: what somebody had is ranked above what they did not have.

Rendle, Freudenthaler, Gantner and Schmidt-Thieme, "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009
(https://arxiv.org/abs/1205.2618), with the users of FISM: Kabbur, Ning and Karypis, "FISM: Factored Item Similarity
Models for Top-N Recommender Systems", KDD 2013 (https://doi.org/10.1145/2487575.2487589).

Differences: BPR's matrix factorization learns a vector for every user. Models here read histories, so that people who
came after training and events since then count; FISM's users are made of their items, and BPR's criterion is theirs
too (its FISMauc). A step takes all events of a batch of windows instead of one, a negative that is in the window is
left out instead of drawn again, and there is no regularization but early stopping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrec.models.base import WHOLE_HISTORY, Recommender, distinct, with_column
from rayrec.models.checks import require
from rayrec.models.embedding import EmbeddingTable, ReplicatedTable


@dataclass(frozen=True)
class BPRConfig:
    """The model.

    Attributes:
        dim: Width of the vectors.
        alpha: A user's vector is the sum of their n items' vectors over ``n ** alpha``: 1 for the mean, 0 for the sum.
        negatives: Items drawn, uniformly, to be ranked below each event.
        max_length: How many of the latest events are read.
    """

    dim: int = 64
    alpha: float = 0.5
    negatives: int = 1
    max_length: int = 50

    def __post_init__(self) -> None:
        require(1 <= self.dim <= 4096, f"dim must be at least 1 and at most 4096, not {self.dim}")
        require(0.0 <= self.alpha <= 1.0, f"alpha must be at least 0 and at most 1, not {self.alpha}")
        require(1 <= self.negatives <= 1024, f"negatives must be at least 1 and at most 1024, not {self.negatives}")
        known = 1 <= self.max_length <= WHOLE_HISTORY
        require(known, f"max_length must be at least 1 and at most {WHOLE_HISTORY}, not {self.max_length}")


class BPR(Recommender):
    """Item vectors for what was had and for what is ranked, and a bias for each item.

    On MovieLens 100K it learns more, and faster, with a learning rate of 0.003 and 32 users a step.

    Example::

        >>> model = BPR(BPRConfig(dim=8), num_items=3)
        >>> model.score(torch.tensor([[0, 1]])).shape
        torch.Size([1, 4])
    """

    kind = "bpr"
    Config = BPRConfig

    def __init__(self, config: BPRConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.item = ReplicatedTable(num_items + 1, config.dim)
        self.had = ReplicatedTable(num_items + 1, config.dim)
        self.bias = nn.Parameter(torch.zeros(num_items + 1))

    @property
    def max_length(self) -> int:
        """How many of the latest events are read."""
        return int(self.config.max_length)

    def tables(self) -> Mapping[str, EmbeddingTable]:
        """Vectors of items as they are ranked, and as they make users."""
        return {"item": self.item, "had": self.had}

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Summed loss over the targets: each against its negatives, the user being made of the others in the window."""
        window = distinct(torch.cat([inputs[:, :1], targets], 1))  # [B, L + 1], every target among them
        vectors, sizes = self.had.lookup(window).sum(1), (window != 0).sum(1)
        kept = targets != 0
        of = kept.nonzero()[:, 0]  # [T], the window of each target
        positive = targets[kept]
        others = (sizes[of] - 1).clamp_min(1)
        users = (vectors[of] - self.had.lookup(positive)) / others.unsqueeze(1) ** self.config.alpha  # [T, D]
        negatives = torch.randint(1, self.num_items + 1, (len(of), self.config.negatives), device=targets.device)
        margins = self._of(users, positive.unsqueeze(1)) - self._of(users, negatives)  # [T, negatives]
        losses = functional.softplus(-margins).masked_fill(contains(window, self.num_items, of, negatives), 0.0)
        return losses.sum() / self.config.negatives

    def _of(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of some items: ``[T, D]`` and ``[T, N]`` to ``[T, N]``."""
        return (self.item.lookup(items) @ users.unsqueeze(2)).squeeze(2) + self.bias[items]

    def score(self, history: Tensor) -> Tensor:
        """``[B, L]`` int64 to ``[B, num_items + 1]`` float32; the biases where the history is empty."""
        return self._users(history) @ self.item.all_rows().T + self.bias

    def query(self, history: Tensor) -> Tensor:
        """See `Factorized`."""
        return with_column(self._users(history), 1.0)

    def item_matrix(self) -> Tensor:
        """See `Factorized`."""
        return with_column(self.item.all_rows(), self.bias)

    def _users(self, history: Tensor) -> Tensor:
        """``[B, L]`` int64 to ``[B, D]``."""
        window = distinct(history)
        sizes = (window != 0).sum(1, keepdim=True).clamp_min(1)
        return self.had.lookup(window).sum(1) / sizes**self.config.alpha


def contains(windows: Tensor, num_items: int, of: Tensor, items: Tensor) -> Tensor:
    """Which items are in a window.

    Args:
        windows: ``[B, L]`` int64.
        num_items: The largest item row.
        of: ``[T]`` int64, the window of each row of ``items``.
        items: ``[T, N]`` int64.

    Returns:
        ``[T, N]`` bool.
    """
    # One sorted list of (window, item) pairs: comparing all with all would take T N L numbers.
    first = torch.arange(len(windows), device=windows.device).unsqueeze(1) * (num_items + 1)
    pairs, sought = (first + windows).flatten().sort().values, of.unsqueeze(1) * (num_items + 1) + items
    places = torch.searchsorted(pairs, sought).clamp_max(len(pairs) - 1)
    return pairs[places] == sought
