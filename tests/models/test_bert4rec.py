"""BERT4Rec: what is hidden, what a state knows, and its formula; what all models keep to: test_sequence_models.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rayrec.models.bert4rec import MASK, BERT4Rec, BERT4RecConfig, drawn
from rayrec.models.losses import ItemLoss
from rayrec.models.objective import Objective
from rayrec.training.feed import Part
from rayrec.training.learner import NextItem

ITEMS = 20
INPUTS = torch.tensor([[5, 5, 9, 2, 20], [3, 7, 0, 0, 0]])
TARGETS = torch.tensor([[5, 9, 2, 20, 3], [7, 1, 0, 0, 0]])


def made(**settings: float) -> BERT4Rec:
    """A small model with weights far from their beginnings, without dropout."""
    torch.manual_seed(0)
    sizes = {"dim": 16, "heads": 2, "blocks": 2, "dropout": 0.0, "max_length": 8}
    model = BERT4Rec(BERT4RecConfig(**(sizes | settings)), ITEMS)  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
        model.item.all_rows()[0] = 0.0
    return model


def states(model: BERT4Rec, *history: int) -> Tensor:
    return model.states(torch.tensor([history]))[0]


def test_so_many_events_are_hidden_and_at_least_one_of_each_history() -> None:
    torch.manual_seed(0)
    window = torch.ones(2000, 50, dtype=torch.int64)
    window[:1000, 2:] = 0
    hidden = drawn(window, mask=0.3, last=0.0)
    assert not hidden[:1000, 2:].any()
    assert (hidden.sum(1) >= 1).all()
    assert float(hidden[1000:].float().mean()) == pytest.approx(0.3, abs=0.01)
    # Of two events: 0.3, and half of the histories with neither.
    assert hidden[:1000, :2].float().mean(0).tolist() == pytest.approx([0.3 + 0.49 / 2] * 2, abs=0.05)


def test_of_a_share_of_the_histories_only_the_last_event_is_hidden() -> None:
    torch.manual_seed(0)
    window = torch.tensor([[1] * 40 + [0] * 10]).expand(2000, -1)
    hidden = drawn(window, mask=0.5, last=0.25)
    only_last = (hidden.sum(1) == 1) & hidden[:, 39]
    assert float(only_last.float().mean()) == pytest.approx(0.25, abs=0.03)


def test_a_hidden_item_is_not_known_to_its_own_state() -> None:
    model = made()
    torch.manual_seed(1)
    before, items = model.examples(INPUTS[:1], TARGETS[:1])
    window = torch.cat([INPUTS[:1, :1], TARGETS[:1]], 1)
    torch.manual_seed(1)
    hidden = drawn(window, model.config.mask, model.config.last)
    window[hidden] = 13
    torch.manual_seed(1)
    after, changed = model.examples(window[:, :-1], window[:, 1:])
    assert (items != 13).all()
    assert (changed == 13).all()
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_what_comes_before_and_after_a_hidden_item_is_known_to_its_state() -> None:
    model = made()
    state = states(model, 5, MASK, 9)[1]
    assert (state - states(model, 6, MASK, 9)[1]).abs().amax() > 0.01
    assert (state - states(model, 5, MASK, 8)[1]).abs().amax() > 0.01


def test_examples_are_the_states_of_the_hidden_events_alone() -> None:
    model = made(mask=0.5)
    torch.manual_seed(1)
    found, items = model.examples(INPUTS, TARGETS)
    window = torch.cat([INPUTS[:, :1], TARGETS], 1)
    torch.manual_seed(1)
    hidden = drawn(window, model.config.mask, model.config.last)
    assert items.equal(window[hidden])
    torch.testing.assert_close(found, model.states(window.masked_fill(hidden, MASK))[hidden], rtol=0, atol=2e-5)


def test_it_is_asked_as_with_its_last_event_hidden() -> None:
    model = made().eval()
    torch.testing.assert_close(model.latest(torch.tensor([[0, 5, 9, 2]]))[0], states(model, 5, 9, 2, MASK)[-1])


def test_a_state_is_what_the_formula_says() -> None:
    """One history, place by place and head by head; see the differences in the module's docstring."""
    model = made()
    history = [5, MASK, 9]
    vectors = [model.mask if row == MASK else model.item.all_rows()[row] for row in history]
    state = torch.stack([vector + model.position[2 - place] for place, vector in enumerate(vectors)])
    for block in model.blocks:
        normed = block.attention_norm(state)
        query = block.attention.query(normed)
        key, value = block.attention.key_value(normed).chunk(2, dim=-1)
        heads = []
        for columns in (slice(0, 8), slice(8, 16)):
            weights = torch.softmax(query[:, columns] @ key[:, columns].T / 8**0.5, dim=-1)
            heads.append(weights @ value[:, columns])
        state = state + block.attention.output(torch.cat(heads, dim=-1))
        state = state + block.feed_forward(block.feed_forward_norm(state))
    linear, gelu, norm = model.output
    expected = norm(gelu(linear(model.norm(state))))
    torch.testing.assert_close(states(model, *history), expected, rtol=0, atol=1e-5)


def test_the_loss_of_a_step_is_a_mean_over_what_was_hidden() -> None:
    model = made()
    loss = ItemLoss(Objective(), ITEMS, torch.ones(ITEMS + 1, dtype=torch.int64).numpy())
    torch.manual_seed(1)
    found, items = model.examples(INPUTS, TARGETS)
    mean = loss(found, items, model.item, model.bias) / len(items)
    torch.manual_seed(1)
    step = NextItem(model, loss)([Part(INPUTS, TARGETS)]) / int(TARGETS.count_nonzero())
    torch.testing.assert_close(step, mean)


def test_a_part_of_nobody_leaves_no_gradient_that_is_no_number() -> None:
    model = made()
    nothing = torch.zeros(1, 1, dtype=torch.int64)
    model.examples(nothing, nothing)[0].sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": 0.0}, "mask must be above 0"),
        ({"mask": 1.0}, "below 1"),
        ({"last": 1.5}, "last is a share"),
        ({"dim": 65, "heads": 2}, "multiple of heads"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BERT4RecConfig(**settings)  # type: ignore[arg-type]
