"""Two towers: one makes a vector of who asks and what they had, one of each item; the nearest items are recommended.

Covington, Adams and Sargin, "Deep Neural Networks for YouTube Recommendations", RecSys 2016
(https://doi.org/10.1145/2959100.2959190), and Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
Recommendations", RecSys 2019 (https://doi.org/10.1145/3298689.3346996). It is for what is declared of users, items and
the moment, and for items and users that nobody knows yet.

Differences: beside the mean of all events stands that of the latest few, because the next event is more like them, and
both are normalised; every event of a history is an example, from those before it; the history is read by the item
tower's own vectors. An item's vector is the sum of its own and of its features' (Kula, "Metadata Embeddings for User
and Item Cold-start Recommendations", CBRecSys 2015, https://arxiv.org/abs/1507.08439), where YouTube has no features
and Yi et al. a network: what was never seen then adds nothing. That features carry weight where an item's own vector
could do the work is from Volkovs, Yu and Poutanen, "DropoutNet: Addressing Cold Start in Recommender Systems", NIPS
2017: some of what is known is hidden while training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrec.errors import DataError
from rayrec.models.base import WHOLE_HISTORY
from rayrec.models.checks import require
from rayrec.models.embedding import ReplicatedTable
from rayrec.models.interactions import Interactions, SparseRows
from rayrec.models.sequence import SequenceModel

FARTHEST = 1e6
"""A value of a user's or the context's feature beyond it counts as it: requests cannot overflow the sums. Scaled ones
never come near; unscaled ones (``scale: none``) such as epoch seconds do: scale those."""

WIDEST = 4096
"""Columns of features of users, and of contexts: they are written out for every user of a batch."""


@dataclass(frozen=True)
class TwoTowerConfig:
    """The architecture.

    Attributes:
        dim: Width of item vectors and of the history's state.
        hidden: Width of the hidden layer between what is known and the state.
        recent: How many events the second mean is of.
        dropout: Share of hidden values dropped while training.
        hide: Share of items whose own vector, and of users whose features, are hidden in a training step.
        min_items: A column of items' features that fewer items with training events have is not read: it would stand
            for these items themselves, and teach nothing of new ones.
        max_length: How many of the latest events are read.
    """

    dim: int = 64
    hidden: int = 256
    recent: int = 3
    dropout: float = 0.2
    hide: float = 0.1
    min_items: int = 5
    max_length: int = 200

    def __post_init__(self) -> None:
        for name, most in (("dim", 4096), ("hidden", 65_536), ("min_items", 1 << 31), ("max_length", WHOLE_HISTORY)):
            size = getattr(self, name)
            require(1 <= size <= most, f"{name} must be at least 1 and at most {most}, not {size}")
        known = 1 <= self.recent <= self.max_length
        require(known, f"recent must be at least 1 and at most max_length ({self.max_length}), not {self.recent}")
        for name in ("dropout", "hide"):
            share = getattr(self, name)
            require(0.0 <= share < 1.0, f"{name} must be at least 0 and below 1, not {share}")


class TwoTower(SequenceModel):
    """Means over the history, features of the user and of the context, and one hidden layer; items by their features.

    Features are taken up by `observe`: items', with which the bundle holds the final vectors alone; users' and
    contexts', whose weights stay in the model. Without any declared it is a model of histories like the others.

    Example::

        >>> model = TwoTower(TwoTowerConfig(max_length=4), num_items=10).eval()
        >>> model.score(torch.tensor([[0, 0, 3, 7]])).shape
        torch.Size([1, 11])
    """

    kind = "two-tower"
    Config = TwoTowerConfig
    features = ("user", "context")
    transient = ("item.parts",)

    def __init__(self, config: TwoTowerConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.item: ItemTower = ItemTower(num_items + 1, config.dim, config.hide)
        # Means of small vectors would be lost beside the bias (docs/decisions.md).
        self.norm = nn.LayerNorm(2 * config.dim)
        self.means = nn.Linear(2 * config.dim, config.hidden)
        self.user = Features(config.hidden)
        self.context = Features(config.hidden)
        self.state = nn.Sequential(nn.GELU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, config.dim))

    @property
    def widths(self) -> Mapping[str, int]:
        """See `Recommender.widths`."""
        weights = {name: getattr(self, name).weight for name in self.features}
        return {name: weight.shape[1] for name, weight in weights.items() if weight is not None}

    def observe(self, interactions: Interactions) -> None:
        """Take up what is declared of items, users and contexts.

        Raises:
            DataError: Features of users or contexts have too many columns.
        """
        for name, layer in (("user", self.user), ("context", self.context)):
            features: SparseRows | None = getattr(interactions, f"{name}_features")
            if features is not None:
                layer.widen(_refused_if_wide(name, features.width))
        if interactions.item_features is not None:
            known = interactions.counts != 0
            self.item.observe(common(interactions.item_features, known, self.config.min_items), known)

    def states(
        self, history: Tensor, times: Tensor | None = None, user: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """See `SequenceModel.states`.

        Args:
            history: As there.
            times: Not read.
            user: ``[B, F]`` float32, features of each user; zeros, or None, of who is not known.
            context: ``[B, L, C]`` float32, of the moment after each event; likewise.
        """
        summed = self.item.lookup(history).cumsum(1)
        events = (history != 0).to(summed.dtype).cumsum(1).clamp(min=1).unsqueeze(2)
        recent = self.config.recent
        before = functional.pad(summed, (0, 0, recent, 0))[:, : history.shape[1]]
        means = torch.cat([summed / events, (summed - before) / events.clamp(max=recent)], 2)
        return self._state(means, None if user is None else user.unsqueeze(1), context)

    def latest(
        self, history: Tensor, times: Tensor | None = None, user: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """See `SequenceModel.latest`; ``context`` is ``[B, C]``, of the moment that is asked for."""
        vectors = self.item.lookup(history)
        events = (history != 0).to(vectors.dtype).sum(1, keepdim=True).clamp(min=1)
        recent = self.config.recent
        means = torch.cat([vectors.sum(1) / events, vectors[:, -recent:].sum(1) / events.clamp(max=recent)], 1)
        return self._state(means, user, context)

    def examples(
        self,
        history: Tensor,
        targets: Tensor,
        times: Tensor | None = None,
        user: Tensor | None = None,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `SequenceModel.examples`, and `states`."""
        real = targets != 0
        return self.states(history, times, user, context)[real], targets[real]

    def score(
        self, history: Tensor, times: Tensor | None = None, user: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """``[B, L]`` int64 (and features, see `latest`) to ``[B, num_items + 1]`` float32."""
        return self.latest(history, times, user, context) @ self.item.all_rows().T * self.scale

    def query(
        self, history: Tensor, times: Tensor | None = None, user: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """See `Factorized`; features as for `latest`."""
        return self.latest(history, times, user, context) * self.scale

    def _state(self, means: Tensor, user: Tensor | None, context: Tensor | None) -> Tensor:
        """Means ``[..., 2 D]`` and features to states ``[..., D]``: one layer over all of them side by side."""
        hidden = self.means(self.norm(means))
        for features, layer in ((user, self.user), (context, self.context)):
            if features is not None:
                hidden = hidden + layer(shown(features, self.config.hide if self.training else 0.0))
        state: Tensor = self.state(hidden)
        return state


class Features(nn.Module):
    """A linear layer without bias, as wide as the features that are declared; no weights where none are.

    It begins at zero, so that a column which no training event has adds nothing later.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.weight: nn.Parameter | None
        self.register_parameter("weight", None)

    def widen(self, width: int) -> None:
        """Begin, for so many columns."""
        self.weight = nn.Parameter(torch.zeros(self.outputs, width))

    def forward(self, features: Tensor) -> Tensor:
        """``[..., F]`` to ``[..., outputs]``."""
        if self.weight is None:
            raise RuntimeError("features were given, but none were declared when the model was trained")
        return functional.linear(features.clamp(-FARTHEST, FARTHEST), self.weight)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """A layer without weights takes the width of what is loaded."""
        loaded = state_dict.get(f"{prefix}weight")
        if self.weight is None and loaded is not None:
            self.widen(loaded.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *rest)


class ItemTower(ReplicatedTable):
    """An `EmbeddingTable` of vectors that are made of parts while they are learnt, where items have features.

    What is looked up otherwise, and saved with the model, is their sum, worked out whenever training pauses.

    Args:
        num_rows: Rows, padding included.
        dim: Length of a vector.
        hide: Share of own vectors that are hidden in a training step.
    """

    def __init__(self, num_rows: int, dim: int, hide: float) -> None:
        super().__init__(num_rows, dim)
        self.hide = hide
        self.parts: ItemParts | None = None

    def observe(self, features: SparseRows, known: np.ndarray) -> None:
        """Take up features, ``num_rows`` rows, and which items have training events: ``[num_rows]`` bool."""
        self.parts = ItemParts(self.weight.detach(), features, torch.from_numpy(known))
        self.weight.requires_grad_(False)

    def lookup(self, rows: Tensor) -> Tensor:
        """See `EmbeddingTable`."""
        if self.parts is None or not self.training:
            return super().lookup(rows)
        distinct, places = torch.unique(rows, return_inverse=True)
        return functional.embedding(places, self.parts(distinct, self.hide))

    def all_rows(self) -> Tensor:
        """See `EmbeddingTable`."""
        if self.parts is None or not self.training:
            return super().all_rows()
        return self.parts(torch.arange(self.num_rows, device=self.weight.device), self.hide)

    def optimizer_parameters(self) -> list[nn.Parameter]:
        """The one weight matrix, or its parts."""
        return super().optimizer_parameters() if self.parts is None else list(self.parts.parameters())

    def train(self, mode: bool = True) -> ItemTower:
        """As of every module; when training pauses, the vectors are worked out."""
        super().train(mode)
        if not mode and self.parts is not None:
            with torch.no_grad():
                self.weight.copy_(self.parts(torch.arange(self.num_rows, device=self.weight.device), 0.0))
        return self


class ItemParts(nn.Module):
    """Vectors of items as sums of their own and of their features'.

    Args:
        own: ``[V + 1, D]``, where own vectors begin.
        features: ``V + 1`` rows.
        known: ``[V + 1]`` bool, who has an own vector: without training events it would learn only to be far from all.
    """

    offsets: Tensor
    columns: Tensor
    values: Tensor
    known: Tensor

    def __init__(self, own: Tensor, features: SparseRows, known: Tensor) -> None:
        super().__init__()
        self.own = nn.Parameter(own * known.unsqueeze(1))
        # From zero: what no item that was seen has, such as a new word, adds nothing.
        self.features = nn.Parameter(torch.zeros(features.width, own.shape[1]))
        buffers = {"offsets": features.offsets, "columns": features.columns, "values": features.values}
        for name, array in buffers.items():
            self.register_buffer(name, torch.from_numpy(array), persistent=False)
        self.register_buffer("known", known, persistent=False)

    def forward(self, rows: Tensor, hide: float) -> Tensor:
        """Vectors of distinct rows ``[n]`` int64, with a share of the own vectors hidden: ``[n, D]``."""
        first, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        until = functional.pad(lengths.cumsum(0), (1, 0))
        total = int(until[-1])
        places = torch.arange(total, device=rows.device) + (first - until[:-1]).repeat_interleave(
            lengths, output_size=total
        )
        summed = functional.embedding_bag(
            self.columns[places],
            self.features,
            until,
            mode="sum",
            per_sample_weights=self.values[places],
            include_last_offset=True,
        )
        own = self.own[rows] * self.known[rows].unsqueeze(1)
        return summed + shown(own, hide)


def common(features: SparseRows, known: np.ndarray, least: int) -> SparseRows:
    """Of features of items, the columns that at least so many of the known items (``[V + 1]`` bool) have."""
    chosen = np.bincount(features.columns[known[features.rows]], minlength=features.width) >= least
    kept = chosen[features.columns]
    columns = np.cumsum(chosen)[features.columns[kept]] - 1
    return SparseRows.of(features.rows[kept], columns, features.values[kept], len(features), int(chosen.sum()))


def shown(rows: Tensor, hide: float) -> Tensor:
    """``[n, ...]`` with a share of the rows, drawn at random, set to zero; the others stay as large as they are."""
    if not hide:
        return rows
    chances = torch.rand(len(rows), *[1] * (rows.ndim - 1), device=rows.device)
    return rows * (chances >= hide)


def _refused_if_wide(name: str, width: int) -> int:
    if width <= WIDEST:
        return width
    section = {"user": "users", "context": "context"}[name]
    raise DataError(
        f"model.name = two-tower: data.features.{section} makes {width} columns, of which it reads at most {WIDEST}. "
        "Leave out texts, and give `max_size` or `buckets` to what has many words."
    )
