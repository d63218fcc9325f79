"""Trainings that take a moment: users who go round twelve items."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from rayrec.features.histories import Histories
from rayrec.models.base import Recommender
from rayrec.models.interactions import Interactions
from rayrec.models.optimization import Optimization
from rayrec.models.sasrec import SASRec, SASRecConfig
from rayrec.training.feed import SequenceFeed
from rayrec.training.loop import train
from rayrec.training.progress import Metrics
from rayrec.training.run import Run, start
from rayrec.training.world import World

ITEMS, MAX_LENGTH = 12, 5
HISTORIES = Histories.of([[(user + step) % ITEMS + 1 for step in range(2 + user % 6)] for user in range(17)])


def settings(**changes: object) -> Optimization:
    return Optimization(
        **{"epochs": 4, "batch_size": 4, "learning_rate": 1e-2, "random_windows": 0.0, "seed": 3, **changes}
    )  # type: ignore[arg-type]


def begin(
    chosen: Optimization,
    dropout: float = 0.2,
    world: World | None = None,
    warm: Callable[[Recommender], None] | None = None,
) -> Run:
    torch.manual_seed(chosen.seed)
    config = SASRecConfig(dim=8, blocks=1, heads=2, dropout=dropout, max_length=MAX_LENGTH)
    return start(SASRec(config, ITEMS), Interactions(HISTORIES, ITEMS), chosen, world or World(), warm)


def feed(chosen: Optimization) -> SequenceFeed:
    return SequenceFeed(HISTORIES, MAX_LENGTH, chosen, overhead=0)


def rising(_model: Recommender) -> Metrics:
    """A validation metric that is better every time."""
    rising.calls += 1  # type: ignore[attr-defined]
    return {"ndcg@10": float(rising.calls)}  # type: ignore[attr-defined]


rising.calls = 0  # type: ignore[attr-defined]


def following(values: Sequence[float]) -> Callable[[Recommender], Metrics]:
    """A validation metric that takes these values, one an epoch."""
    left = iter(values)
    return lambda _: {"ndcg@10": next(left)}


def nothing(_run: Run) -> None:
    """After an epoch, or amid one."""


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
