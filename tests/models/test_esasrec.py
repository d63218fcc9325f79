"""eSASRec: its block; what all models of sequences keep to is in test_sequence_models.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayrec.models.esasrec import ESASRecConfig, LiGRBlock


def sigmoid(values: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-values)))


def test_attention_and_feed_forward_are_gated_by_what_they_are_added_to() -> None:
    """The paper's formula, with attention and the normalisation as the block has them."""
    torch.manual_seed(0)
    block = LiGRBlock(ESASRecConfig(dim=4, heads=2, feed_forward=3)).double().eval()
    states = torch.randn(2, 3, 4, dtype=torch.float64)
    found = block(states, None, 0).detach().numpy()

    weights = {name: weight.detach().numpy() for name, weight in block.named_parameters()}

    def gate(name: str, x: np.ndarray) -> np.ndarray:
        return sigmoid(x @ weights[f"{name}_gate.weight"].T + weights[f"{name}_gate.bias"])

    normed, x = block.attention_norm(states), states.numpy()
    x = x + gate("attention", x) * block.attention(normed, None, 0).detach().numpy()
    inner = block.feed_forward_norm(torch.from_numpy(x)).detach().numpy()
    first, second = np.split(inner @ weights["feed_forward.gate_and_value.weight"].T, 2, axis=2)
    swiglu = (first * sigmoid(first) * second) @ weights["feed_forward.output.weight"].T
    np.testing.assert_allclose(found, x + gate("feed_forward", x) * swiglu, atol=1e-12)


def test_only_the_last_positions_may_be_asked_for() -> None:
    torch.manual_seed(0)
    block, states = LiGRBlock(ESASRecConfig(dim=8)).eval(), torch.randn(2, 5, 8)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(block(states, causal[None, None, -1:], 1), block(states, None, 0)[:, -1:])


def test_a_setting_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        ESASRecConfig(dim=65, heads=2)
