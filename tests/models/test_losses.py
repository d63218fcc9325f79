"""The losses of sequence models: what they add up to, what they teach, and what they take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rayrec.errors import ModelError
from rayrec.models import losses
from rayrec.models.embedding import ReplicatedTable
from rayrec.models.losses import ItemLoss
from rayrec.models.negatives import SAMPLERS
from rayrec.models.objective import Objective

ITEMS = 30
COUNTS = np.concatenate([[0], 600 // np.arange(1, ITEMS + 1)])
DRAWN = [Objective(loss=loss, negatives=12) for loss in ("sampled-softmax", "gbce", "bce", "bpr", "mse")]
EVERY = [
    Objective(),
    Objective(label_smoothing=0.1),
    *DRAWN,
    Objective(loss="bce", negatives=12, shared=False),
    Objective(loss="sampled-softmax", negatives=12, sampling="popularity", shared=False, label_smoothing=0.1),
    Objective(loss="sampled-softmax", sampling="in-batch"),
]


class Case:
    """Targets with hidden states, item vectors and biases, all far from zero."""

    def __init__(self, targets: int = 50, items: int = ITEMS, dim: int = 8) -> None:
        torch.manual_seed(1)
        self.targets = torch.randint(1, items + 1, (targets,))
        self.hidden = torch.randn(targets, dim, requires_grad=True)
        self.table = ReplicatedTable(items + 1, dim, std=0.5)
        self.bias = torch.randn(items + 1, requires_grad=True)

    def loss(self, objective: Objective, hidden: Tensor | None = None, seed: int = 0) -> Tensor:
        loss = ItemLoss(objective, len(self.bias) - 1, COUNTS)
        torch.manual_seed(seed)
        found: Tensor = loss(self.hidden if hidden is None else hidden, self.targets, self.table, self.bias)
        return found

    def gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, (self.hidden, self.table.weight, self.bias))

    def logits(self) -> Tensor:
        return self.hidden @ self.table.weight.T + self.bias


def close(found: Tensor, expected: Tensor) -> bool:
    """Equal within 1e-5 of the largest."""
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


# ---- softmax over all items


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_full_softmax_is_cross_entropy_over_the_items_without_padding(smoothing: float) -> None:
    case = Case(targets=2000, items=5000, dim=64)
    with torch.no_grad():
        case.table.weight[0] = 9.0  # would win every softmax it is part of
    found = case.loss(Objective(label_smoothing=smoothing))
    expected = functional.cross_entropy(
        case.logits()[:, 1:], case.targets - 1, reduction="sum", label_smoothing=smoothing
    )
    assert close(found, expected)
    for mine, plain in zip(case.gradients(found), case.gradients(expected), strict=True):
        assert close(mine, plain)


LINUX = Path("/proc/self/status")
MEASURE = """
import pathlib, re, torch
from rayrec.models.embedding import ReplicatedTable
from rayrec.models.losses import ItemLoss
from rayrec.models.objective import Objective

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024

table = ReplicatedTable(50_001, 64)
hidden, targets = torch.randn(6400, 64, requires_grad=True), torch.randint(1, 50_001, (6400,))
loss = ItemLoss(Objective(label_smoothing=0.1), 50_000, None)
loss(hidden[:8], targets[:8], table).backward()
before = peak()
loss(hidden, targets, table).backward()
print(peak() - before)
"""


@pytest.mark.skipif(not LINUX.exists(), reason="the peak of a process is read from /proc")
def test_full_softmax_of_6400_targets_over_50_000_items_stays_below_300_mb() -> None:
    """Its logits alone would be 1.3 GB. Not `ru_maxrss`, which a process inherits from the one that starts it."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 300


# ---- softmax over what was drawn


