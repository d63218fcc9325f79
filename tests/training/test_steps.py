"""The steps of an epoch: in pieces, on several workers, of sparse gradients, and when numbers are none."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.running import (
    HISTORIES,
    ITEMS,
    MAX_LENGTH,
    begin,
    feed,
    following,
    losses,
    nothing,
    rising,
    settings,
    trained,
)

from rayrec.errors import ModelError
from rayrec.models.objective import Objective
from rayrec.training import learner
from rayrec.training.checkpoint import Checkpoint, load_checkpoint, snapshot
from rayrec.training.laps import Laps
from rayrec.training.loop import train
from rayrec.training.progress import Position
from rayrec.training.run import Run
from rayrec.training.steps import DivergedError, Steps
from rayrec.training.world import World

BY_ROWS = {"table_optimizer": "row-wise-adagrad", "table_learning_rate": 0.1}
AMID = Position(1, 2)
IN_BATCH = Objective(loss="sampled-softmax", sampling="in-batch")


# ---- several workers


@dataclass(frozen=True)
class Together:
    """A training on several workers.

    Attributes:
        size: Their number.
        pieces: In how many one worker alone computes the same.
        dropout: Of the model.
        epochs: Of five steps.
        changes: To the settings.
    """

    size: int
    pieces: int
    dropout: float
    epochs: int
    changes: dict[str, object]

    def begin(self, pieces: int, world: World | None = None) -> Run:
        chosen = settings(epochs=self.epochs, accumulate=pieces, checkpoint_steps=2, **self.changes)
        return begin(chosen, self.dropout, world)

    def train(self, run: Run, amid_epoch: Callable[[Run], None] = nothing) -> None:
        # Always better, in whichever epoch it begins.
        values = following(list(range(run.progress.epoch + 1, self.epochs + 1)))
        train(run, feed(run.settings), values, nothing, amid_epoch=amid_epoch)


# The loss of 200 steps, with other sums of floats at each.
TWO = Together(2, 1, 0.0, 40, {"averaging": 0.9})
# In three pieces one worker draws, and takes for negatives, what three workers do, of which some have no user.
THREE = Together(3, 3, 0.2, 3, {"objective": IN_BATCH, **BY_ROWS})


def _worker(rank: int, folder: str, case: Together) -> None:
    """What Ray Train would start, without Ray."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", case.size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=case.size)
    learner.LARGE_TABLE = 1

    def amid_epoch(run: Run) -> None:
        if rank == 0 and run.progress.position == AMID:
            Checkpoint.of(run, snapshot(run.model)).write(Path(folder, "amid"))

    run = case.begin(1, World(rank, case.size))
    case.train(run, amid_epoch)
    for name, weights in run.judged.state_dict().items():
        copies = [torch.zeros_like(weights) for _ in range(case.size)]
        torch.distributed.all_gather(copies, weights)
        assert all(torch.equal(copies[0], copy) for copy in copies), f"workers differ in {name}"
    if rank == 0:
        Path(folder, "losses.json").write_text(json.dumps(losses(run)))
        Checkpoint.of(run, snapshot(run.model)).write(Path(folder, "end"))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("case", [pytest.param(TWO, id="two"), pytest.param(THREE, id="three")])
