"""Item2Vec: items are learnt from what stands near them, and answer for whoever had them last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rayrec.features.histories import Histories
from rayrec.inference.export import export_onnx, measure_parity
from rayrec.models.base import GradientTrained
from rayrec.models.interactions import Interactions
from rayrec.models.item2vec import Item2Vec, Item2VecConfig, context_mask
from rayrec.models.optimization import Optimization
from rayrec.training.optimizer import build_optimizer

ITEMS = 20
HISTORY = torch.tensor([[0, 0, 3, 7, 1], [5, 5, 9, 2, 20], [0, 0, 0, 0, 0]])


def made(**config: int) -> Item2Vec:
    """A model with weights far from their beginnings, that saw item 2 four times and item 3 once."""
    torch.manual_seed(0)
    model = Item2Vec(Item2VecConfig(**{"dim": 8} | config), ITEMS).eval()
    with torch.no_grad():
        for weight in (model.item.weight, model.context.weight):
            weight[1:] = torch.randn_like(weight[1:])
    model.observe(Interactions(Histories.of([[2, 2, 2, 2, 3]]), ITEMS))
    return model


def test_a_score_is_the_product_with_the_mean_of_the_latest_and_the_popularity_that_negatives_took_away() -> None:
    model = made(recent=2)
    item, context = model.item.weight.detach().numpy(), model.context.weight.detach().numpy()
    events = np.full(ITEMS + 1, 0.5)
    events[[2, 3]] = 4, 1
    users = np.stack([item[[7, 1]].mean(0), item[[2, 20]].mean(0), np.zeros(8)])
    expected = users @ context.T + 0.75 * np.log(events)
    np.testing.assert_allclose(model.score(HISTORY).detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_negatives_are_drawn_by_their_smoothed_frequency() -> None:
    torch.manual_seed(1)
    drawn = torch.bincount(made()._draw(20_000), minlength=ITEMS + 1).numpy() / 20_000
    weight = 4**0.75
    np.testing.assert_allclose(drawn[[2, 3]], [weight / (weight + 1), 1 / (weight + 1)], atol=0.02)
    assert drawn.sum() == pytest.approx(drawn[[2, 3]].sum())


def test_without_observing_all_items_are_drawn() -> None:
    drawn = Item2Vec(Item2VecConfig(dim=2), 5)._draw(1000)
    assert drawn.unique().tolist() == [1, 2, 3, 4, 5]


def test_the_loss_is_that_of_the_paper_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(window=1, negatives=3)
    monkeypatch.setattr(model, "_draw", lambda count: torch.full((count,), 4))
    item, context = model.item.weight.detach().numpy(), model.context.weight.detach().numpy()
    near = {(0, 3): [7], (0, 7): [3, 1], (0, 1): [7], (1, 9): [2], (1, 2): [9]}
    expected = 0.0
    for (_, event), contexts in near.items():
        expected += np.log1p(np.exp(-context[contexts] @ item[event])).mean()
        expected += 3 * np.log1p(np.exp(context[4] @ item[event]))
    loss = model(torch.tensor([[3, 7], [9, 0]]), torch.tensor([[7, 1], [2, 0]]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert isinstance(model, GradientTrained)


def test_an_event_its_repetitions_and_padding_are_no_context() -> None:
    assert context_mask(torch.tensor([[0, 5, 6, 5]]), reach=2)[0].long().tolist() == [
        [0, 0, 0, 0],
        [0, 0, 1, 0],
        [0, 1, 0, 1],
        [0, 0, 1, 0],
    ]


def test_without_targets_the_loss_is_zero() -> None:
    loss = made()(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0


def test_what_stands_near_an_item_is_learnt() -> None:
    """Even items stand together, and odd ones."""
    torch.manual_seed(0)
    model = Item2Vec(Item2VecConfig(dim=8), ITEMS)
    everybody = torch.stack([(torch.randperm(10)[:6] * 2 + 1 + user % 2) for user in range(32)])
    model.observe(Interactions(Histories.of(everybody.numpy()), ITEMS))
    optimizer = build_optimizer(model, Optimization(learning_rate=5e-2))
    for _ in range(40):
        optimizer.zero_grad()
        (model(everybody[:, :-1], everybody[:, 1:]) / everybody[:, 1:].numel()).backward()
        optimizer.step()
    best = model.eval().score(torch.tensor([[0, 2, 6], [1, 5, 9]]))[:, 1:].argsort(descending=True)[:, :10] + 1
    assert (best % 2 == torch.tensor([[0], [1]])).all()


def test_another_model_takes_over_its_weights() -> None:
    model, other = made(), Item2Vec(Item2VecConfig(dim=8), ITEMS)
    other.load_state_dict(model.state_dict())
    assert other.score(HISTORY).equal(model.score(HISTORY))


def test_the_exported_graph_gives_the_same_scores(tmp_path: Path) -> None:
    export_onnx(made(), tmp_path / "model.onnx")
    for histories in (HISTORY, torch.tensor([[8]])):
        measure_parity(made(), tmp_path / "model.onnx", {"history": histories.numpy()})


@pytest.mark.parametrize("config", [{"dim": 0}, {"window": 0}, {"negatives": 0}, {"recent": 101}, {"max_length": 0}])
def test_a_setting_out_of_range_is_refused(config: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(config))} must be"):
        Item2VecConfig(**config)
