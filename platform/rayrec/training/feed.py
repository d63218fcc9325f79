"""Training batches as a pure function of (view, seed, epoch, step), so that any run can be taken up at any step."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rayrec.features.histories import Histories
from rayrec.models.base import Recommender
from rayrec.models.interactions import Interactions, SparseRows
from rayrec.models.optimization import Optimization


@dataclass(frozen=True)
class EpochPlan:
    """Who is seen in an epoch, in which order, and of how much of their history.

    Attributes:
        users: ``[U]`` int64.
        events: ``[U]`` int64; the window of user i ends after this many events. Of a `PairFeed`: the event that is
            learnt, counted over all users.
        bounds: ``[steps + 1]`` int64; step s takes what is planned from ``bounds[s]`` to ``bounds[s + 1]``.
    """

    users: np.ndarray
    events: np.ndarray
    bounds: np.ndarray

    def of(self, step: int) -> slice:
        """What a step takes."""
        return slice(int(self.bounds[step]), int(self.bounds[step + 1]))


@dataclass(frozen=True)
class Part:
    """Users with histories of like length, or pairs.

    Attributes:
        inputs: Of sequences ``[b, L]`` int64 item rows, oldest first, padded with 0 at the end; of pairs ``[b]`` int64
            user rows.
        targets: Of sequences ``[b, L]`` int64, the item after each position, 0 where there is none; of pairs ``[b]``
            int64 item rows.
        times: Of sequences ``[b, L + 1]`` int64 seconds, of each event and the one after it; None where the log has no
            times, and for pairs.
        user: ``[b, F]`` float32, features of each user; None where there are none, or the model reads none.
        context: ``[b, L, C]`` float32, features of the context of each target; None likewise.
    """

    inputs: Tensor
    targets: Tensor
    times: Tensor | None = None
    user: Tensor | None = None
    context: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What there is, by name."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in held.items() if value is not None}

    def to(self, device: torch.device) -> Part:
        """The same on a device."""
        return Part(**{name: value.to(device, non_blocking=True) for name, value in self.tensors().items()})

    def pinned(self) -> Part:
        """The same in memory that a GPU copies from by itself."""
        return Part(**{name: value.pin_memory() for name, value in self.tensors().items()})


@dataclass(frozen=True)
class Batch:
    """One worker's part of a step.

    Attributes:
        parts: At least one, so that a worker without a user still takes part in the exchange of gradients.
        global_targets: Targets of the whole step, over all workers: the divisor of the summed loss.
    """

    parts: tuple[Part, ...]
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


def feed_for(model: Recommender, interactions: Interactions, settings: Optimization, overhead: int) -> Feed:
    """The feed that a model learns from, of the training events of every user; ``overhead`` as in `like_lengths`."""
    histories = interactions.histories
    if model.learns_from == "pairs":
        return PairFeed(histories, settings.batch_size, settings.seed)
    users = interactions.user_features if "user" in model.features else None
    context = interactions.context_features if "context" in model.features else None
    return SequenceFeed(histories, model.max_length, settings, overhead, users, context)


class SequenceFeed:
    """Batches of next-item prediction from sequences held in memory or on disk.

    Each user with at least two training events is in exactly one batch an epoch, on exactly one worker, with a window
    of ``max_length + 1`` events: the latest, or for a share of the users with more events, drawn anew each epoch, one
    that ends at a random event. So what lies further back is learnt from too.

    A batch holds users drawn at random, so many of them (``batch_size``) or as many as have so many targets together
    (``batch_tokens``). What a worker gets of it is cut into parts of like length, so that hardly any padding is
    computed, whoever is drawn together.

    Args:
        histories: The training events of every user.
        max_length: Longest history of a batch.
        settings: ``batch_size``, ``batch_tokens``, ``random_windows`` and ``seed`` are read.
        overhead: As in `like_lengths`.
        user_features: A row for each user, or None.
        context_features: A row for each event, or None.
    """

    def __init__(
        self,
        histories: Histories,
        max_length: int,
        settings: Optimization,
        overhead: int,
        user_features: SparseRows | None = None,
        context_features: SparseRows | None = None,
    ) -> None:
        self.histories = histories
        self.max_length = max_length
        self.settings = settings
        self.overhead = overhead
        self.user_features = user_features
        self.context_features = context_features
        self.users = np.flatnonzero(histories.lengths >= 2)
        self._targets = np.minimum(histories.lengths - 1, max_length)  # [U], the same whatever the window

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        tokens = self.settings.batch_tokens
        if tokens is None:
            return -(-len(self.users) // self.settings.batch_size)
        return -(-int(self._targets[self.users].sum()) // max(tokens, self.max_length))

    def plan(self, epoch: int) -> EpochPlan:
        """What an epoch goes through."""
        random = np.random.default_rng([self.settings.seed, epoch])
        users = random.permutation(self.users)
        lengths, window = self.histories.lengths[users], self.max_length + 1
        moved = (lengths > window) & (random.random(len(users)) < self.settings.random_windows)
        ends = random.integers(np.minimum(window, lengths), lengths + 1)
        return EpochPlan(users, np.where(moved, ends, lengths), self._bounds(users))

    def _bounds(self, users: np.ndarray) -> np.ndarray:
        """``[steps + 1]`` int64: a user is in the step in which their last target falls."""
        tokens = self.settings.batch_tokens
        if tokens is None:
            return np.minimum(np.arange(self.steps + 1) * self.settings.batch_size, len(users))
        until = np.cumsum(self._targets[users])
        return np.searchsorted(until, np.arange(self.steps + 1) * max(tokens, self.max_length), side="right")

    def batch(self, plan: EpochPlan, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The part of worker ``rank`` in a step of an epoch."""
        users, events = plan.users[plan.of(step)], plan.events[plan.of(step)]
        lengths = self._targets[users]
        order = np.argsort(-lengths, kind="stable")[rank::world_size]
        parts = [self._part(users[o], events[o], lengths[o]) for o in like_lengths(lengths, order, self.overhead)]
        return Batch(tuple(parts) or (self._nobody(),), int(lengths.sum()))

    def _part(self, users: np.ndarray, events: np.ndarray, targets: np.ndarray) -> Part:
        """The windows of some users."""
        histories, width = self.histories, int(targets.max())
        steps = np.arange(width + 1)
        inside = steps <= targets[:, None]
        places = np.where(inside, (histories.offsets[users] + events - targets - 1)[:, None] + steps, 0)
        rows = torch.from_numpy(np.where(inside, histories.items[places], 0))
        times = None
        if histories.times is not None:
            times = torch.from_numpy(np.where(inside, histories.times[places], 0))
        user, context = self.user_features, self.context_features
        return Part(
            # A user's last event has nothing after it to predict: as input it would be computed for nothing.
            torch.where(rows[:, 1:] != 0, rows[:, :-1], 0),
            rows[:, 1:].contiguous(),
            times,
            None if user is None else torch.from_numpy(user.dense(users)),
            None if context is None else _written(context, places[:, 1:]),
        )

    def _nobody(self) -> Part:
        """A history without a target, with all that others have: each weight must take part, or workers wait."""
        nothing = torch.zeros(1, 1, dtype=torch.int64)
        user, context = self.user_features, self.context_features
        return Part(
            nothing,
            nothing,
            None if self.histories.times is None else torch.zeros(1, 2, dtype=torch.int64),
            None if user is None else torch.zeros(1, user.width),
            None if context is None else torch.zeros(1, 1, context.width),
        )


