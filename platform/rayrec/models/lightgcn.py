"""LightGCN: vectors of users and items, smoothed over the graph of who had what.

He, Deng, Wang, Li, Zhang and Wang, "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation",
SIGIR 2020 (https://arxiv.org/abs/2002.02126), trained with a sampled softmax over cosines: Wu, Wang, Gao, Chen, Fu and
Qiu, "On the Effectiveness of Sampled Softmax Loss for Item Recommendation", TOIS 2024
(https://arxiv.org/abs/2201.02327), which takes tens of epochs where the paper's BPR takes hundreds.

Differences: the sum over layers that is a user's vector leaves out layer 0, the user's own embedding, which takes part
in the propagation only. So a user's vector is made of their items alone, by LightGCN's own rule, and people who came
after training are answered like all others. Negatives are drawn by a power of their popularity, which takes it out of
what cosines learn, and scores have it added again, as in `rayrec.models.item2vec`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rayrec.models.base import Recommender, distinct, with_column
from rayrec.models.checks import require
from rayrec.models.embedding import EmbeddingTable, ReplicatedTable
from rayrec.models.interactions import Interactions


@dataclass(frozen=True)
class LightGCNConfig:
    """The architecture and the loss.

    Attributes:
        dim: Width of the vectors.
        layers: How often vectors are propagated.
        negatives: Items drawn for each batch, to be ranked below its events.
        temperature: Of the softmax; cosines are divided by it.
        popularity: Power of an item's events by which it is drawn; 0 draws all alike, and scores by the cosine alone.
    """

    dim: int = 64
    layers: int = 3
    negatives: int = 512
    temperature: float = 0.1
    popularity: float = 0.75

    def __post_init__(self) -> None:
        for name, most in (("dim", 4096), ("layers", 16), ("negatives", 65_536)):
            require(1 <= getattr(self, name) <= most, f"{name} must be between 1 and {most}, not {getattr(self, name)}")
        require(0 < self.temperature < math.inf, f"temperature must be above 0, not {self.temperature}")
        require(0 <= self.popularity <= 2, f"popularity must be between 0 and 2, not {self.popularity}")


class LightGCN(Recommender):
    """Items as they are ranked, and as they make up a user's vector; the graph behind both only while it is trained.

    It learns from pairs, which need larger batches than sequences do: a step propagates over the whole graph, however
    few pairs are in it.

    Example::

        >>> model = LightGCN(LightGCNConfig(dim=8), num_items=3)
        >>> model.score(torch.tensor([[0, 1]])).shape
        torch.Size([1, 4])
    """

    kind = "lightgcn"
    Config = LightGCNConfig
    learns_from = "pairs"
    transient = ("graph",)

    prior: Tensor
    drawn: Tensor

    def __init__(self, config: LightGCNConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.item = ReplicatedTable(num_items + 1, config.dim).requires_grad_(False)
        self.profile = ReplicatedTable(num_items + 1, config.dim).requires_grad_(False)
        self.register_buffer("prior", torch.zeros(num_items + 1))
        self.register_buffer("drawn", torch.zeros(num_items + 1), persistent=False)
        self.graph: Graph | None = None

    def tables(self) -> Mapping[str, EmbeddingTable]:
        """Items as they are ranked, and as parts of users."""
        return {"item": self.item, "profile": self.profile}

    def table_parameters(self) -> list[nn.Parameter]:
        """The vectors of users and items that both tables are made of."""
        return [self._graph().nodes]

    def observe(self, interactions: Interactions) -> None:
        """Build the graph, and count the events of each item."""
        self.graph = Graph(interactions, self.config)
        counts = torch.from_numpy(interactions.counts).float()
        self.prior = self.config.temperature * self.config.popularity * counts.clamp(min=1).log()
        self.drawn = counts.clamp(min=1) ** self.config.popularity
        self.prior[0] = self.drawn[0] = 0

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Summed sampled softmax of pairs ``[B]`` of users and items; see `GradientTrained`."""
        graph = self._graph()
        users, items = graph.vectors()
        negatives = torch.multinomial(self.drawn, self.config.negatives, replacement=True)
        user = functional.normalize(users[inputs], dim=1) / self.config.temperature  # [B, D]
        target = functional.normalize(items[targets], dim=1)
        logits = user @ functional.normalize(items[negatives], dim=1).T  # [B, N]
        # The drawn items stand for all others, weighted by how likely they were drawn; the target itself is left out.
        share = math.log(self.num_items / self.config.negatives)
        logits = (logits + share).masked_fill(targets[:, None] == negatives, -torch.inf)
        own = (user * target).sum(dim=1)
        return (torch.logsumexp(torch.cat([own[:, None], logits], 1), dim=1) - own).sum()

    def train(self, mode: bool = True) -> LightGCN:
        """As of every module; when training pauses, what answers need is computed."""
        super().train(mode)
        if not mode and self.graph is not None:
            self._refresh(self.graph)
        return self

    def score(self, history: Tensor) -> Tensor:
        """``[B, L]`` int64 to ``[B, num_items + 1]`` float32: cosines, and the items' popularity."""
        return self._users(history) @ self.item.all_rows().T + self.prior

    def query(self, history: Tensor) -> Tensor:
        """See `Factorized`."""
        return with_column(self._users(history), 1.0)

    def item_matrix(self) -> Tensor:
        """See `Factorized`."""
        return with_column(self.item.all_rows(), self.prior)

    def _users(self, history: Tensor) -> Tensor:
        """``[B, L]`` int64 to ``[B, D]``, of length 1."""
        once = distinct(history)
        length = (once != 0).sum(dim=1, keepdim=True).clamp(min=1)
        return functional.normalize(self.profile.lookup(once).sum(dim=1) / length.sqrt(), dim=1)

    def _graph(self) -> Graph:
        if self.graph is None:
            raise RuntimeError("`observe` comes before training")
        return self.graph

    @torch.no_grad()
    def _refresh(self, graph: Graph) -> None:
        """The tables that answers are made of."""
        profile, items = graph.answers()
        self.profile.weight.copy_(profile)
        self.item.weight.copy_(functional.normalize(items, dim=1))
        self.item.weight[0] = self.profile.weight[0] = 0


