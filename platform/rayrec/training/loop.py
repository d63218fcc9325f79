"""The training loop: plain torch, one process or many (whoever starts it sets up torch.distributed).

The loss of a step is the sum over all workers' targets divided by their global number, so the number of workers does
not change what is computed. Randomness is seeded afresh at each step from (seed, epoch, step, worker): a run taken up
at any step goes on exactly as if it had not stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rayrec.errors import DataError, ModelError
from rayrec.models.base import Recommender
from rayrec.models.interactions import Interactions
from rayrec.models.optimization import Optimization
from rayrec.training.averaging import Average
from rayrec.training.feed import Batch, Feed
from rayrec.training.learner import Learner, learner
from rayrec.training.optimizer import Optimizers, build_optimizer, learning_rate

Metrics = dict[str, float]


@dataclass(frozen=True, order=True)
class Position:
    """How far a run has come: epochs, and steps of the epoch that is under way."""

    epoch: int = 0
    step: int = 0

    def __str__(self) -> str:
        return f"epoch {self.epoch}" + (f" and {self.step} steps" if self.step else "")


@dataclass
class Progress:
    """Where a run stands. It goes into checkpoints as JSON.

    Attributes:
        epoch: Epochs done.
        step: Steps done of the epoch that is under way.
        loss: Of these steps: the summed loss of all workers,
        tokens: targets,
        seconds: and time.
        best_epoch: The epoch (counted from 1) with the best validation metric so far; 0 before the first.
        best: That metric's value.
        history: One entry an epoch: ``epoch``, ``loss``, ``learning_rate``, ``seconds``, ``tokens_per_second`` and the
            validation metrics.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    best_epoch: int = 0
    best: float = -math.inf
    history: list[Metrics] = field(default_factory=list)

    @property
    def position(self) -> Position:
        """How far the run has come."""
        return Position(self.epoch, self.step)


@dataclass(frozen=True)
class World:
    """This worker among all: its rank, their number, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def part_overhead(self) -> int:
        """What a further part of a batch costs on this device, in tokens (see `rayrec.training.feed.like_lengths`)."""
        return 16_384 if self.device.type == "cuda" else 256

    def sum(self, values: list[float]) -> list[float]:
        """``values`` summed over the workers."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return cast("list[float]", tensor.tolist())


@dataclass(frozen=True)
class Run:
    """Everything a training run holds; `train` shows it to who writes checkpoints and reports."""

    model: Recommender
    learner: Learner
    optimizer: Optimizers
    settings: Optimization
    world: World
    progress: Progress
    average: Average | None = None

    @property
    def judged(self) -> Recommender:
        """What is validated, kept and published: the model of the averaged weights, if they are kept, else `model`."""
        return self.average.model if self.average else self.model


def start(model: Recommender, interactions: Interactions, settings: Optimization, world: World) -> Run:
    """A run that has not begun: the model has seen the training events and is on its device, the optimizer is fresh."""
    model.observe(interactions)
    learning = learner(model, settings.objective, interactions.counts).to(world.device)
    average = Average(model, settings.averaging) if settings.averaging else None
    return Run(model, learning, build_optimizer(model, settings), settings, world, Progress(), average)


def train(
    run: Run,
    feed: Feed,
    validate: Callable[[Recommender], Metrics],
    after_epoch: Callable[[Run], None],
    epochs: int | None = None,
    amid_epoch: Callable[[Run], None] | None = None,
) -> Progress:
    """Train until the epochs are done or the validation metric no longer rises.

    Args:
        run: A fresh run, or one restored from a checkpoint.
        feed: The training batches.
        validate: Metrics of a model, `Run.judged`, on the validation events, equal on every worker.
        after_epoch: Called on every worker after each epoch; ``best_epoch == epoch`` in its progress marks a new best.
        epochs: Stop after so many, on the schedule of all that the settings say: the path of a longer training, up to
            there. By default all.
        amid_epoch: Called on every worker after each ``checkpoint_steps`` steps of an epoch but its last.

    Raises:
        DataError: There is nothing to train on.
        ModelError: The loss is no longer a number.
    """
    if not feed.steps:
        raise DataError(
            "training: no user has two training events or more, so there is no next item to learn. "
            "Leave-one-out sets two events of each user aside: it takes users with four or more."
        )
    settings, progress = run.settings, run.progress
    last = settings.epochs if epochs is None else epochs
    # Buffers are what every worker was shown alike: they need not travel with each step.
    distributed = run.world.size > 1
    wrapped = DistributedDataParallel(run.learner, broadcast_buffers=False) if distributed else run.learner
    while progress.epoch < last and progress.epoch - progress.best_epoch < settings.patience:
        rate = _epoch(run, wrapped, feed, amid_epoch)
        metrics = validate(run.judged.eval())
        progress.epoch += 1
        # Without anything to validate on, the latest is the best.
        if settings.metric not in metrics:
            progress.best_epoch = progress.epoch
        elif metrics[settings.metric] > progress.best:
            progress.best, progress.best_epoch = metrics[settings.metric], progress.epoch
        loss, tokens, seconds = progress.loss / max(1, progress.tokens), progress.tokens, progress.seconds
        entry = {"epoch": progress.epoch, "loss": loss, "learning_rate": rate, "seconds": seconds}
        progress.history.append(entry | {"tokens_per_second": tokens / seconds} | metrics)
        progress.step, progress.loss, progress.tokens, progress.seconds = 0, 0.0, 0, 0.0
        after_epoch(run)
    return progress


