"""BPR: users are the others of their window, and what they had goes above what they did not have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rayrec.inference.export import export_onnx, measure_parity
from rayrec.models.base import GradientTrained
from rayrec.models.bpr import BPR, BPRConfig, contains
from rayrec.models.optimization import Optimization
from rayrec.training.optimizer import build_optimizer

ITEMS = 20
HISTORY = torch.tensor([[0, 0, 3, 7, 1], [5, 5, 9, 2, 20], [0, 0, 0, 0, 0]])


def made(**config: float) -> BPR:
    """A model with weights far from their beginnings."""
    torch.manual_seed(0)
    model = BPR(BPRConfig(**{"dim": 8} | config), ITEMS).eval()
    with torch.no_grad():
        for weight in (model.item.weight, model.had.weight, model.bias):
            weight[1:] = torch.randn_like(weight[1:])
    return model


def arrays(model: BPR) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    item, had, bias = (weight.detach().numpy() for weight in (model.item.weight, model.had.weight, model.bias))
    return item, had, bias


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_user_is_the_sum_of_their_distinct_items_over_a_power_of_their_number(alpha: float) -> None:
    model = made(alpha=alpha)
    item, had, bias = arrays(model)
    users = [had[[3, 7, 1]].sum(0) / 3**alpha, had[[5, 9, 2, 20]].sum(0) / 4**alpha, np.zeros(8)]
    expected = np.stack(users) @ item.T + bias
    np.testing.assert_allclose(model.score(HISTORY).detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_the_loss_is_that_of_every_event_against_its_negatives_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(alpha=0.5, negatives=2)
    item, had, bias = arrays(model)
    drawn = torch.tensor([[4, 6], [4, 3], [4, 6], [8, 9], [1, 1]])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: drawn)
    inputs, targets = torch.tensor([[3, 7, 0], [2, 5, 9]]), torch.tensor([[7, 1, 0], [5, 9, 2]])
    # What the user had is no negative: 3 of the first, 9 of the second.
    events = [([3, 1], 7, [4, 6]), ([3, 7], 1, [4]), ([2, 9], 5, [4, 6]), ([2, 5], 9, [8]), ([5, 9], 2, [1, 1])]
    expected = 0.0
    for others, positive, negatives in events:
        user = had[others].sum(0) / len(others) ** 0.5
        for negative in negatives:
            margin = user @ (item[positive] - item[negative]) + bias[positive] - bias[negative]
            expected += np.log1p(np.exp(-margin)) / 2
    assert model(inputs, targets).item() == pytest.approx(expected, rel=1e-5)
    assert isinstance(model, GradientTrained)


def test_without_targets_the_loss_is_zero() -> None:
    loss = made()(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0


def test_an_item_is_looked_for_in_its_own_window_only() -> None:
    windows = torch.tensor([[0, 4, 2], [1, 20, 3]])
    found = contains(windows, ITEMS, torch.tensor([0, 1, 1]), torch.tensor([[2, 1], [2, 1], [20, 4]]))
    assert found.tolist() == [[True, False], [False, True], [True, False]]


def test_who_has_some_of_a_group_gets_the_rest_of_it() -> None:
    """Even items go together, and odd ones."""
    torch.manual_seed(0)
    model = BPR(BPRConfig(dim=8), ITEMS)
    optimizer = build_optimizer(model, Optimization(learning_rate=5e-2))
    everybody = torch.stack([(torch.randperm(10)[:6] * 2 + 1 + user % 2) for user in range(32)])
    for _ in range(40):
        optimizer.zero_grad()
        (model(everybody[:, :-1], everybody[:, 1:]) / everybody[:, 1:].numel()).backward()
        optimizer.step()
    best = model.eval().score(torch.tensor([[0, 2, 6], [1, 5, 9]]))[:, 1:].argsort(descending=True)[:, :10] + 1
    assert (best % 2 == torch.tensor([[0], [1]])).all()
    assert not model.had.weight[0].any(), "padding stays at zero"


def test_the_exported_graph_gives_the_same_scores(tmp_path: Path) -> None:
    export_onnx(made(), tmp_path / "model.onnx")
    for histories in (HISTORY, torch.tensor([[8]])):
        measure_parity(made(), tmp_path / "model.onnx", {"history": histories.numpy()})


@pytest.mark.parametrize("config", [{"dim": 0}, {"alpha": 1.5}, {"negatives": 0}, {"max_length": 0}])
def test_a_setting_out_of_range_is_refused(config: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(config))} must be"):
        BPRConfig(**config)
