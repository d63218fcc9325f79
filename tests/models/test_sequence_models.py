"""What every model of sequences keeps to, whatever its architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rayrec.features.histories import Histories
from rayrec.inference.bundle import load_weights, save_weights
from rayrec.inference.export import export_onnx, measure_parity
from rayrec.models.interactions import Interactions
from rayrec.models.optimization import Optimization
from rayrec.models.registry import MODELS, model_class
from rayrec.models.sequence import SequenceModel, attention_mask, until_the_end
from rayrec.training.feed import SequenceFeed
from rayrec.training.loop import train
from rayrec.training.run import start
from rayrec.training.world import World

ITEMS = 20
LENGTH = 6
CONFIGS: dict[str, dict[str, Any]] = {
    "bert4rec": {"dim": 32, "blocks": 2, "heads": 2, "dropout": 0.1, "max_length": 12, "last": 1.0},
    "caser": {"dim": 32, "window": 4, "dropout": 0.1, "max_length": 12},
    "esasrec": {"dim": 32, "blocks": 2, "heads": 2, "dropout": 0.1, "max_length": 12},
    "gru4rec": {"dim": 32, "hidden": 24, "layers": 2, "dropout": 0.1, "max_length": 12},
    "hstu": {"dim": 32, "blocks": 2, "heads": 2, "dropout": 0.1, "max_length": 12},
    "sasrec": {"dim": 32, "blocks": 2, "heads": 2, "dropout": 0.1, "max_length": 12},
    "two-tower": {"dim": 32, "hidden": 64, "dropout": 0.1, "max_length": 12},
}
HISTORY = torch.tensor([[0, 0, 3, 7, 1, 12], [5, 5, 9, 2, 20, 3], [0, 0, 0, 0, 0, 4]])


def test_every_model_of_sequences_is_tried_here() -> None:
    assert set(CONFIGS) == {name for name in MODELS if issubclass(model_class(name), SequenceModel)}


def made(kind: str) -> SequenceModel:
    """A small model with weights far from their beginnings, so that differences show."""
    torch.manual_seed(0)
    found = model_class(kind)
    model = found(found.Config(**CONFIGS[kind]), ITEMS).eval()
    assert isinstance(model, SequenceModel)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
        model.item.all_rows()[0] = 0.0
    return model


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> SequenceModel:
    return made(request.param)


@pytest.fixture(params=[kind for kind in CONFIGS if model_class(kind).causal])
def causal(request: pytest.FixtureRequest) -> SequenceModel:
    return made(request.param)


def times_of(history: Tensor) -> Tensor:
    """Irregular times of events and of the moment after the last: ``[B, L + 1]`` seconds."""
    steps = torch.arange(history.shape[1] + 1)
    return (1000 * steps + 700 * (steps % 3)).expand(len(history), -1)


def states(model: SequenceModel, history: Tensor) -> Tensor:
    return model.states(history, times_of(history) if model.timed else None)


def scores(model: SequenceModel, history: Tensor) -> Tensor:
    return model.score(history, *([times_of(history)] if model.timed else []))[:, 1:]


def test_a_future_event_changes_nothing_before_it(causal: SequenceModel) -> None:
    changed = HISTORY[1:2].clone()
    changed[:, -1] = 13
    before, after = states(causal, HISTORY[1:2]), states(causal, changed)
    torch.testing.assert_close(before[:, :-1], after[:, :-1], rtol=0, atol=1e-6)
    assert (before[:, -1] - after[:, -1]).abs().amax() > 0.01


def test_an_earlier_event_changes_what_comes_after_it(model: SequenceModel) -> None:
    changed = HISTORY[1:2].clone()
    changed[:, -3] = 13
    assert (scores(model, HISTORY[1:2]) - scores(model, changed)).abs().amax() > 1e-3


def test_the_order_of_events_matters(model: SequenceModel) -> None:
    assert (scores(model, HISTORY[1:2]) - scores(model, HISTORY[1:2, [0, 1, 3, 2, 4, 5]])).abs().amax() > 1e-3


@pytest.mark.parametrize("padding", [1, 4])
def test_padding_changes_nothing(model: SequenceModel, padding: int) -> None:
    """At the beginning where it is asked, at the end where it is trained."""
    padded, times = functional.pad(HISTORY, (padding, 0)), functional.pad(times_of(HISTORY), (padding, 0))
    found = model.score(padded, *([times] if model.timed else []))[:, 1:]
    torch.testing.assert_close(found, scores(model, HISTORY), rtol=0, atol=2e-5)
    ended, times = functional.pad(HISTORY[1:2], (0, padding)), functional.pad(times_of(HISTORY[1:2]), (0, padding))
    learnt = model.states(ended, times if model.timed else None)[:, :LENGTH]
    torch.testing.assert_close(learnt, states(model, HISTORY[1:2]), rtol=0, atol=2e-5)


def test_the_others_in_a_batch_change_nothing(model: SequenceModel) -> None:
    alone = torch.cat([scores(model, HISTORY[user : user + 1]) for user in range(3)])
    torch.testing.assert_close(alone, scores(model, HISTORY), rtol=0, atol=2e-5)


def test_it_is_asked_as_it_was_trained(causal: SequenceModel) -> None:
    """The state at the last event while training is the one that is recommended by."""
    whole = HISTORY[1:2]
    state = states(causal, whole)[:, -1]
    expected = state @ causal.outputs.all_rows()[1:].T
    if causal.bias is not None:
        expected = expected + causal.bias[1:]
    torch.testing.assert_close(scores(causal, whole), expected / causal.item.dim**0.5, rtol=1e-4, atol=1e-4)


def test_an_empty_history_has_finite_scores(model: SequenceModel) -> None:
    found = scores(model, torch.zeros(2, 4, dtype=torch.int64))
    assert found.shape == (2, ITEMS)
    assert torch.isfinite(found).all()


def test_a_part_without_targets_has_no_examples(model: SequenceModel) -> None:
    nothing = torch.zeros(1, 1, dtype=torch.int64)
    found, targets = model.train().examples(nothing, nothing, times_of(nothing) if model.timed else None)
    assert found.shape == (0, model.item.dim)
    assert targets.shape == (0,)


def test_weights_survive_and_the_exported_graph_agrees(model: SequenceModel, tmp_path: Path) -> None:
    save_weights(model, tmp_path / "weights")
    again = made(model.kind)
    with torch.no_grad():
        for weight in again.parameters():
            weight.zero_()
    load_weights(again, tmp_path / "weights")
    assert scores(again, HISTORY).equal(scores(model, HISTORY))
    export_onnx(model, tmp_path / "model.onnx")
    asked = {"history": HISTORY.numpy(), "times": times_of(HISTORY).numpy()}
    assert measure_parity(model, tmp_path / "model.onnx", asked) < 1e-4
    assert b" at 0x" not in (tmp_path / "model.onnx").read_bytes(), "another process would write another file"


def test_a_planted_pattern_is_learnt(model: SequenceModel) -> None:
    """Whoever had i wants i + 1 next."""
    rows = (np.arange(400)[:, None] + np.arange(2 + LENGTH)) % ITEMS + 1
    histories = Histories.of(list(rows))
    if model.timed:
        histories = Histories(histories.offsets, histories.items, np.arange(len(histories.items)) * 60)
    torch.manual_seed(0)
    learning = model_class(model.kind)(model.config, ITEMS)
    assert isinstance(learning, SequenceModel)
    settings = Optimization(epochs=12, batch_size=16, learning_rate=1e-2)
    feed = SequenceFeed(histories, learning.max_length, settings, 0)
    run = start(learning, Interactions(histories, ITEMS), settings, World())
    train(run, feed, lambda model: {}, lambda run: None)
    asked = torch.from_numpy(rows[:ITEMS, 1:])  # no longer than what was learnt from: later positions know nothing
    times = torch.arange(asked.shape[1] + 1).expand(ITEMS, -1) * 60
    found = learning.eval().score(asked, *([times] if model.timed else []))[:, 1:].argmax(1) + 1
    assert (found == asked[:, -1] % ITEMS + 1).all()
    assert not learning.item.all_rows()[0].any(), "padding stays at zero"


def test_positions_are_counted_from_the_latest_event() -> None:
    assert until_the_end(torch.tensor([[0, 5, 6], [5, 6, 0], [0, 0, 0]])).tolist()[:2] == [[2, 1, 0], [1, 0, 0]]


def test_a_position_sees_itself_and_what_came_before() -> None:
    seen = attention_mask(torch.tensor([[0, 5, 6]]))[0, 0]
    assert seen.tolist() == [[True, False, False], [False, True, False], [False, True, True]]