def _epoch(run: Run, wrapped: nn.Module, feed: Feed, amid_epoch: Callable[[Run], None] | None) -> float:
    """What is left of one pass over the users. Returns the last learning rate."""
    run.model.train()
    progress, every = run.progress, run.settings.checkpoint_steps
    epoch, total_steps = progress.epoch, feed.steps * run.settings.epochs
    plan, rate, began = feed.plan(epoch), 0.0, time.perf_counter() - progress.seconds
    # Summed on the device: reading each step's loss would make the GPU wait for Python.
    loss_sum = torch.zeros((), dtype=torch.float64, device=run.world.device)
    loss_sum += progress.loss if run.world.rank == 0 else 0.0
    for step in range(progress.step, feed.steps):
        rate = learning_rate(epoch * feed.steps + step, total_steps, run.settings)
        _seed(run.settings.seed, epoch, step, run.world.rank)
        batch = feed.batch(plan, step, run.world.rank, run.world.size)
        loss_sum += _step(run, wrapped, batch, rate)
        progress.step, progress.tokens = step + 1, progress.tokens + batch.global_targets
        if run.average:
            run.average.update(epoch * feed.steps + step)
        if amid_epoch and every and progress.step % every == 0 and progress.step < feed.steps:
            _sum_up(run, loss_sum, began)
            amid_epoch(run)
    _sum_up(run, loss_sum, began)
    return rate


def _sum_up(run: Run, loss_sum: Tensor, began: float) -> None:
    """Bring the progress up to date with all workers' loss.

    Raises:
        ModelError: The loss is no longer a number.
    """
    (total,) = run.world.sum([float(loss_sum)])
    if not math.isfinite(total):
        raise _diverged(run, f"the loss became {total}")
    # What the last step made of the weights no loss has seen.
    if not all(bool(weights.isfinite().all()) for weights in run.model.parameters()):
        raise _diverged(run, "a weight became infinite or no number")
    run.progress.loss, run.progress.seconds = total, time.perf_counter() - began


def _diverged(run: Run, what: str) -> ModelError:
    settings = run.settings
    return ModelError(
        f"training: {what} in epoch {run.progress.epoch + 1}. "
        f"Lower training.learning_rate (now {settings.learning_rate:g}) or training.clip and run again."
    )


def _step(run: Run, wrapped: nn.Module, batch: Batch, rate: float) -> Tensor:
    """Forward, backward, update. Returns this worker's summed loss, detached."""
    device = run.world.device
    with autocast(device, run.settings):
        loss: Tensor = wrapped([part.to(device) for part in batch.parts])
    # DistributedDataParallel averages gradients; times the number of workers, that is their sum.
    (loss * (run.world.size / max(1, batch.global_targets))).backward()
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), run.settings.clip)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    # A gradient that is no number leaves weights that are none; after the last step no loss would show it.
    return torch.where(norm.isfinite(), loss.detach(), torch.nan).double()


def autocast(device: torch.device, settings: Optimization) -> Any:
    """bf16 on a GPU, unless the settings say fp32; fp32 on a CPU, unless they say bf16."""
    wanted = settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()


def _seed(*parts: int) -> None:
    """Seed torch's generators from several numbers."""
    torch.manual_seed(int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> 1))
