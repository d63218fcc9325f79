"""SASRec: what a position may see, what it is trained on, and that it learns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from rayrec.models.base import GradientTrained
from rayrec.models.optimization import Optimization
from rayrec.models.sasrec import SASRec, SASRecConfig, attention_mask
from rayrec.training.optimizer import build_optimizer

ITEMS = 20
HISTORY = torch.tensor([[0, 0, 3, 7, 1], [5, 5, 9, 2, 20], [0, 0, 0, 0, 4]])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several, and a busy machine makes it worse."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model() -> SASRec:
    """A small model with weights far from their beginnings, so that differences show."""
    torch.manual_seed(0)
    made = SASRec(SASRecConfig(dim=16, blocks=2, heads=2, dropout=0.3, max_length=12), ITEMS).eval()
    with torch.no_grad():
        made.item.weight[1:] = torch.randn(ITEMS, 16)
        made.position.copy_(torch.randn(12, 16))
    return made


def test_a_future_event_changes_nothing_at_earlier_positions(model: SASRec) -> None:
    changed = HISTORY.clone()
    changed[:, -1] = 13
    before, after = model.encode(HISTORY, 5), model.encode(changed, 5)
    torch.testing.assert_close(before[:, :-1], after[:, :-1], rtol=0, atol=0)
    assert (before[:, -1] - after[:, -1]).abs().amax() > 0.1


def test_an_earlier_event_changes_later_positions(model: SASRec) -> None:
    changed = HISTORY.clone()
    changed[1, 0] = 13
    assert (model.score(HISTORY)[1] - model.score(changed)[1]).abs().amax() > 1e-3


def test_the_order_of_events_matters(model: SASRec) -> None:
    assert (model.score(HISTORY[1:2]) - model.score(HISTORY[1:2, [1, 2, 0, 3, 4]])).abs().amax() > 1e-3


@pytest.mark.parametrize("padding", [1, 4, 7])
def test_more_padding_changes_nothing(model: SASRec, padding: int) -> None:
    padded = functional.pad(HISTORY, (padding, 0))
    torch.testing.assert_close(model.score(padded), model.score(HISTORY), rtol=0, atol=1e-5)
    seen = model.encode(HISTORY, 5)[HISTORY != 0]
    torch.testing.assert_close(model.encode(padded, 5)[HISTORY != 0], seen, rtol=1e-6, atol=1e-5)


def test_the_others_in_a_batch_change_nothing(model: SASRec) -> None:
    alone = torch.cat([model.score(HISTORY[user : user + 1]) for user in range(3)])
    torch.testing.assert_close(alone, model.score(HISTORY), rtol=0, atol=1e-5)


def test_scoring_the_last_position_only_equals_the_full_pass(model: SASRec) -> None:
    full = model.encode(HISTORY, HISTORY.shape[1])[:, -1] @ model.item.all_rows().T / model.config.dim**0.5
    torch.testing.assert_close(model.score(HISTORY), full, rtol=0, atol=1e-5)


def test_an_empty_history_has_finite_scores(model: SASRec) -> None:
    scores = model.score(torch.zeros(2, 4, dtype=torch.int64))
    assert scores.shape == (2, ITEMS + 1)
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(scores[0], model.score(torch.zeros(1, 1, dtype=torch.int64))[0], rtol=0, atol=1e-5)


def test_the_loss_is_the_cross_entropy_of_every_next_item_written_out(model: SASRec) -> None:
    history, targets = torch.tensor([[0, 3, 7], [4, 9, 2]]), torch.tensor([[0, 7, 1], [9, 2, 0]])
    hidden, expected = model.encode(history, 3), 0.0
    for user, position in [(0, 1), (0, 2), (1, 0), (1, 1)]:
        scores = (hidden[user, position] @ model.item.weight[1:].T).double()
        expected += (torch.logsumexp(scores, 0) - scores[targets[user, position] - 1]).item()
    assert model(history, targets).item() == pytest.approx(expected, rel=1e-5)
    assert isinstance(model, GradientTrained)


def test_without_targets_the_loss_is_zero_and_so_are_its_gradients(model: SASRec) -> None:
    loss = model(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_a_position_sees_itself_and_what_came_before() -> None:
    seen = attention_mask(torch.tensor([[0, 5, 6]]))[0, 0]
    assert seen.tolist() == [[True, False, False], [False, True, False], [False, True, True]]


def test_a_planted_pattern_is_learnt() -> None:
    """Whoever had i wants i + 1 next."""
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(dim=32, blocks=1, heads=1, dropout=0.0, max_length=6), ITEMS)
    optimizer = build_optimizer(model, Optimization(learning_rate=1e-2))
    history = (torch.arange(ITEMS)[:, None] + torch.arange(6)) % ITEMS + 1
    for _ in range(80):
        optimizer.zero_grad()
        loss = model(history[:, :-1], history[:, 1:]) / history[:, 1:].numel()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    best = model.eval().score(history)[:, 1:].argmax(1) + 1
    assert (best == history[:, -1] % ITEMS + 1).all()
    assert not model.item.weight[0].any(), "padding stays at zero"


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"dim": 65, "heads": 2}, "multiple of heads"), ({"dropout": 1.0}, "below 1"), ({"blocks": 0}, "at least 1")],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SASRecConfig(**settings)  # type: ignore[arg-type]
