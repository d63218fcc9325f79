"""The training loop: the same seed gives the same model, stopped or not, on one process or two."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tests.running import (
    HISTORIES,
    ITEMS,
    MAX_LENGTH,
    assert_same,
    begin,
    feed,
    following,
    losses,
    nothing,
    rising,
    settings,
    trained,
)
from torch import nn

from rayrec.errors import DataError
from rayrec.features.histories import Histories
from rayrec.models.base import Recommender
from rayrec.models.interactions import Interactions
from rayrec.models.registry import model_class
from rayrec.training.averaging import Average
from rayrec.training.checkpoint import Checkpoint, load_checkpoint, snapshot
from rayrec.training.feed import SequenceFeed, feed_for
from rayrec.training.loop import train
from rayrec.training.optimizer import build_optimizer, learning_rate
from rayrec.training.progress import MEASURED, Metrics, Position
from rayrec.training.run import Run, start
from rayrec.training.world import World

# ---- repeatable


def test_the_same_seed_gives_the_same_model_bit_for_bit() -> None:
    one, other = trained(settings()), trained(settings())
    assert losses(one) == losses(other)
    assert_same(one.model, other.model)
    assert losses(one) != losses(trained(settings(seed=4)))


@pytest.mark.parametrize(
    ("done", "changes"),
    [
        (1, {}),
        (3, {"table_optimizer": "row-wise-adagrad", "table_learning_rate": 0.1}),
        (3, {"averaging": 0.9}),
        (1, {"optimizer": "adam", "table_weight_decay": 0.1}),
        (1, {"optimizer": "adagrad", "decay": "inverse-sqrt"}),
        (1, {"optimizer": "sgd", "decay": "linear"}),
        (1, {"optimizer": "sgd", "momentum": 0.0}),
    ],
)
def test_a_run_taken_up_from_its_checkpoint_goes_on_as_if_it_had_not_stopped(
    done: int, changes: dict[str, object], tmp_path: Path
) -> None:
    chosen = settings(**{"warmup": 0.3, "decay": "cosine", "weight_decay": 0.1, **changes})
    whole = begin(chosen)

    def keep(run: Run) -> None:
        if run.progress.epoch == done:
            Checkpoint.of(run, snapshot(run.model)).write(tmp_path)

    train(whole, feed(chosen), following([1, 2, 3, 4]), keep)
    taken_up = begin(chosen)
    load_checkpoint(taken_up, tmp_path)
    assert taken_up.progress.epoch == done
    train(taken_up, feed(chosen), following([1, 2, 3, 4][done:]), nothing)
    assert losses(taken_up) == losses(whole)
    assert_same(taken_up.model, whole.model)
    assert_same(taken_up.judged, whole.judged)
    mine, theirs = (run.optimizer.state_dict() for run in (taken_up, whole))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("changes", [{}, {"averaging": 0.9, "table_optimizer": "row-wise-adagrad"}])
def test_a_run_taken_up_amid_an_epoch_repeats_no_step(changes: dict[str, object], tmp_path: Path) -> None:
    chosen = settings(warmup=0.3, decay="cosine", epochs=2, checkpoint_steps=2, **changes)
    whole, positions = begin(chosen), []

    def keep(run: Run) -> None:
        positions.append(run.progress.position)
        Checkpoint.of(run, snapshot(run.model)).write(tmp_path / str(run.progress.position))

    train(whole, feed(chosen), following([1, 2]), nothing, amid_epoch=keep)
    # Of the five steps of an epoch the last one is followed by its end, which has a checkpoint of its own.
    assert positions == [Position(0, 2), Position(0, 4), Position(1, 2), Position(1, 4)]
    for position in positions:
        taken_up = begin(chosen)
        load_checkpoint(taken_up, tmp_path / str(position))
        assert taken_up.progress.position == position
        train(taken_up, feed(chosen), following([1, 2][position.epoch :]), nothing)
        assert losses(taken_up) == losses(whole)
        assert_same(taken_up.model, whole.model)
        assert_same(taken_up.judged, whole.judged)


def test_training_that_stops_at_an_epoch_is_where_a_longer_one_was_then() -> None:
    chosen, weights = settings(warmup=0.3, decay="cosine"), []
    whole, short = begin(chosen), begin(chosen)
    train(whole, feed(chosen), rising, lambda run: weights.append(snapshot(run.model)))
    train(short, feed(chosen), lambda _: {}, nothing, epochs=2)
    assert losses(short) == losses(whole)[:2]
    assert all(torch.equal(value, weights[1][name]) for name, value in snapshot(short.model).items())


def test_a_finished_run_taken_up_trains_no_further(tmp_path: Path) -> None:
    run = trained(settings(epochs=2))
    Checkpoint.of(run, snapshot(run.model)).write(tmp_path)
    again = begin(settings(epochs=2))
    best = load_checkpoint(again, tmp_path)
    train(again, feed(settings()), following([]), nothing)
    assert_same(again.model, run.model)
    assert all(torch.equal(best[name], tensor) for name, tensor in run.model.state_dict().items())


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    run = trained(settings(epochs=1))
    Checkpoint.of(run, snapshot(run.model)).write(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    for path in files:
        data = path.read_bytes()
        # A safetensors file begins with the length of its JSON header; a pickle with 0x80 and its protocol.
        head = data if path.suffix == ".json" else data[8 : 8 + int.from_bytes(data[:8], "little")]
        json.loads(head)


# ---- what is computed


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adam"},
        {"optimizer": "adagrad", "learning_rate": 0.1},
        {"optimizer": "sgd", "learning_rate": 0.3},
        {"table_optimizer": "row-wise-adagrad", "table_learning_rate": 0.1},
    ],
)
def test_the_loss_falls(changes: dict[str, object]) -> None:
    curve = losses(trained(settings(epochs=25, **changes)))
    assert curve[-1] < 0.5 * curve[0]
    assert curve[0] == pytest.approx(math.log(ITEMS), rel=0.3)


def test_an_epochs_entry_says_what_happened() -> None:
    run = trained(settings(epochs=1))
    (entry,) = run.progress.history
    assert entry.keys() == MEASURED | {"epoch", "loss", "learning_rate", "gradient_norm", "ndcg@10"}
    spent = sum(entry[name] for name in ("data", "forward", "backward", "optimizer"))
    assert 0 < spent <= entry["seconds"]
    assert entry["gradient_norm"] > 0
    assert entry["peak_memory_mb"] > 10
    assert json.loads(json.dumps(entry)) == entry


def test_training_stops_when_the_metric_no_longer_rises() -> None:
    run = begin(settings(epochs=9, patience=2))
    best: list[int] = []
    values = [0.1, 0.3, 0.3, 0.2, 0.9]
    train(run, feed(run.settings), following(values), lambda run: best.append(run.progress.best_epoch))
    assert best == [1, 2, 2, 2]
    assert (run.progress.epoch, run.progress.best) == (4, 0.3)


def test_nothing_to_learn_from_is_one_message() -> None:
    run = begin(settings())
    with pytest.raises(DataError, match="no user has two training events"):
        train(run, SequenceFeed(Histories.of([[1], [2]]), MAX_LENGTH, run.settings, 0), rising, nothing)


def test_padding_and_unused_rows_stay_where_they_were() -> None:
    chosen = settings(weight_decay=0.5)
    run = begin(chosen)
    before = snapshot(run.model)["item.weight"]
    train(run, feed(chosen), rising, nothing)
    after = snapshot(run.model)["item.weight"]
    assert not after[0].any()
    assert (after[1:] != before[1:]).any()


@pytest.mark.parametrize("table_optimizer", ["same", "row-wise-adagrad"])
def test_matrices_and_tables_are_decayed_each_by_its_own_setting_and_vectors_are_not(table_optimizer: str) -> None:
    chosen = settings(weight_decay=0.5, table_weight_decay=0.1, table_optimizer=table_optimizer)
    run = begin(chosen)
    matrices, vectors, tables = build_optimizer(run.model, chosen).param_groups
    assert [group["weight_decay"] for group in (matrices, vectors, tables)] == [0.5, 0.0, 0.1]
    assert all(p.ndim == 2 for p in matrices["params"])
    assert all(p.ndim == 1 for p in vectors["params"])
    assert tables["params"] == list(run.model.item.parameters())
    assert sum(len(group["params"]) for group in (matrices, vectors, tables)) == len(list(run.model.parameters()))


def test_tables_learn_at_their_own_rate() -> None:
    run = begin(settings(epochs=1, table_learning_rate=3e-2, warmup=0.5, decay="cosine"))
    train(run, feed(run.settings), rising, nothing)
    rate = run.progress.history[0]["learning_rate"]
    assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([rate, rate, 3 * rate])


@pytest.mark.parametrize("name", ["item2vec", "bpr", "lightgcn"])
def test_row_wise_adagrad_trains_the_tables_of_every_model(name: str) -> None:
    """And those of models that have nothing else."""
    found = model_class(name)
    chosen = settings(epochs=10, table_optimizer="row-wise-adagrad", learning_rate=0.1)
    torch.manual_seed(0)
    model = found(found.Config(dim=4), ITEMS)
    run = start(model, Interactions(HISTORIES, ITEMS), chosen, World())
    train(run, feed_for(model, Interactions(HISTORIES, ITEMS), chosen, overhead=0), rising, nothing)
    assert losses(run)[-1] < losses(run)[0]


# ---- averaged weights


def test_the_average_follows_the_weights_closely_at_first_then_by_its_decay() -> None:
    model = begin(settings()).model
    average, by_hand = Average(model, 0.5), snapshot(model)["position"]
    for step, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5]):
        with torch.no_grad():
            model.position.add_(torch.randn_like(model.position))
        average.update(step)
        by_hand = decay * by_hand + (1 - decay) * model.position.detach()
        torch.testing.assert_close(average.model.position, by_hand)


def test_the_averaged_weights_are_validated_and_kept_while_training_goes_on_from_the_others() -> None:
    plain, run = begin(settings()), begin(settings(averaging=0.9))
    validated: list[nn.Module] = []

    def validate(model: Recommender) -> Metrics:
        assert not model.training
        validated.append(model)
        return rising(model)

    train(plain, feed(plain.settings), rising, nothing)
    train(run, feed(run.settings), validate, nothing)
    assert run.average is not None
    assert all(model is run.judged is run.average.model for model in validated)
    assert_same(run.model, plain.model)
    assert (run.judged.item.weight != run.model.item.weight).any()


def test_what_is_not_learnt_is_not_averaged() -> None:
    model = model_class("lightgcn")(model_class("lightgcn").Config(dim=4), ITEMS)
    run = start(model, Interactions(HISTORIES, ITEMS), settings(averaging=0.9, learning_rate=0.1), World())
    train(run, feed_for(model, Interactions(HISTORIES, ITEMS), run.settings, overhead=0), rising, nothing)
    assert run.judged.get_buffer("prior") is model.prior
    history = torch.tensor([[1, 2]])
    before = run.judged.score(history)
    # What answers are made of is computed from the averaged vectors, as it is when they are published.
    model.load_state_dict(snapshot(run.judged))
    torch.testing.assert_close(model.eval().score(history), before)


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


def test_the_learning_rate_falls_along_a_line_to_nothing() -> None:
    chosen = settings(warmup=0.2, decay="linear", learning_rate=1.0)
    rates = [learning_rate(step, 10, chosen) for step in range(11)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, *(n / 8 for n in range(7, -1, -1))])


def test_the_learning_rate_halves_when_four_times_the_warmup_is_done() -> None:
    chosen = settings(warmup=0.1, decay="inverse-sqrt", learning_rate=1.0)
    rates = [learning_rate(step, 100, chosen) for step in range(100)]
    assert (rates[9], rates[39], rates[89]) == pytest.approx((1.0, 1 / 2, 1 / 3))
    # The end is not in it, so that a longer run begins in the same way.
    assert rates == [learning_rate(step, 200, settings(**{**vars(chosen), "warmup": 0.05})) for step in range(100)]


@pytest.mark.parametrize("decay", ["cosine", "linear", "inverse-sqrt"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_schedule_of_few_steps_is_finite(steps: int, decay: str) -> None:
    for warmup in (0.01, 0.5, 1.0):
        rates = [learning_rate(step, steps, settings(warmup=warmup, decay=decay)) for step in range(steps)]
        assert all(0 < rate <= 1e-2 for rate in rates)
