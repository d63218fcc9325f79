"""LightGCN: propagation over the graph, and users that are made of their items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from rayrec.features.histories import Histories
from rayrec.inference.bundle import load_weights, save_weights
from rayrec.models.interactions import Interactions
from rayrec.models.lightgcn import LightGCN, LightGCNConfig
from rayrec.models.optimization import Optimization
from rayrec.training.feed import PairFeed
from rayrec.training.loop import train
from rayrec.training.run import start
from rayrec.training.world import World

LISTS = [[1, 2, 3], [2, 3], [4, 5, 4], [5]]
ITEMS = 6
INTERACTIONS = Interactions(Histories.of(LISTS), ITEMS)


def observed(**config: Any) -> LightGCN:
    torch.manual_seed(0)
    model = LightGCN(LightGCNConfig(dim=8, **config), ITEMS)
    model.observe(INTERACTIONS)
    return model.eval()


def dense() -> tuple[torch.Tensor, torch.Tensor]:
    """The normalised adjacency of users and items, written out, and the degrees."""
    size = len(LISTS) + ITEMS + 1
    adjacency = torch.zeros(size, size)
    for user, items in enumerate(LISTS):
        adjacency[user, [len(LISTS) + item for item in items]] = 1
    adjacency += adjacency.T.clone()
    degrees = adjacency.sum(1)
    scale = degrees.clamp(min=1).rsqrt()
    return scale[:, None] * adjacency * scale, degrees


def test_vectors_are_means_over_the_layers_of_the_graph() -> None:
    model = observed(layers=2)
    assert model.graph is not None
    adjacency, _ = dense()
    nodes = model.graph.nodes
    users, items = model.graph.vectors()
    layers = [nodes, adjacency @ nodes, adjacency @ adjacency @ nodes]
    torch.testing.assert_close(users, (layers[1] + layers[2])[: len(LISTS)] / 3)
    torch.testing.assert_close(items, sum(layers)[len(LISTS) :] / 3)


def test_the_gradient_is_that_of_the_matrix_written_out() -> None:
    model = observed()
    assert model.graph is not None
    nodes, (adjacency, _) = model.graph.nodes, dense()
    found = torch.autograd.grad(model.graph.vectors()[1].square().sum(), nodes)[0]
    layers = [nodes]
    for _ in range(3):
        layers.append(adjacency @ layers[-1])
    expected = torch.autograd.grad((sum(layers)[len(LISTS) :] / 4).square().sum(), nodes)[0]
    torch.testing.assert_close(found, expected)


def test_a_history_makes_the_vector_that_training_gives_its_user() -> None:
    model = observed()
    assert model.graph is not None
    users, _ = model.graph.vectors()
    histories = torch.tensor([[1, 2, 3], [0, 2, 3], [4, 5, 4], [0, 0, 5]])
    expected = functional.normalize(users, dim=1) @ model.item.all_rows().T + model.prior
    torch.testing.assert_close(model.score(histories), expected)


def test_people_without_a_history_get_what_is_popular() -> None:
    scores = observed(popularity=1.0).score(torch.zeros(1, 3, dtype=torch.int64))[0]
    # Items 2, 3, 4 and 5 have two events each, 1 has one and 6 none.
    assert scores.argsort(descending=True)[:4].sort().values.tolist() == [2, 3, 4, 5]
    assert scores[6] == scores[1] == 0


def test_popularity_zero_scores_by_the_cosine_alone() -> None:
    model = observed(popularity=0.0)
    assert not model.prior.any()
    torch.testing.assert_close(model.item.all_rows()[1:].norm(dim=1), torch.ones(ITEMS))


def test_the_loss_is_the_softmax_over_all_items_when_all_are_drawn() -> None:
    model = observed(negatives=60_000, popularity=0.0)
    assert model.graph is not None
    users, items = (functional.normalize(vectors, dim=1) for vectors in model.graph.vectors())
    logits = users @ items[1:].T / model.config.temperature
    exact = functional.cross_entropy(logits[[0, 2]], torch.tensor([2, 4]) - 1, reduction="sum")
    torch.testing.assert_close(model(torch.tensor([0, 2]), torch.tensor([2, 4])), exact, rtol=0.02, atol=0.02)


def test_what_was_had_together_is_learnt() -> None:
    random = np.random.default_rng(0)
    histories = Histories.of([random.permutation(5)[:4] + 1 + 5 * (user % 2) for user in range(60)])
    torch.manual_seed(0)
    model = LightGCN(LightGCNConfig(dim=8, negatives=32), 10)
    settings = Optimization(epochs=20, batch_size=64, learning_rate=0.02)
    run = start(model, Interactions(histories, 10), settings, World())
    train(run, PairFeed(histories, 64, 0), lambda model: {}, lambda run: None)
    scores = model.eval().score(torch.tensor([[0, 1, 2], [0, 6, 7]]))
    assert scores[0, [3, 4, 5]].min() > scores[0, 6:].max()
    assert scores[1, [8, 9, 10]].min() > scores[1, 1:6].max()


def test_a_bundle_holds_no_users(tmp_path: Path) -> None:
    model = observed()
    save_weights(model, tmp_path, model.transient)
    again = LightGCN(model.config, ITEMS)
    load_weights(again, tmp_path)
    history = torch.tensor([[1, 4]])
    torch.testing.assert_close(again.eval().score(history), model.score(history))
    assert not [name for name in again.state_dict() if "graph" in name]
