"""A warm start: what an older model knew is known before the first step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.running import HISTORIES, ITEMS, begin, feed, losses, nothing, rising, settings

from rayrec.errors import ModelError
from rayrec.models.base import Recommender
from rayrec.models.interactions import Interactions
from rayrec.models.registry import model_class
from rayrec.models.sequence import SequenceModel
from rayrec.training.loop import train
from rayrec.training.warm_start import carry_over, check_kept, rows_by_key

OLD = [f"item {number}" for number in range(ITEMS)]
# A tenth more, some gone, and all in another order.
NEW = ["new a", *reversed(OLD[1:]), "new b"]
HISTORY = torch.tensor([[0, 0, 3, 5, 2], [5, 4, 5, 2, 3], [0, 0, 0, 0, 7]])
TIMES = torch.arange(6).expand(3, 6) * 3600
WARM = ["sasrec", "esasrec", "hstu", "hstu-ensemble", "bert4rec", "gru4rec", "caser", "bpr"]


def fresh(name: str, num_items: int, timed: bool = True, **config: Any) -> Recommender:
    """A model with weights far from zero."""
    found = model_class(name)
    model = found(found.Config(**{"dim": 8, **config}), num_items)
    times = np.arange(len(HISTORIES.items)) * 3600 if timed else None
    model.observe(Interactions(replace(HISTORIES, times=times), num_items))
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn_like(weights) * 0.1)
    return model.eval()


def scores(model: Recommender, history: torch.Tensor) -> torch.Tensor:
    timed = isinstance(model, SequenceModel) and model.timed
    with torch.inference_mode():
        return model.score(history, times=TIMES) if timed else model.score(history)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", WARM)
def test_old_users_scores_of_old_items_are_those_of_the_old_model(name: str) -> None:
    torch.manual_seed(0)
    old, new = fresh(name, len(OLD)), fresh(name, len(NEW))
    rows = rows_by_key(OLD, NEW)
    carry_over(old, new, rows)
    here = torch.tensor([0, *(NEW.index(key) + 1 if key in NEW else -1 for key in OLD)])  # new row of an old one
    assert (here[HISTORY] >= 0).all()
    kept = here[1:] >= 0
    found = scores(new, here[HISTORY])[:, here[1:][kept]]
    torch.testing.assert_close(found, scores(old, HISTORY)[:, 1:][:, kept], rtol=1e-6, atol=1e-6)


def test_rows_are_found_by_key() -> None:
    assert rows_by_key(["a", "b"], ["b", "c", "a"]).tolist() == [0, 2, -1, 1]
    assert rows_by_key([], ["b"]).tolist() == [0, -1]


def test_new_items_begin_as_they_would_without() -> None:
    old, new = fresh("sasrec", len(OLD)), fresh("sasrec", len(NEW))
    first = new.state_dict()["item.weight"].clone()
    carry_over(old, new, rows_by_key(OLD, NEW))
    now = new.state_dict()["item.weight"]
    changed = (first != now).any(dim=1)
    assert changed.tolist() == [True, *(key in OLD for key in NEW)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dim": 16}, r"are \[32\], here they are \[16\]\. Its settings: dim 16\. Use them"),
        ({"max_length": 20}, r"its weights 'position' are \[20, 8\], here they are \[200, 8\]\."),
        ({"blocks": 1}, r"are not there, here they are \["),
        ({"blocks": 3}, r"here they are not there\. Its settings: blocks 3\."),
    ],
)
def test_other_sizes_are_one_message(config: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        carry_over(fresh("sasrec", 5, **config), fresh("sasrec", 5), rows_by_key(OLD[:5], OLD[:5]))


def test_what_the_events_have_no_use_for_stays_as_it_was() -> None:
    """HSTU learns nothing of gaps where there are no times, however much its parent knew of them."""
    old, new = (fresh("hstu", ITEMS, timed) for timed in (True, False))
    before = new.state_dict()["blocks.0.gap_bias"].clone()
    carry_over(old, new, rows_by_key(OLD, OLD))
    assert torch.equal(new.state_dict()["blocks.0.gap_bias"], before)
    assert torch.equal(new.state_dict()["position"], old.state_dict()["position"])


def test_what_learns_from_what_is_not_kept_is_refused() -> None:
    with pytest.raises(ModelError, match="what a 'lightgcn' learns from is not kept"):
        check_kept(fresh("lightgcn", ITEMS))


def test_a_training_begins_where_its_parent_ended() -> None:
    parent = begin(settings(epochs=8), dropout=0.0)
    train(parent, feed(parent.settings), rising, nothing)
    child = begin(
        settings(epochs=1), dropout=0.0, warm=lambda model: carry_over(parent.model, model, torch.arange(ITEMS + 1))
    )
    assert all(
        torch.equal(weights, parent.model.state_dict()[name]) for name, weights in child.model.state_dict().items()
    )
    train(child, feed(child.settings), rising, nothing)
    assert losses(child)[0] < 0.7 * losses(parent)[0]
