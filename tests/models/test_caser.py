"""Caser: its formula, its window, its settings; what all models of sequences keep to is in test_sequence_models.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayrec.inference.export import export_onnx, measure_parity
from rayrec.models.caser import Caser, CaserConfig


def made(**settings: Any) -> Caser:
    torch.manual_seed(0)
    config = CaserConfig(**{"dim": 6, "window": 3, "horizontal": 2, "vertical": 2, "max_length": 8, **settings})
    model = Caser(config, 9).eval()
    with torch.no_grad():
        model.item.weight[1:].normal_()
    return model


def by_the_formula(model: Caser, window: list[int]) -> np.ndarray:
    """The state after the events of a whole window, as the paper writes it: ``[D]``."""
    image = model.item.weight.detach().numpy()[window]  # [L, D]
    across = []
    for height, filters in enumerate(model.horizontal, start=1):
        weight, bias = (parameter.detach().numpy() for parameter in filters.parameters())  # [n, D, height], [n]
        for filter_weight, filter_bias in zip(weight, bias, strict=True):
            places = range(len(window) - height + 1)
            found = [(image[i : i + height].T * filter_weight).sum() + filter_bias for i in places]
            across.append(max(0.0, *found))
    along = [weight @ image for weight in model.vertical.weight.detach().numpy()]
    weight, bias = (parameter.detach().numpy() for parameter in model.join.parameters())
    joined: np.ndarray = np.maximum(0.0, weight @ np.concatenate([across, *along]) + bias)
    return joined


def test_each_event_is_predicted_from_the_window_before_it_as_the_paper_writes_it() -> None:
    model = made()
    found = model.states(torch.tensor([[3, 7, 1, 5]])).detach().numpy()[0]
    for state, window in zip(found, [[0, 0, 3], [0, 3, 7], [3, 7, 1], [7, 1, 5]], strict=True):
        np.testing.assert_allclose(state, by_the_formula(model, window), atol=1e-5)


def test_what_lies_before_the_window_changes_nothing() -> None:
    model = made()
    assert model.score(torch.tensor([[3, 7, 1, 5]])).equal(model.score(torch.tensor([[4, 7, 1, 5]])))


def test_the_exported_graph_takes_histories_shorter_and_longer_than_the_window(tmp_path: Path) -> None:
    model = made()
    export_onnx(model, tmp_path / "model.onnx")
    for length in (1, 2, 8):
        history = np.arange(2 * length).reshape(2, length) % 10
        assert measure_parity(model, tmp_path / "model.onnx", {"history": history}) < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window must be at least 1 and at most 64"),
        ({"window": 65}, "window must be at least 1 and at most 64"),
        ({"vertical": 0}, "vertical must be at least 1"),
        ({"dropout": 1.0}, "below 1"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaserConfig(**settings)
