"""Training batches as a pure function of (view, seed, epoch, step), so that any run can be taken up at any step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rayrec.features.histories import Histories
from rayrec.models.base import Recommender
from rayrec.models.optimization import Optimization


@dataclass(frozen=True)
class EpochPlan:
    """Who is seen in an epoch, in which order, and of how much of their history.

    Attributes:
        users: ``[U]`` int64.
        events: ``[U]`` int64; the window of user i ends after this many events. Of a `PairFeed`: the event that is
            learnt, counted over all users.
    """

    users: np.ndarray
    events: np.ndarray


@dataclass(frozen=True)
class Batch:
    """One worker's part of a step.

    Attributes:
        inputs: Of sequences ``[b, L]`` int64 item rows, left-padded with 0; of pairs ``[b]`` int64 user rows.
        targets: Of sequences ``[b, L]`` int64, the item after each position, 0 where there is none; of pairs ``[b]``
            int64 item rows.
        global_targets: Targets of the whole step, over all workers: the divisor of the summed loss.
    """

    inputs: Tensor
    targets: Tensor
    global_targets: int


class Feed(Protocol):
    """What the training loop reads."""

    @property
    def steps(self) -> int:
        """Steps an epoch."""

    def plan(self, epoch: int) -> EpochPlan:
        """What an epoch goes through."""

    def batch(self, plan: EpochPlan, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The part of worker ``rank`` in a step of an epoch."""


def feed_for(model: Recommender, histories: Histories, settings: Optimization) -> Feed:
    """The feed that a model learns from, of the training events of every user."""
    if model.learns_from == "pairs":
        return PairFeed(histories, settings.batch_size, settings.seed)
    return ResidentFeed(histories, model.max_length, settings.batch_size, settings.seed, settings.random_windows)


class ResidentFeed:
    """Batches of next-item prediction from sequences held in memory.

    Each user with at least two training events is in exactly one batch an epoch, on exactly one worker, with a window
    of ``max_length + 1`` events: the latest, or for a share of the users with more events, drawn anew each epoch, one
    that ends at a random event. So what lies further back is learnt from too.

    Args:
        histories: The training events of every user.
        max_length: Longest history of a batch.
        batch_size: Users a step, over all workers together.
        seed: Seed of the order and the windows.
        random_windows: Share of the users with longer histories whose window ends at a random event.
    """

    def __init__(
        self, histories: Histories, max_length: int, batch_size: int, seed: int, random_windows: float = 0.0
    ) -> None:
        self.histories = histories
        self.max_length = max_length
        self.batch_size = batch_size
        self.seed = seed
        self.random_windows = random_windows
        self.users = np.flatnonzero(histories.lengths >= 2)

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return -(-len(self.users) // self.batch_size)

    def plan(self, epoch: int) -> EpochPlan:
        """What an epoch goes through."""
        random = np.random.default_rng([self.seed, epoch])
        users = random.permutation(self.users)
        lengths, window = self.histories.lengths[users], self.max_length + 1
        moved = (lengths > window) & (random.random(len(users)) < self.random_windows)
        ends = random.integers(np.minimum(window, lengths), lengths + 1)
        return EpochPlan(users, np.where(moved, ends, lengths))

    def batch(self, plan: EpochPlan, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The part of worker ``rank`` in a step of an epoch."""
        chosen = slice(step * self.batch_size, (step + 1) * self.batch_size)
        targets_each = np.minimum(plan.events[chosen] - 1, self.max_length)
        mine = slice(rank, None, world_size)
        users, events = plan.users[chosen][mine], plan.events[chosen][mine]
        # A worker without a user still has to take part in the exchange of gradients: one row with no target.
        width = int(targets_each[mine].max()) if len(users) else 1
        rows = self.histories.until(users, events, width + 1) if len(users) else np.zeros((1, 2), np.int64)
        history, targets = rows[:, :-1], np.where(rows[:, :-1] != 0, rows[:, 1:], 0)
        return Batch(
            torch.from_numpy(np.ascontiguousarray(history)),
            torch.from_numpy(np.ascontiguousarray(targets)),
            int(targets_each.sum()),
        )


class PairFeed:
    """Batches of users with an item they had, from events held in memory: every event once an epoch, in random order.

    Args:
        histories: The training events of every user.
        batch_size: Events a step, over all workers together.
        seed: Seed of the order.
    """

    def __init__(self, histories: Histories, batch_size: int, seed: int) -> None:
        self.items = histories.items
        self.users = np.repeat(np.arange(len(histories), dtype=np.int64), histories.lengths)
        self.batch_size = batch_size
        self.seed = seed

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return -(-len(self.items) // self.batch_size)

    def plan(self, epoch: int) -> EpochPlan:
        """What an epoch goes through."""
        events = np.random.default_rng([self.seed, epoch]).permutation(len(self.items))
        return EpochPlan(self.users[events], events)

    def batch(self, plan: EpochPlan, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The part of worker ``rank`` in a step of an epoch; it may be empty."""
        whole = slice(step * self.batch_size, (step + 1) * self.batch_size)
        users, events = plan.users[whole], plan.events[whole]
        mine = slice(rank, None, world_size)
        return Batch(
            torch.from_numpy(np.ascontiguousarray(users[mine])), torch.from_numpy(self.items[events[mine]]), len(users)
        )
