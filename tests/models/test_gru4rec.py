"""GRU4Rec: its cells, its exported graph, its settings; what all models of sequences keep to is tried beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from rayrec.inference.export import export_onnx, measure_parity
from rayrec.models.gru4rec import GRU4Rec, GRU4RecConfig

Cell = Literal["gru", "lstm"]
CELLS: list[Cell] = ["gru", "lstm"]


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def gru(events: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """The states of a GRU, by its formula, gates in torch's order: ``[L, D]`` to ``[L, H]``."""
    of_event, of_state, event_bias, state_bias = weights
    state, states = np.zeros(of_state.shape[1]), []
    for event in events:
        from_event, from_state = of_event @ event + event_bias, of_state @ state + state_bias
        reset, update, _ = np.split(sigmoid(from_event + from_state), 3)
        new = np.tanh(np.split(from_event, 3)[2] + reset * np.split(from_state, 3)[2])
        state = (1 - update) * new + update * state
        states.append(state)
    return np.array(states)


def lstm(events: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """The states of an LSTM, by its formula, gates in torch's order: ``[L, D]`` to ``[L, H]``."""
    of_event, of_state, event_bias, state_bias = weights
    state, memory, states = np.zeros(of_state.shape[1]), np.zeros(of_state.shape[1]), []
    for event in events:
        gates = np.split(of_event @ event + event_bias + of_state @ state + state_bias, 4)
        memory = sigmoid(gates[1]) * memory + sigmoid(gates[0]) * np.tanh(gates[2])
        state = sigmoid(gates[3]) * np.tanh(memory)
        states.append(state)
    return np.array(states)


def made(**settings: Any) -> GRU4Rec:
    torch.manual_seed(0)
    model = GRU4Rec(GRU4RecConfig(**{"dim": 4, "hidden": 6, "max_length": 8, **settings}), 9).eval()
    with torch.no_grad():
        model.item.weight[1:].normal_()
    return model


@pytest.mark.parametrize("cell", CELLS)
def test_states_are_those_of_the_formula_and_projected_to_the_width_of_items(cell: Cell) -> None:
    model = made(cell=cell, layers=2)
    events = np.array([3, 7, 1, 7])
    states = model.item.weight.detach().numpy()[events]
    for layer in model.layers:
        states = (gru if cell == "gru" else lstm)(states, [weight.detach().numpy() for weight in layer.parameters()])
    weight, bias = (parameter.detach().numpy() for parameter in model.projection.parameters())
    found = model.states(torch.from_numpy(events)[None])[0].detach().numpy()
    np.testing.assert_allclose(found, states @ weight.T + bias, atol=1e-5)


def test_states_as_wide_as_items_are_not_projected() -> None:
    assert not list(made(hidden=4).projection.parameters())


@pytest.mark.parametrize("cell", CELLS)
def test_the_exported_graph_takes_any_length(cell: Cell, tmp_path: Path) -> None:
    model = made(cell=cell)
    export_onnx(model, tmp_path / "model.onnx")
    for length in (1, 5, 8):
        history = np.arange(3 * length).reshape(3, length) % 10
        history[0, : length // 2] = 0
        assert measure_parity(model, tmp_path / "model.onnx", {"history": history}) < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"cell": "rnn"}, "cell must be one of gru, lstm, not rnn"),
        ({"dropout": 1.0}, "below 1"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRU4RecConfig(**settings)