class Graph(nn.Module):
    """Users and items, joined where a user had an item, with a learnt vector each.

    Nodes are numbered users first; an edge weighs one over the square root of both its ends' numbers of edges.
    """

    offsets: Tensor
    columns: Tensor
    weights: Tensor
    scale: Tensor

    def __init__(self, interactions: Interactions, config: LightGCNConfig) -> None:
        super().__init__()
        matrix = interactions.matrix
        self.num_users, self.layers = len(matrix), config.layers
        users, items = torch.from_numpy(matrix.rows), torch.from_numpy(matrix.columns) + self.num_users
        nodes = self.num_users + matrix.width
        heads, tails = torch.cat([users, items]), torch.cat([items, users])
        order = torch.argsort(heads, stable=True)
        degrees = torch.bincount(heads, minlength=nodes)
        scale = degrees.clamp(min=1).float().rsqrt()
        self.nodes = nn.Parameter(torch.randn(nodes, config.dim) * 0.1)
        self.register_buffer("offsets", functional.pad(degrees.cumsum(0), (1, 0)), persistent=False)
        self.register_buffer("columns", tails[order], persistent=False)
        self.register_buffer("weights", (scale[heads] * scale[tails])[order], persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Users ``[U, D]``, without their layer 0, and items ``[V + 1, D]``: the means over layers."""
        states = self._states()
        summed = torch.stack(states[1:]).sum(dim=0)
        users, items = summed[: self.num_users], (summed + states[0])[self.num_users :]
        return users / (self.layers + 1), items / (self.layers + 1)

    def answers(self) -> tuple[Tensor, Tensor]:
        """What each item adds to a user's vector, but for the square root of the user's events; and `vectors`' items.

        Both are ``[V + 1, D]``.
        """
        states = self._states()
        before_last = torch.stack(states[:-1]).sum(dim=0)[self.num_users :] / (self.layers + 1)
        return before_last * self.scale[self.num_users :, None], self.vectors()[1]

    def _states(self) -> list[Tensor]:
        """The nodes' vectors of every layer, from 0."""
        states: list[Tensor] = [self.nodes]
        propagate: Any = _Propagate.apply
        for _ in range(self.layers):
            states.append(propagate(states[-1], self.offsets, self.columns, self.weights))
        return states


class _Propagate(torch.autograd.Function):
    """The weighted sum of each node's neighbours. The graph has no direction, so its gradient is the same sum."""

    @staticmethod
    def forward(context: Any, nodes: Tensor, *graph: Tensor) -> Tensor:
        context.save_for_backward(*graph)
        return _sum_neighbours(nodes, *graph)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _sum_neighbours(gradient.contiguous(), *context.saved_tensors), None, None, None


def _sum_neighbours(nodes: Tensor, offsets: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    # Five times as fast as a product with a sparse matrix, on a CPU (docs/decisions.md).
    return functional.embedding_bag(
        columns, nodes, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