def free_logits(**settings: object) -> float:
    """How far from the truth (Kullback-Leibler) logits come that learn 100 items' frequencies by sampled softmax."""
    counts = np.concatenate([[0], 10_000 // np.arange(1, 101)])
    truth = torch.from_numpy(counts[1:] / counts.sum()).float()
    loss = ItemLoss(Objective(loss="sampled-softmax", negatives=32, **settings), 100, counts)  # type: ignore[arg-type]
    table, hidden = ReplicatedTable(101, 1, std=0.0), torch.ones(256, 1)
    optimizer = torch.optim.Adam(table.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=200)
    torch.manual_seed(0)
    for _ in range(200):
        optimizer.zero_grad()
        loss(hidden, torch.multinomial(truth, 256, replacement=True) + 1, table).backward()
        optimizer.step()
        schedule.step()
    return functional.kl_div(table.weight[1:, 0].log_softmax(0), truth, reduction="sum").item()


@pytest.mark.parametrize("sampling", ["popularity", "in-batch"])
def test_the_correction_takes_away_what_sampling_by_popularity_teaches(sampling: str) -> None:
    assert free_logits(sampling=sampling) < 0.03
    assert free_logits(sampling=sampling, correction=False) > 0.5


def test_where_items_are_drawn_alike_the_correction_changes_nothing() -> None:
    with_it, without = (
        Case().loss(Objective(loss="sampled-softmax", negatives=12, correction=correction))
        for correction in (True, False)
    )
    assert with_it.item() == pytest.approx(without.item())
    assert free_logits() < 0.03


# ---- by hand: a target with logit 2, negatives with logits 1 and -1


def of_one(monkeypatch: pytest.MonkeyPatch, drawn: list[int], objective: Objective) -> float:
    """The loss of item 1 against what is drawn, where items 1, 2 and 3 have logits 2, 1 and -1."""
    rows = torch.tensor(drawn) if objective.shared else torch.tensor([drawn])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: rows)
    table = ReplicatedTable(4, 1)
    with torch.no_grad():
        table.weight[1:, 0] = torch.tensor([2.0, 1.0, -1.0])
    loss = ItemLoss(objective, 3, np.array([0, 4, 3, 1]))
    return float(loss(torch.ones(1, 1), torch.tensor([1]), table).detach())


def no(logit: float) -> float:
    """Minus the logarithm of the probability of no."""
    return float(np.log1p(np.exp(logit)))


BY_HAND = {
    "sampled-softmax": float(np.log(np.exp([2, 1, -1]).sum()) - 2),
    "bce": (no(-2) + no(1) + no(-1)) / 3,
    "gbce": (no(-2) + no(1) + no(-1)) / 3,  # two of two others drawn: nothing to calibrate
    "bpr": (no(-1) + no(-3)) / 2,
    "mse": (1 + 1 + 1) / 3,
}


@pytest.mark.parametrize(("shared", "few"), [(True, 64), (False, 64), (False, 0)])
@pytest.mark.parametrize("loss", BY_HAND)
def test_a_loss_is_what_its_paper_says(monkeypatch: pytest.MonkeyPatch, loss: str, shared: bool, few: int) -> None:
    monkeypatch.setattr(losses, "FEW_ITEMS", few)
    objective = Objective(loss=loss, negatives=2, shared=shared)  # type: ignore[arg-type]
    assert of_one(monkeypatch, [2, 3], objective) == pytest.approx(BY_HAND[loss], rel=1e-5)


def test_the_chance_of_being_drawn_comes_off_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    # Events 4 and 7 of eight are of items 2 and 3, which have 3 and 1; item 1 has 4.
    objective = Objective(loss="sampled-softmax", sampling="popularity", negatives=2)
    weights = np.exp([2, 1, -1]) / np.array([4, 3, 1])
    assert of_one(monkeypatch, [4, 7], objective) == pytest.approx(-np.log(weights[0] / weights.sum()), rel=1e-5)


def test_gbce_weighs_the_target_by_the_share_that_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    share, t = 1 / 2, 0.75  # one of the two others
    beta = share * (t * (1 - 1 / share) + 1 / share)
    found = of_one(monkeypatch, [2], Objective(loss="gbce", negatives=1, calibration=t))
    assert found == pytest.approx((beta * no(-2) + no(1)) / 2, rel=1e-5)


def test_gbce_without_calibration_is_bce() -> None:
    case = Case()
    found = case.loss(Objective(loss="gbce", negatives=5, calibration=0.0))
    assert found.item() == pytest.approx(case.loss(Objective(loss="bce", negatives=5)).item())


def test_label_smoothing_wants_the_target_less_far_above_its_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Objective(loss="sampled-softmax", negatives=2, label_smoothing=0.1)
    expected = BY_HAND["sampled-softmax"] + 0.1 * (1 + 3) / 2
    assert of_one(monkeypatch, [2, 3], objective) == pytest.approx(expected, rel=1e-5)


# ---- negatives


@pytest.mark.parametrize("objective", DRAWN, ids=lambda o: o.loss)
def test_a_target_that_is_drawn_never_counts_against_itself(
    monkeypatch: pytest.MonkeyPatch, objective: Objective
) -> None:
    case = Case()
    case.targets[:] = 7
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([7, 7]))
    _, vectors, bias = case.gradients(case.loss(objective))
    assert torch.isfinite(vectors).all()
    assert not vectors[torch.arange(ITEMS + 1) != 7].any()
    # All that is left is to be told yes: nothing where the loss only compares, and never to be lower.
    assert bias[7] <= 0 or objective.loss == "mse"
    assert bool(bias[7]) == (objective.loss in {"bce", "gbce", "mse"})