def test_several_workers_compute_what_one_does_and_may_become_more_or_fewer(
    case: Together, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.multiprocessing.spawn(_worker, (str(tmp_path), case), nprocs=case.size)
    monkeypatch.setattr(learner, "LARGE_TABLE", 1)
    curve = json.loads((tmp_path / "losses.json").read_text())
    end = case.begin(1)
    load_checkpoint(end, tmp_path / "end")
    # One from the beginning, and one or three (in as many pieces) from where the others stood amid an epoch.
    for pieces, resumed in [(case.pieces, False), (case.pieces, True), (3, True)]:
        alone = case.begin(pieces)
        if resumed:
            load_checkpoint(alone, tmp_path / "amid")
            assert alone.progress.position == AMID
        case.train(alone)
        assert losses(alone) == pytest.approx(curve, rel=1e-3)
        torch.testing.assert_close(scores(alone), scores(end), rtol=1e-2, atol=1e-2)


def scores(run: Run) -> torch.Tensor:
    """Not weights: attention's key bias has no effect and no gradient but rounding, which Adam scales up."""
    history = torch.from_numpy(HISTORIES.last(np.arange(len(HISTORIES)), MAX_LENGTH))
    with torch.inference_mode():
        return run.judged.eval().score(history)[:, 1:]


def test_a_step_in_pieces_is_the_step() -> None:
    whole, pieces = (begin(settings(epochs=2, accumulate=number), dropout=0.0) for number in (1, 3))
    for run in (whole, pieces):
        train(run, feed(run.settings), rising, nothing)
    assert losses(pieces) == pytest.approx(losses(whole), rel=1e-5)


# ---- sparse gradients


@pytest.mark.parametrize("sampling", ["uniform", "popularity", "in-batch"])
def test_sparse_gradients_of_large_tables_train_as_dense_ones(sampling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Objective(loss="bce", negatives=4, sampling=sampling)  # type: ignore[arg-type]
    chosen = settings(epochs=2, objective=objective, clip=0.5, **BY_ROWS)
    dense = trained(chosen)
    assert not dense.learner.sparse_tables
    monkeypatch.setattr(learner, "LARGE_TABLE", ITEMS)
    sparse = trained(chosen)
    assert len(sparse.learner.sparse_tables) == 1
    assert losses(sparse) == pytest.approx(losses(dense), rel=1e-5)
    tables = [run.model.tables()["item"].all_rows() for run in (sparse, dense)]
    torch.testing.assert_close(*tables, rtol=1e-4, atol=1e-5)


def test_where_every_row_is_read_gradients_stay_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "LARGE_TABLE", 1)
    assert not begin(settings(**BY_ROWS)).learner.sparse_tables


# ---- numbers that are none


def spoil(run: Run, steps: set[int]) -> None:
    """Make the gradient infinite in these steps, counted from 0 over all epochs."""
    count = iter(range(1000))
    weight = next(run.model.parameters())
    weight.register_hook(lambda gradient: gradient * (math.inf if next(count) in steps else 1.0))


def test_training_stops_before_a_step_whose_gradient_is_no_number() -> None:
    run, positions = begin(settings(checkpoint_steps=1)), list[Position]()
    before: dict[str, torch.Tensor] = {}

    def keep(run: Run) -> None:
        positions.append(run.progress.position)
        before.update(snapshot(run.model))

    spoil(run, {8})
    with pytest.raises(DivergedError, match=r"the gradient became (inf|nan) in epoch 2, step 4 of 5\. Lower") as caught:
        train(run, feed(run.settings), rising, nothing, amid_epoch=keep)
    assert caught.value.position == Position(1, 3) == positions[-1]
    assert all(torch.equal(before[name], weights) for name, weights in run.model.state_dict().items())
    whole = feed(run.settings)
    assert caught.value.batch is not None
    for kept, expected in zip(caught.value.batch.parts, whole.batch(whole.plan(1), 3).parts, strict=True):
        assert torch.equal(kept.inputs, expected.inputs)
        assert torch.equal(kept.targets, expected.targets)


def test_a_loss_that_is_no_number_stops_the_step_even_where_its_gradient_is_one() -> None:
    run, losses_so_far = begin(settings()), iter(range(1000))
    run.learner.register_forward_hook(lambda *said: said[-1] + (math.inf if next(losses_so_far) == 3 else 0.0))
    with pytest.raises(DivergedError, match=r"became nan in epoch 1, step 4 of 5\.") as caught:
        train(run, feed(run.settings), rising, nothing)
    copied = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - as between processes
    assert (str(copied), copied.position) == (str(caught.value), Position(0, 3))


def test_pieces_count_as_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(Laps, "end", lambda _, name: told.append(name))
    run = begin(settings(accumulate=2))
    steps = Steps(run, run.learner, feed(run.settings))
    steps.take()
    assert told[1:] == ["data", "forward", "backward", "data", "forward", "backward", "backward", "optimizer"]


def test_a_step_is_passed_over_and_counted_where_that_is_asked_for() -> None:
    plain, run = (begin(settings(epochs=2, nonfinite="skip"), dropout=0.0) for _ in range(2))
    spoil(run, {1, 3, 5})
    for one in (plain, run):
        train(one, feed(one.settings), rising, nothing)
    assert [entry["skipped"] for entry in run.progress.history] == [2, 1]
    assert [entry["skipped"] for entry in plain.progress.history] == [0, 0]
    assert all(weights.isfinite().all() for weights in run.model.parameters())
    assert all(math.isfinite(value) for entry in run.progress.history for value in entry.values())


def test_an_epoch_of_which_nothing_is_left_is_one_message() -> None:
    run = begin(settings(nonfinite="skip"))
    spoil(run, set(range(100)))
    with pytest.raises(DivergedError, match=r"no step has a gradient that is a number in epoch 1\."):
        train(run, feed(run.settings), rising, nothing)


def test_a_weight_that_is_no_number_is_one_message() -> None:
    run = begin(settings(learning_rate=2e-3))
    with torch.no_grad():
        next(run.model.parameters()).fill_(float("nan"))
    with pytest.raises(
        ModelError,
        match=r"became nan in epoch 1, step 1 of 5\. Lower training\.learning_rate \(now 0\.002\)",
    ):
        train(run, feed(run.settings), rising, nothing)


def test_a_gradient_that_is_no_number_is_seen_even_in_the_last_step() -> None:
    run = begin(settings(epochs=1, batch_size=100))
    next(run.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(ModelError, match="the norm of the gradient became inf in epoch 1, step 1 of 1"):
        train(run, feed(run.settings), rising, nothing)


def test_a_weight_that_the_last_step_makes_infinite_is_seen_too() -> None:
    run = begin(settings(epochs=1, batch_size=100, optimizer="sgd", learning_rate=1e38, clip=1e30))
    next(run.model.parameters()).register_hook(lambda gradient: gradient * 1e6)
    with pytest.raises(ModelError, match="a weight became infinite or no number in epoch 1"):
        train(run, feed(run.settings), rising, nothing)
