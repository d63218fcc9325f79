"""A training run: the model and all that goes with it from step to step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rayrec.models.base import Recommender
from rayrec.models.interactions import Interactions
from rayrec.models.optimization import Optimization
from rayrec.training.averaging import Average
from rayrec.training.learner import Learner, learner
from rayrec.training.optimizer import Optimizers, build_optimizer
from rayrec.training.progress import Progress
from rayrec.training.world import World


def _nothing() -> None:
    """After a step."""


@dataclass(frozen=True)
class Run:
    """Everything a training run holds; `train` shows it to who writes checkpoints and reports.

    Attributes:
        scaler: Scales the loss, where gradients are of fp16; else it does nothing.
        after_step: Called after each step.
    """

    model: Recommender
    learner: Learner
    optimizer: Optimizers
    settings: Optimization
    world: World
    progress: Progress
    scaler: torch.amp.GradScaler
    average: Average | None = None
    after_step: Callable[[], None] = _nothing

    @property
    def judged(self) -> Recommender:
        """What is validated, kept and published: the model of the averaged weights, if they are kept, else `model`."""
        return self.average.model if self.average else self.model


def start(
    model: Recommender,
    interactions: Interactions,
    settings: Optimization,
    world: World,
    warm: Callable[[Recommender], None] | None = None,
) -> Run:
    """A run that has not begun: the model has seen the training events and is on its device, the optimizer is fresh.

    Args:
        model: The model.
        interactions: The training events.
        settings: Settings of the training.
        world: This worker among all.
        warm: Gives the model, once it has seen the events, first weights other than random ones.
    """
    model.observe(interactions)
    if warm:
        warm(model)
    learning = learner(model, settings.objective, interactions.counts).to(world.device)
    if settings.table_optimizer == "row-wise-adagrad":
        learning.keep_sparse()
    average = Average(model, settings.averaging) if settings.averaging else None
    scaler = torch.amp.GradScaler(world.device.type, enabled=settings.precision == "fp16")
    return Run(model, learning, build_optimizer(model, settings), settings, world, Progress(), scaler, average)
