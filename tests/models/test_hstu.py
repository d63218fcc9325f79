"""HSTU: its block, times and cosines; what all models of sequences keep to is in test_sequence_models.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import functional

from rayrec.features.histories import Histories
from rayrec.models.hstu import HSTU, Block, HSTUConfig, bucketed, longest_gap
from rayrec.models.interactions import Interactions

ITEMS = 5
DAY = 86_400
HISTORY = torch.tensor([[3, 1, 4]])
TIMES = torch.tensor([[0, 60, DAY, 30 * DAY]])


def made(**settings: Any) -> HSTU:
    """A small model with weights far from their beginnings, so that differences show."""
    torch.manual_seed(0)
    model = HSTU(HSTUConfig(**({"dim": 8, "heads": 2, "max_length": 4} | settings)), ITEMS).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return model


def observed(model: HSTU, times: np.ndarray | None) -> HSTU:
    """The model after it saw one user's events."""
    histories = Histories(np.array([0, 3]), np.array([3, 1, 4]), times)
    model.observe(Interactions(histories, ITEMS))
    return model


def normed(row: np.ndarray) -> np.ndarray:
    return np.asarray((row - row.mean()) / np.sqrt(row.var() + 1e-6))


def silu(values: np.ndarray) -> np.ndarray:
    return np.asarray(values / (1 + np.exp(-values)))


def test_a_block_is_the_formula_of_the_paper() -> None:
    """One query, key and head after the other."""
    torch.manual_seed(0)
    block = Block(HSTUConfig(dim=4, heads=2, max_length=5)).double().eval()
    with torch.no_grad():
        for weight in block.parameters():
            weight.add_(torch.randn_like(weight) * 0.5)
    states, buckets = torch.randn(1, 3, 4, dtype=torch.float64), torch.tensor([[[7, 0, 0], [9, 3, 0], [9, 8, 2]]])
    found = block(states, torch.ones(1, 3, 1, dtype=torch.float64), buckets.int(), 3)

    weights = {name: weight.detach().numpy() for name, weight in block.named_parameters()}
    x = states[0].numpy()
    u, v, q, k = np.split(
        np.stack([silu(weights["gate_value_query_key.weight"] @ normed(row)) for row in x]), 4, axis=1
    )
    for i in range(3):
        attended = np.zeros(4)
        for head in (slice(0, 2), slice(2, 4)):
            for j in range(i + 1):
                bias = weights["position_bias"][i - j] + weights["gap_bias"][buckets[0, i, j]]
                attended[head] += silu(q[i, head] @ k[j, head] + bias) / 5 * v[j, head]
        expected = x[i] + weights["output.weight"] @ (u[i] * normed(attended)) + weights["output.bias"]
        np.testing.assert_allclose(found[0, i].detach().numpy(), expected, atol=1e-12)


def test_a_gap_is_from_an_event_to_the_moment_after_the_query() -> None:
    model = made()
    found = model._buckets(TIMES, 3)
    assert found is not None
    assert found[0, 0, 0] == bucketed(torch.tensor(60))
    assert found[0, 2].tolist() == bucketed(torch.tensor([30 * DAY, 30 * DAY - 60, 29 * DAY])).tolist()


def test_buckets_are_those_of_the_authors() -> None:
    gaps = torch.tensor([-5, 0, 1, 2, 60, 3600, DAY, 365 * DAY])
    assert bucketed(gaps).tolist() == [int(np.log(max(1, gap)) / 0.301) for gap in gaps.tolist()]


def test_it_matters_how_long_ago_events_were_but_not_when() -> None:
    model = made()
    before = model.score(HISTORY, TIMES)
    assert (before - model.score(HISTORY, TIMES + torch.tensor([0, 0, 0, 365 * DAY]))).abs().amax() > 1e-3
    assert before.equal(model.score(HISTORY, TIMES + 1_000_000_000))


def test_a_gap_beyond_those_of_training_counts_as_the_longest() -> None:
    model = observed(made(), np.array([0, 50, 1000]))
    longest = model.score(HISTORY[:, -1:], torch.tensor([[0, 1000]]))
    assert longest.equal(model.score(HISTORY[:, -1:], torch.tensor([[0, 3650 * DAY]])))
    assert not longest.equal(model.score(HISTORY[:, -1:], torch.tensor([[0, 50]])))


def test_the_longest_gap_is_within_a_user_and_within_what_the_model_reads() -> None:
    histories = Histories(np.array([0, 4, 4, 6]), np.ones(6, np.int64), np.array([0, 10, 15, 30, 1000, 1005]))
    assert [longest_gap(histories, length) for length in (1, 2, 3, 9)] == [15, 20, 30, 30]


def test_a_model_that_saw_no_times_gives_the_same_with_them() -> None:
    torch.manual_seed(0)
    model = observed(HSTU(HSTUConfig(dim=8, max_length=4), ITEMS).eval(), None)
    assert model.score(HISTORY, TIMES).equal(model.score(HISTORY))
    assert all(not weight.requires_grad for name, weight in model.named_parameters() if "gap" in name)


def test_times_can_be_switched_off() -> None:
    model = made(times=False)
    assert model.score(HISTORY, TIMES).equal(model.score(HISTORY))


def test_states_and_items_are_compared_by_their_cosine() -> None:
    model, plain = made(temperature=0.1), made(temperature=None)
    state, items = plain.latest(HISTORY), plain.item.all_rows()
    cosines = functional.cosine_similarity(state, items)
    torch.testing.assert_close(model.score(HISTORY)[0], cosines / 0.1 / 8**0.5)
    torch.testing.assert_close(plain.score(HISTORY)[0], (items @ state[0]) / 8**0.5)
    rows = torch.tensor([2, 0, 5])
    assert model.outputs.lookup(rows).equal(model.outputs.all_rows()[rows])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 65, "heads": 2}, "multiple of heads"),
        ({"dropout": 1.0}, "below 1"),
        ({"blocks": 0}, "at least 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"temperature": float("nan")}, "above 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HSTUConfig(**settings)


def test_gaps_of_lifetimes_are_in_the_same_buckets_in_the_exported_graph(tmp_path: Path) -> None:
    gaps = torch.tensor([0, 60, 2**31 - 1, 2**31, 3 * 10**9, 2**32 - 1, 2**32])

    class Buckets(torch.nn.Module):
        def forward(self, gaps: torch.Tensor) -> torch.Tensor:
            return bucketed(gaps)

    torch.onnx.export(Buckets(), (gaps,), tmp_path / "buckets.onnx", input_names=["gaps"], verbose=False)
    (found,) = onnxruntime.InferenceSession(tmp_path / "buckets.onnx").run(None, {"gaps": gaps.numpy()})
    assert found.tolist() == bucketed(gaps).tolist()
