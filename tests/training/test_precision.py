"""Half precision: forward and backward in bf16 or fp16, the loss of fp16 scaled. On a CPU it is slow, and the same."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.running import assert_same, begin, feed, losses, nothing, rising, settings, trained

from rayrec.training.checkpoint import Checkpoint, load_checkpoint, snapshot
from rayrec.training.loop import train
from rayrec.training.run import Run
from rayrec.training.steps import DivergedError


def scale(run: Run, value: float) -> None:
    """Scale the loss so much, whatever it was."""
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": value})


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_what_single_does(precision: str) -> None:
    single, half = (trained(settings(precision=chosen)) for chosen in ("fp32", precision))
    assert losses(half) != losses(single)
    assert losses(half) == pytest.approx(losses(single), rel=0.02)
    assert half.scaler.is_enabled() == (precision == "fp16")
    assert all(weights.dtype == torch.float32 for weights in half.model.parameters())


def test_gradients_are_clipped_and_told_of_as_they_are_without_a_scale() -> None:
    plain, scaled = (trained(settings(precision="fp16", epochs=1)) for _ in range(2))
    other = begin(settings(precision="fp16", epochs=1))
    scale(other, 64.0)
    train(other, feed(other.settings), rising, nothing)
    assert_same(plain.model, scaled.model)
    norms = [run.progress.history[0]["gradient_norm"] for run in (plain, other)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_is_worked_out_again_where_the_scale_is_too_large(accumulate: int) -> None:
    # One step an epoch: nothing would be learnt in an epoch whose step is passed over.
    chosen = settings(precision="fp16", batch_size=100, accumulate=accumulate)
    plain, run = begin(chosen), begin(chosen)
    scale(run, 2.0**40)
    for one in (plain, run):
        train(one, feed(chosen), rising, nothing)
    assert 1 < run.scaler.get_scale() < 2.0**25
    assert losses(run) == pytest.approx(losses(plain), rel=1e-3)
    assert losses(run)[-1] < losses(run)[0]


def test_what_is_no_number_whatever_the_scale_leaves_it_alone() -> None:
    run = begin(settings(precision="fp16", batch_size=1, nonfinite="skip"))
    bad = {(0, 2), (0, 3), (0, 9)}
    next(run.model.parameters()).register_hook(
        lambda gradient: gradient * (math.inf if (run.progress.epoch, run.progress.step) in bad else 1.0)
    )
    train(run, feed(run.settings), rising, nothing)
    assert [entry["skipped"] for entry in run.progress.history] == [3, 0, 0, 0]
    assert run.scaler.get_scale() >= 2.0**15


def test_a_training_is_taken_up_with_its_scale(tmp_path: Path) -> None:
    chosen = settings(precision="fp16", batch_size=1, epochs=2, checkpoint_steps=15)
    run, again = begin(chosen), begin(chosen)
    scale(run, 2.0**25)

    def amid_epoch(run: Run) -> None:
        if run.progress.epoch == 0:
            Checkpoint.of(run, snapshot(run.model)).write(tmp_path)

    train(run, feed(chosen), rising, nothing, amid_epoch=amid_epoch)
    load_checkpoint(again, tmp_path)
    assert 1 < again.scaler.get_scale() < 2.0**25
    train(again, feed(chosen), rising, nothing)
    assert again.scaler.state_dict() == run.scaler.state_dict()
    assert_same(again.model, run.model)


def test_what_no_scale_makes_finite_stops_the_training() -> None:
    run = begin(settings(precision="fp16", batch_size=1))
    with torch.no_grad():
        next(run.model.parameters()).fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"the norm of the gradient became nan in epoch 1, step 1 of 17"):
        train(run, feed(run.settings), rising, nothing)
