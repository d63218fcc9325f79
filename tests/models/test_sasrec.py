"""SASRec: what its settings refuse; what all models of sequences keep to is in test_sequence_models.py."""

from __future__ import annotations

import pytest
import torch

from rayrec.models.sasrec import SASRec, SASRecConfig


def test_the_latest_position_is_the_first_whatever_the_length_of_the_history() -> None:
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(dim=8, max_length=4), 5).eval()
    before = model.score(torch.tensor([[3]]))
    with torch.no_grad():
        model.position[1:] += 1.0
    assert model.score(torch.tensor([[3]])).equal(before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"dim": 65, "heads": 2}, "multiple of heads"), ({"dropout": 1.0}, "below 1"), ({"blocks": 0}, "at least 1")],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SASRecConfig(**settings)  # type: ignore[arg-type]