def like_lengths(lengths: np.ndarray, order: np.ndarray, overhead: int) -> list[np.ndarray]:
    """Users in parts within which little is padded.

    A part is cut in two where that saves the most padding, as long as it saves more than a further part costs.

    Args:
        lengths: ``[U]`` int64.
        order: ``[n]`` int64, places in ``lengths``, the longest first.
        overhead: What a further part costs, in tokens: next to nothing on a CPU, many on a GPU, which is idle until it
            has got enough to do.

    Returns:
        ``order``, in pieces.
    """
    if not len(order):
        return []
    sorted_lengths = lengths[order]
    saved = (len(order) - np.arange(len(order))) * (sorted_lengths[0] - sorted_lengths)
    cut = int(saved.argmax())
    if saved[cut] <= overhead:
        return [order]
    return like_lengths(lengths, order[:cut], overhead) + like_lengths(lengths, order[cut:], overhead)


def _written(features: SparseRows, places: np.ndarray) -> Tensor:
    """Features of the rows at ``[b, L]`` places: ``[b, L, features.width]`` float32."""
    return torch.from_numpy(features.dense(places.ravel()).reshape(*places.shape, features.width))


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
        bounds = np.minimum(np.arange(self.steps + 1) * self.batch_size, len(events))
        return EpochPlan(self.users[events], events, bounds)

    def batch(self, plan: EpochPlan, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The part of worker ``rank`` in a step of an epoch; it may be empty."""
        users, events = plan.users[plan.of(step)], plan.events[plan.of(step)]
        mine = slice(rank, None, world_size)
        pairs = Part(torch.from_numpy(np.ascontiguousarray(users[mine])), torch.from_numpy(self.items[events[mine]]))
        return Batch((pairs,), len(users))
