"""ALS: a factorization of who had what, where what nobody had counts too, but little.

Hu, Koren and Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008
(https://doi.org/10.1109/ICDM.2008.22), fitted by the ``implicit`` library (https://github.com/benfred/implicit), which
solves by conjugate gradients (Takács, Pilászy and Tikk, RecSys 2011, https://doi.org/10.1145/2043932.2043987).

Differences: the vectors of users are thrown away after fitting. A request's vector is solved for from its history, as
each half-step of ALS does from the events of a user, so that new users and new events are answered. There every item
has the confidence ``alpha`` (as in ``implicit``; in the paper 1 + alpha), whatever the weight of its events.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayrec.models.base import Recommender, distinct
from rayrec.models.checks import require
from rayrec.models.embedding import EmbeddingTable, ReplicatedTable
from rayrec.models.interactions import Each, Interactions

ERROR = 1e-6
"""How far, relative to its length, a request's vector may be from the exact one; float32 has no more digits."""


@dataclass(frozen=True)
class ALSConfig:
    """The factorization.

    Attributes:
        dim: Width of the vectors.
        regularization: Weight of the squared length of all vectors.
        alpha: Confidence that an event is no accident; that nobody had an item has confidence 1.
        iterations: How often users and items are solved for in turn.
    """

    dim: int = 64
    regularization: float = 0.01
    alpha: float = 1.0
    iterations: int = 15

    def __post_init__(self) -> None:
        require(1 <= self.dim <= 4096, f"dim must be at least 1 and at most 4096, not {self.dim}")
        for name, least, most in (("regularization", 1e-6, 1e6), ("alpha", 0.01, 100), ("iterations", 1, 1000)):
            value = getattr(self, name)
            require(least <= value <= most, f"{name} must be between {least:g} and {most:g}, not {value}")


class ALS(Recommender):
    """Item vectors Y, and users as the least-squares solution given what they had.

    With the confidence c = alpha, Y_H the vectors of the items of a history, and W with
    W W^T = (Y^T Y + reg I)^-1, the vector p of a request solves

        (Y^T Y + (c - 1) Y_H^T Y_H + reg I) p = c Y_H^T 1,
        that is (I + (c - 1) Z_H^T Z_H) q = c Z_H^T 1     with Z = Y W and p = W q.

    The eigenvalues of the second matrix lie between 1 and c, since Z^T Z <= I: a few conjugate-gradient steps, as many
    for every request, solve it to float32's last digits, and they can be exported, which `torch.linalg.solve` cannot.

    Example::

        >>> model = ALS(ALSConfig(dim=8), num_items=3)
        >>> model.fit(Interactions(Histories.of([[1, 2], [1, 2], [3]]), 3), here, seed=0)
        >>> model.score(torch.tensor([[0, 1]])).shape
        torch.Size([1, 4])
    """

    kind = "als"
    Config = ALSConfig

    whitening: Tensor

    def __init__(self, config: ALSConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.item = ReplicatedTable(num_items + 1, config.dim)
        self.register_buffer("whitening", torch.eye(config.dim))  # W

    def tables(self) -> Mapping[str, EmbeddingTable]:
        """The item vectors Y."""
        return {"item": self.item}

    def fit(self, interactions: Interactions, each: Each, seed: int) -> None:
        """Factorize; see `Fitted`. The weights of events multiply their confidence."""
        vectors = _factorize(interactions, self.config, seed)
        gram = vectors.T.astype(np.float64) @ vectors + self.config.regularization * np.eye(self.config.dim)
        whitening = np.linalg.inv(np.linalg.cholesky(gram)).T
        with torch.no_grad():
            self.item.weight.copy_(torch.from_numpy(vectors))
        self.whitening.copy_(torch.from_numpy(whitening))

    def score(self, history: Tensor) -> Tensor:
        """``[B, L]`` int64 to ``[B, num_items + 1]`` float32; zeros where the history is empty."""
        return self.query(history) @ self.item.all_rows().T

    def query(self, history: Tensor) -> Tensor:
        """See `Factorized`: p."""
        had = (self.item.lookup(distinct(history)) @ self.whitening).double()  # Z_H, [B, L, D]
        found = self._solve(had.transpose(1, 2) @ had, self.config.alpha * had.sum(1))
        return found.float() @ self.whitening.T

    def item_matrix(self) -> Tensor:
        """See `Factorized`: Y."""
        return self.item.all_rows()

    def _solve(self, gram: Tensor, right: Tensor) -> Tensor:
        """Conjugate gradients for ``(I + (alpha - 1) gram) q = right``.

        Args:
            gram: ``[B, D, D]``.
            right: ``[B, D]``.

        Returns:
            q, ``[B, D]``.
        """
        residual = direction = right
        solution, length = torch.zeros_like(right), (right * right).sum(1, keepdim=True)  # [B, D], [B, 1]
        for _ in range(steps(self.config.alpha, self.config.dim)):
            product = direction + (self.config.alpha - 1) * (gram @ direction.unsqueeze(2)).squeeze(2)
            # The smallest number keeps what is solved, or empty, from 0 / 0.
            size = length / (direction * product).sum(1, keepdim=True).clamp_min(TINY)
            solution, residual = solution + size * direction, residual - size * product
            before, length = length, (residual * residual).sum(1, keepdim=True)
            direction = residual + length / before.clamp_min(TINY) * direction
        return solution


TINY = float(np.finfo(np.float32).tiny)


def steps(alpha: float, dim: int) -> int:
    """Conjugate-gradient steps that make the error `ERROR`, for eigenvalues between 1 and ``alpha``; at most ``2 dim``.

    By the bound 2 r^k with r = (sqrt(c) - 1) / (sqrt(c) + 1), c being the condition (Saad 2003, section 6.11.3). In
    exact arithmetic ``dim`` steps are always enough.

    Example::

        >>> steps(1.0, 64), steps(10.0, 64)
        (1, 23)
    """
    root = math.sqrt(max(alpha, 1 / alpha))
    rate = (root - 1) / (root + 1)
    return 1 if rate < ERROR else min(2 * dim, math.ceil(math.log(ERROR / 2) / math.log(rate)))


def _factorize(interactions: Interactions, config: ALSConfig, seed: int) -> np.ndarray:
    """Item vectors: ``[num_items + 1, dim]`` float32, zeros for those that nobody had."""
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    had = interactions.matrix
    matrix = csr_matrix((had.values, had.columns, had.offsets), shape=(len(had), had.width))
    # The library's own threads take whole rows, so their number changes nothing; those of BLAS would slow them down.
    with threadpool_limits(1, "blas"):
        library = AlternatingLeastSquares(
            factors=config.dim,
            regularization=config.regularization,
            alpha=config.alpha,
            iterations=config.iterations,
            num_threads=torch.get_num_threads(),
            random_state=np.random.default_rng(seed),
        )
        library.fit(matrix, show_progress=False)
    return np.asarray(library.item_factors, np.float32)
