"""Content: the items most like those a user had, by what is declared of them.

Lops, de Gemmis and Semeraro, "Content-based Recommender Systems: State of the Art and Trends", Recommender Systems
Handbook 2011 (https://doi.org/10.1007/978-0-387-85820-3_3): items and users in one vector space, words weighted by
TF-IDF, a user's profile the mean of the vectors of what they had (Rocchio's, without what they disliked), compared by
cosine. It is for items that nobody had yet, and beside other models.

Differences: wide vectors are reduced by a truncated SVD (Deerwester et al., "Indexing by Latent Semantic Analysis",
JASIS 1990), so that they can be served as an embedding table. The similarity is multiplied by a power of the item's
popularity, because a few events say more of an item than all its metadata (Pilászy and Tikk, "Recommending New Movies:
Even a Few Ratings Are More Valuable Than Metadata", RecSys 2009, https://doi.org/10.1145/1639714.1639731).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rayrec.errors import DataError
from rayrec.models.base import WHOLE_HISTORY, Recommender, with_column
from rayrec.models.checks import require
from rayrec.models.embedding import EmbeddingTable, ReplicatedTable
from rayrec.models.interactions import Each, Interactions, SparseRows

ITERATIONS = 4
"""Of the subspace iteration of the SVD: two are torch's default, for spectra that fall faster than those of words."""
DECLARE = (
    "model.name = content: no features of items are declared, and it knows nothing else of them. Give their table with "
    "data.items, and name its columns under data.features.items, for example "
    'data.features.items = {genres: {kind: multi-valued, separator: "|"}, title: {kind: text}}.'
)


@dataclass(frozen=True)
class ContentConfig:
    """How items are compared.

    Attributes:
        dim: Width of the item vectors; features with fewer columns keep them.
        popularity: Power of the item's popularity (1 + its training events) that similarities are multiplied by; 0
            looks at the content alone.
        max_length: How many of the latest events make the profile.
    """

    dim: int = 64
    popularity: float = 0.75
    max_length: int = 20

    def __post_init__(self) -> None:
        require(1 <= self.dim <= 4096, f"dim must be at least 1 and at most 4096, not {self.dim}")
        require(0 <= self.popularity <= 4, f"popularity must be between 0 and 4, not {self.popularity}")
        known = 1 <= self.max_length <= WHOLE_HISTORY
        require(known, f"max_length must be at least 1 and at most {WHOLE_HISTORY}, not {self.max_length}")


class Content(Recommender):
    """Cosine of a profile with every item, times a power of the item's popularity.

    Who has no history gets the popular items.

    Example::

        >>> genres = SparseRows.of(np.array([1, 2, 3]), np.array([0, 0, 1]), np.ones(3), height=4, width=2)
        >>> model = Content(ContentConfig(popularity=0.0), num_items=3)
        >>> model.fit(Interactions(Histories.of([[1, 3]]), 3, item_features=genres), here, seed=0)
        >>> model.score(torch.tensor([[1]]))
        tensor([[0., 1., 1., 0.]])
    """

    kind = "content"
    Config = ContentConfig

    prior: Tensor

    def __init__(self, config: ContentConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.item = ReplicatedTable(num_items + 1, config.dim)
        self.register_buffer("prior", torch.ones(num_items + 1))

    @property
    def max_length(self) -> int:
        """How many of the latest events make the profile."""
        return int(self.config.max_length)

    def tables(self) -> Mapping[str, EmbeddingTable]:
        """The item vectors, of length 1 (0 for items of which nothing is declared)."""
        return {"item": self.item}

    def fit(self, interactions: Interactions, each: Each, seed: int) -> None:
        """Make the item vectors and count events; see `Fitted`.

        Raises:
            DataError: The recipe declares no features of items.
        """
        if interactions.item_features is None:
            raise DataError(DECLARE)
        vectors = item_vectors(interactions.item_features, self.config.dim, seed)
        with torch.no_grad():
            self.item.weight.zero_()
            self.item.weight[:, : vectors.shape[1]] = vectors
        self.prior.copy_(torch.from_numpy((1.0 + interactions.counts) ** self.config.popularity))

    def score(self, history: Tensor) -> Tensor:
        """``[B, L]`` int64 to ``[B, num_items + 1]`` float32."""
        profile = functional.normalize(self.item.lookup(history).sum(1), dim=1)  # [B, D]
        similarity = profile @ self.item.all_rows().T
        # Who has no profile is as near to one item as to another.
        return torch.where((history != 0).any(1, keepdim=True), similarity, 1.0) * self.prior

    def query(self, history: Tensor) -> Tensor:
        """See `Factorized`."""
        profile = functional.normalize(self.item.lookup(history).sum(1), dim=1)
        return with_column(profile, (history == 0).all(1).to(profile.dtype))

    def item_matrix(self) -> Tensor:
        """See `Factorized`."""
        return with_column(self.item.all_rows(), 1.0) * self.prior.unsqueeze(1)


def item_vectors(features: SparseRows, dim: int, seed: int) -> Tensor:
    """Vectors of length 1 from features, of at most ``dim`` numbers: ``[num_items + 1, min(dim, width)]`` float32."""
    weighted = _unit_rows(_inverse_frequency(features))
    size = (len(weighted), weighted.width)
    places = torch.from_numpy(np.stack([weighted.rows, weighted.columns]))
    matrix = torch.sparse_coo_tensor(
        places, torch.from_numpy(weighted.values), size, is_coalesced=True, check_invariants=False
    )
    if weighted.width <= dim:
        return matrix.to_dense()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, _, directions = torch.svd_lowrank(matrix, q=min(dim, *size), niter=ITERATIONS)  # [width, dim]
    return functional.normalize(matrix @ directions, dim=1)


def _inverse_frequency(features: SparseRows) -> SparseRows:
    """Categories weighted by the logarithm of how few items have them; numbers stay as they are."""
    having = np.bincount(features.columns, minlength=features.width)
    # What is 1 wherever it is not 0 is a category, whatever kind of feature it is from.
    numbers = np.bincount(features.columns, features.values != 1.0, minlength=features.width) > 0
    weights = np.where(numbers, 1.0, 1.0 + np.log(len(features) / np.maximum(1, having)))
    values = features.values * weights[features.columns].astype(np.float32)
    return SparseRows(features.offsets, features.columns, values, features.width)


def _unit_rows(features: SparseRows) -> SparseRows:
    """Every row divided by its length."""
    lengths = np.sqrt(np.bincount(features.rows, features.values.astype(np.float64) ** 2, minlength=len(features)))
    values = (features.values / np.maximum(lengths, 1e-12)[features.rows]).astype(np.float32)
    return SparseRows(features.offsets, features.columns, values, features.width)
