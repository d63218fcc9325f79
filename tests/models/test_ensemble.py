"""Several models that learn side by side and answer with one voice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rayrec.features.histories import Histories
from rayrec.inference.bundle import load_weights, save_weights
from rayrec.inference.export import export_onnx, measure_parity
from rayrec.models.ensemble import HSTUEnsemble, HSTUEnsembleConfig
from rayrec.models.interactions import Interactions
from rayrec.models.objective import Objective
from rayrec.models.optimization import Optimization
from rayrec.training.feed import Part, SequenceFeed
from rayrec.training.learner import LARGE_TABLE, NextItem, SideBySide, learner
from rayrec.training.loop import train
from rayrec.training.run import start
from rayrec.training.world import World

ITEMS = 20
HISTORY = torch.tensor([[0, 0, 3, 7, 1, 12], [5, 5, 9, 2, 20, 3], [0, 0, 0, 0, 0, 4]])
TIMES = (torch.arange(7) * 600).expand(3, -1)
COUNTS = np.ones(ITEMS + 1, np.int64)


@pytest.fixture
def model() -> HSTUEnsemble:
    torch.manual_seed(0)
    return HSTUEnsemble(HSTUEnsembleConfig(dim=16, blocks=1, max_length=6, dropout=0.0, members=3), ITEMS).eval()


def part() -> Part:
    return Part(HISTORY[1:2, :-1], HISTORY[1:2, 1:], TIMES[1:2, :-1])


def test_it_answers_with_the_mean_of_its_members(model: HSTUEnsemble) -> None:
    alone = [member.score(HISTORY, TIMES) for member in model.models]
    assert len(alone) == 3
    assert not torch.allclose(alone[0], alone[1], atol=1e-3), "members begin with weights of their own"
    torch.testing.assert_close(model.score(HISTORY, TIMES), sum(alone) / 3)


def test_each_member_learns_by_a_loss_of_its_own(model: HSTUEnsemble) -> None:
    """Of one that scores were averaged for, each gradient would depend on the others."""
    learning = learner(model, Objective(), COUNTS)
    assert isinstance(learning, SideBySide)
    loss = learning([part()])
    loss.backward()
    together = [member.item.all_rows().grad for member in model.models]
    losses = []
    for member, grad in zip(model.models, together, strict=True):
        member.zero_grad()
        alone = learner(member, Objective(), COUNTS)
        assert isinstance(alone, NextItem)
        own = alone([part()])
        own.backward()
        losses.append(own.detach())
        torch.testing.assert_close(grad, member.item.all_rows().grad / 3)
    torch.testing.assert_close(loss.detach(), torch.stack(losses).mean())


def test_gradients_of_large_tables_are_sparse_in_every_member() -> None:
    config = HSTUEnsembleConfig(dim=4, blocks=1, max_length=6, members=2, temperature=None)
    large = HSTUEnsemble(config, LARGE_TABLE)
    learning = learner(large, Objective(loss="bce", negatives=1), np.ones(LARGE_TABLE + 1, np.int64))
    learning.keep_sparse()
    assert [id(table) for table in learning.sparse_tables] == [id(m.item.all_rows()) for m in large.models]


def test_weights_survive_and_the_exported_graph_agrees(model: HSTUEnsemble, tmp_path: Path) -> None:
    save_weights(model, tmp_path / "weights")
    torch.manual_seed(1)
    again = HSTUEnsemble(model.config, ITEMS).eval()
    load_weights(again, tmp_path / "weights")
    assert again.score(HISTORY, TIMES).equal(model.score(HISTORY, TIMES))
    export_onnx(model, tmp_path / "model.onnx")
    asked = {"history": HISTORY.numpy(), "times": TIMES.numpy()}
    assert measure_parity(model, tmp_path / "model.onnx", asked) < 1e-4


def test_all_members_learn_a_planted_pattern() -> None:
    """Whoever had i wants i + 1 next."""
    rows = (np.arange(400)[:, None] + np.arange(8)) % ITEMS + 1
    histories = Histories.of(list(rows))
    timed = Histories(histories.offsets, histories.items, np.arange(len(histories.items)) * 60)
    torch.manual_seed(0)
    model = HSTUEnsemble(HSTUEnsembleConfig(dim=32, blocks=1, max_length=12, members=2), ITEMS)
    settings = Optimization(epochs=8, batch_size=16, learning_rate=1e-2)
    run = start(model, Interactions(timed, ITEMS), settings, World())
    train(run, SequenceFeed(timed, 12, settings, 0), lambda model: {}, lambda run: None)
    asked = torch.from_numpy(rows[:ITEMS, 1:])
    times = torch.arange(asked.shape[1] + 1).expand(ITEMS, -1) * 60
    for learnt in (model.eval(), *model.models):
        found = learnt.score(asked, times)[:, 1:].argmax(1) + 1
        assert (found == asked[:, -1] % ITEMS + 1).all()


@pytest.mark.parametrize("members", [0, 65])
def test_a_wrong_number_of_members_is_refused(members: int) -> None:
    with pytest.raises(ValueError, match="members must be at least 1 and at most 64"):
        HSTUEnsembleConfig(members=members)