def test_popular_items_are_drawn_as_often_as_they_occur() -> None:
    counts = np.array([99, 5, 0, 3, 2, 0])  # what row 0 says is no item's
    sampler = SAMPLERS["popularity"](Objective(loss="bce", sampling="popularity", negatives=50_000), 5, counts)
    torch.manual_seed(0)
    shares = np.bincount(sampler(torch.tensor([1])).numpy(), minlength=6) / 50_000
    np.testing.assert_allclose(shares, [0, 0.5, 0, 0.3, 0.2, 0], atol=0.01)
    assert not shares[[0, 2, 5]].any()
    np.testing.assert_allclose(sampler.log_probability(torch.tensor([1, 3])).exp(), [0.5, 0.3], rtol=1e-5)


def test_uniform_negatives_are_all_items_and_never_padding() -> None:
    sampler = SAMPLERS["uniform"](Objective(loss="bce", negatives=1000, shared=False), ITEMS, None)
    drawn = sampler(torch.tensor([1, 2]))
    assert drawn.shape == (2, 1000)
    assert drawn.unique().tolist() == list(range(1, ITEMS + 1))


@pytest.mark.parametrize("sampling", ["popularity", "in-batch"])
@pytest.mark.parametrize("counts", [None, np.array([5, 0, 0, 0])])
def test_without_events_to_count_popularity_is_refused(sampling: str, counts: np.ndarray | None) -> None:
    with pytest.raises(ModelError, match=f"training.objective.sampling = '{sampling}' .* Set it to uniform"):
        ItemLoss(Objective(loss="bce", sampling=sampling), 3, counts)  # type: ignore[arg-type]


# ---- what holds of every loss


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_a_step_without_targets_costs_nothing_and_still_has_gradients(objective: Objective) -> None:
    case = Case(targets=0)
    loss = case.loss(objective)
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in case.gradients(loss))


@pytest.mark.parametrize("few", [0, 64])
@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_a_loss_in_parts_is_the_loss(monkeypatch: pytest.MonkeyPatch, objective: Objective, few: int) -> None:
    monkeypatch.setattr(losses, "FEW_ITEMS", few)
    case = Case()
    whole = case.loss(objective)
    monkeypatch.setattr(losses, "LOGITS", 12 * 7)
    parts = case.loss(objective)
    assert close(parts, whole)
    for mine, plain in zip(case.gradients(parts), case.gradients(whole), strict=True):
        assert close(mine, plain)


class NoisyTable(ReplicatedTable):
    """A table whose vectors are never twice the same, as with dropout on them."""

    def lookup(self, rows: Tensor) -> Tensor:
        return functional.dropout(super().lookup(rows), 0.5)


def test_what_is_worked_out_again_backwards_is_what_was_worked_out_first(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    case.table = NoisyTable(ITEMS + 1, 8, std=0.5)
    objective = Objective(loss="bce", negatives=12, shared=False)
    monkeypatch.setattr(losses, "FEW_ITEMS", 0)
    monkeypatch.setattr(losses, "LOGITS", 12 * 8 * 7)
    found = case.gradients(case.loss(objective))
    monkeypatch.setattr(losses, "checkpoint", lambda summed, part, use_reentrant: summed(part))
    for mine, kept in zip(found, case.gradients(case.loss(objective)), strict=True):
        assert close(mine, kept)


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_under_autocast_a_loss_is_still_float32(objective: Objective) -> None:
    case = Case()
    rounded = case.hidden.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = case.loss(objective, rounded)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(case.loss(objective, rounded.float()).item())


@pytest.mark.parametrize("objective", DRAWN, ids=lambda o: o.loss)
def test_the_seed_decides_what_is_drawn(objective: Objective) -> None:
    case = Case()
    assert case.loss(objective, seed=3).item() == case.loss(objective, seed=3).item()
    assert case.loss(objective, seed=3).item() != case.loss(objective, seed=4).item()


def test_a_loss_is_no_part_of_what_is_kept() -> None:
    loss = ItemLoss(Objective(loss="bce", sampling="popularity"), ITEMS, COUNTS)
    assert not loss.state_dict()
    assert not list(loss.parameters())


# ---- settings


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"negatives": 0}, "negatives must be at least 1"),
        ({"loss": "gbce", "calibration": 1.5}, "calibration must be between 0 and 1"),
        ({"label_smoothing": 1.0}, "label_smoothing must be"),
        ({"loss": "bce", "label_smoothing": 0.1}, "label_smoothing goes with loss softmax or sampled-softmax, not"),
        ({"sampling": "popularity"}, "loss softmax has none: set loss to sampled-softmax"),
        ({"loss": "gbce", "sampling": "popularity"}, "set sampling to uniform, or loss to bce"),
        ({"loss": "bce", "sampling": "in-batch", "shared": False}, "leave shared at true"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Objective(**settings)  # type: ignore[arg-type]
