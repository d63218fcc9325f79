"""The training loop: the same seed gives the same model, stopped or not, on one process or two."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rayrec.errors import DataError, ModelError
from rayrec.features.histories import Histories
from rayrec.models.base import Recommender
from rayrec.models.optimization import Optimization
from rayrec.models.sasrec import SASRec, SASRecConfig
from rayrec.training.checkpoint import load_checkpoint, save_checkpoint, snapshot
from rayrec.training.feed import ResidentFeed
from rayrec.training.loop import Metrics, Run, World, start, train
from rayrec.training.optimizer import build_optimizer, learning_rate

ITEMS, MAX_LENGTH = 12, 5
HISTORIES = Histories.of([[(user + step) % ITEMS + 1 for step in range(2 + user % 6)] for user in range(17)])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several, and a busy machine makes it worse."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(**changes: object) -> Optimization:
    return Optimization(**{"epochs": 4, "batch_size": 4, "learning_rate": 1e-2, "seed": 3, **changes})  # type: ignore[arg-type]


def begin(chosen: Optimization, dropout: float = 0.2, world: World | None = None) -> Run:
    torch.manual_seed(chosen.seed)
    config = SASRecConfig(dim=8, blocks=1, heads=2, dropout=dropout, max_length=MAX_LENGTH)
    return start(SASRec(config, ITEMS), chosen, world or World())


def feed(chosen: Optimization) -> ResidentFeed:
    return ResidentFeed(HISTORIES, MAX_LENGTH, chosen.batch_size, chosen.seed)


def rising(_model: Recommender) -> Metrics:
    """A validation metric that is better every time."""
    rising.calls += 1  # type: ignore[attr-defined]
    return {"ndcg@10": float(rising.calls)}  # type: ignore[attr-defined]


rising.calls = 0  # type: ignore[attr-defined]


def following(values: list[float]) -> Callable[[Recommender], Metrics]:
    """A validation metric that takes these values, one an epoch."""
    left = iter(values)
    return lambda _: {"ndcg@10": next(left)}


def nothing(_run: Run) -> None:
    """After an epoch."""


def trained(chosen: Optimization) -> Run:
    run = begin(chosen)
    train(run, feed(chosen), rising, nothing)
    return run


def losses(run: Run) -> list[float]:
    return [entry["loss"] for entry in run.progress.history]


def assert_same(one: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, msg=name)


# ---- repeatable


def test_the_same_seed_gives_the_same_model_bit_for_bit() -> None:
    one, other = trained(settings()), trained(settings())
    assert losses(one) == losses(other)
    assert_same(one.model, other.model)
    assert losses(one) != losses(trained(settings(seed=4)))


@pytest.mark.parametrize("done", [1, 3])
def test_a_run_taken_up_from_its_checkpoint_goes_on_as_if_it_had_not_stopped(done: int, tmp_path: Path) -> None:
    chosen = settings(warmup=0.3, decay="cosine", weight_decay=0.1)
    whole = begin(chosen)

    def keep(run: Run) -> None:
        if run.progress.epoch == done:
            save_checkpoint(run, snapshot(run.model), tmp_path)

    train(whole, feed(chosen), following([1, 2, 3, 4]), keep)
    taken_up = begin(chosen)
    load_checkpoint(taken_up, tmp_path)
    assert taken_up.progress.epoch == done
    train(taken_up, feed(chosen), following([1, 2, 3, 4][done:]), nothing)
    assert losses(taken_up) == losses(whole)
    assert_same(taken_up.model, whole.model)
    mine, theirs = (run.optimizer.state_dict()["state"] for run in (taken_up, whole))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[p][key], theirs[p][key]) for p in theirs for key in theirs[p])


def test_training_that_stops_at_an_epoch_is_where_a_longer_one_was_then() -> None:
    chosen, weights = settings(warmup=0.3, decay="cosine"), []
    whole, short = begin(chosen), begin(chosen)
    train(whole, feed(chosen), rising, lambda run: weights.append(snapshot(run.model)))
    train(short, feed(chosen), lambda _: {}, nothing, epochs=2)
    assert losses(short) == losses(whole)[:2]
    assert all(torch.equal(value, weights[1][name]) for name, value in snapshot(short.model).items())


def test_a_finished_run_taken_up_trains_no_further(tmp_path: Path) -> None:
    run = trained(settings(epochs=2))
    save_checkpoint(run, snapshot(run.model), tmp_path)
    again = begin(settings(epochs=2))
    best = load_checkpoint(again, tmp_path)
    train(again, feed(settings()), following([]), nothing)
    assert_same(again.model, run.model)
    assert all(torch.equal(best[name], tensor) for name, tensor in run.model.state_dict().items())


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    run = trained(settings(epochs=1))
    save_checkpoint(run, snapshot(run.model), tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    for path in files:
        data = path.read_bytes()
        # A safetensors file begins with the length of its JSON header; a pickle with 0x80 and its protocol.
        head = data if path.suffix == ".json" else data[8 : 8 + int.from_bytes(data[:8], "little")]
        json.loads(head)


# ---- what is computed


def test_the_loss_falls() -> None:
    curve = losses(trained(settings(epochs=25)))
    assert curve[-1] < 0.5 * curve[0]
    assert curve[0] == pytest.approx(math.log(ITEMS), rel=0.3)


def test_an_epochs_entry_says_what_happened() -> None:
    run = trained(settings(epochs=1))
    (entry,) = run.progress.history
    assert entry.keys() == {"epoch", "loss", "learning_rate", "seconds", "tokens_per_second", "ndcg@10"}
    assert json.loads(json.dumps(entry)) == entry


def test_training_stops_when_the_metric_no_longer_rises() -> None:
    run = begin(settings(epochs=9, patience=2))
    best: list[int] = []
    values = [0.1, 0.3, 0.3, 0.2, 0.9]
    train(run, feed(run.settings), following(values), lambda run: best.append(run.progress.best_epoch))
    assert best == [1, 2, 2, 2]
    assert (run.progress.epoch, run.progress.best) == (4, 0.3)


def test_a_loss_that_is_no_number_is_one_message() -> None:
    run = begin(settings(learning_rate=2e-3))
    with torch.no_grad():
        next(run.model.parameters()).fill_(float("nan"))
    with pytest.raises(
        ModelError, match=r"the loss became nan in epoch 1\. Lower training\.learning_rate \(now 0\.002\)"
    ):
        train(run, feed(run.settings), rising, nothing)


def test_a_gradient_that_is_no_number_is_seen_even_in_the_last_step() -> None:
    run = begin(settings(epochs=1, batch_size=100))
    next(run.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(ModelError, match="the loss became nan in epoch 1"):
        train(run, feed(run.settings), rising, nothing)


def test_nothing_to_learn_from_is_one_message() -> None:
    run = begin(settings())
    with pytest.raises(DataError, match="no user has two training events"):
        train(run, ResidentFeed(Histories.of([[1], [2]]), MAX_LENGTH, 4, 0), rising, nothing)


def test_padding_and_unused_rows_stay_where_they_were() -> None:
    chosen = settings(weight_decay=0.5)
    run = begin(chosen)
    before = snapshot(run.model)["item.weight"]
    train(run, feed(chosen), rising, nothing)
    after = snapshot(run.model)["item.weight"]
    assert not after[0].any()
    assert (after[1:] != before[1:]).any()


def test_vectors_and_tables_are_not_decayed() -> None:
    run = begin(settings(weight_decay=0.5))
    decayed, others = build_optimizer(run.model, run.settings).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.5, 0.0)
    assert all(p.ndim > 1 and p is not run.model.item.weight for p in decayed["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(run.model.parameters()))


# ---- the learning rate


def test_without_schedule_the_learning_rate_is_constant() -> None:
    assert {learning_rate(step, 10, settings()) for step in range(10)} == {1e-2}


def test_the_learning_rate_rises_then_falls_to_a_tenth() -> None:
    chosen = settings(warmup=0.25, decay="cosine", learning_rate=1.0)
    rates = [learning_rate(step, 100, chosen) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 25)
    assert rates[24] == rates[25] == 1.0
    assert rates[:25] == sorted(rates[:25])
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[100] == pytest.approx(0.1)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_schedule_of_few_steps_is_finite(steps: int) -> None:
    for warmup in (0.0, 0.5, 1.0):
        rates = [learning_rate(step, steps, settings(warmup=warmup, decay="cosine")) for step in range(steps)]
        assert all(0 < rate <= 1e-2 for rate in rates)


# ---- two processes


def _one_of_two(rank: int, folder: str) -> None:
    """A worker: what Ray Train would start, without Ray."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    chosen = settings(epochs=3)
    run = begin(chosen, dropout=0.0, world=World(rank, 2))
    train(run, feed(chosen), following([1, 2, 3]), nothing)
    if rank == 0:
        Path(folder, "losses.json").write_text(json.dumps(losses(run)))
        save_checkpoint(run, snapshot(run.model), Path(folder, "checkpoint"))
    torch.distributed.destroy_process_group()


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    chosen = settings(epochs=3)
    alone = begin(chosen, dropout=0.0)
    train(alone, feed(chosen), following([1, 2, 3]), nothing)
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path),), nprocs=2)
    assert json.loads((tmp_path / "losses.json").read_text()) == pytest.approx(losses(alone), rel=1e-4)
    together = begin(chosen, dropout=0.0)
    load_checkpoint(together, tmp_path / "checkpoint")
    # Scores, not weights: attention's key bias has no effect and no gradient but rounding, which Adam scales up.
    history = torch.from_numpy(HISTORIES.last(np.arange(len(HISTORIES)), MAX_LENGTH))
    with torch.inference_mode():
        expected, found = (run.model.eval().score(history)[:, 1:] for run in (alone, together))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
