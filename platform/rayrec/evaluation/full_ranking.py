"""Full ranking: every held-out event is ranked among all items, never among a sample of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from rayrec.features.histories import Histories
from rayrec.inference.inputs import Inputs
from rayrec.inference.top_k import top_k_tensor
from rayrec.metrics.ranks import rank_targets
from rayrec.models.interactions import SparseRows, blocks_of

ScoreFunction = Callable[[Inputs], "np.ndarray | Tensor"]
"""A batch of requests to ``[B, V + 1]`` float32 scores, on any device."""

LARGEST_BATCH = 256
USERS_AT_A_TIME = 1 << 14
"""Users whose whole past is looked at at once."""
SCORES_AT_A_TIME = 1 << 25
"""128 MiB of float32: with a million items 33 users at a time, so that memory does not grow with the catalogue."""
EVENTS_AT_A_TIME = 1 << 18
"""Of histories: models that look at all of them at once hold some hundred bytes for each."""


@dataclass(frozen=True)
class HeldOut:
    """Users with their past and what they did next.

    Attributes:
        past: Of everybody in the view, what the model may see, and what is removed from the ranking when seen items
            are.
        future: Of everybody in the view, the held-out events.
        users: ``[U]`` int64, the rows in the view of those who have some.
        features: What else the model reads: a row for each of them, of the ``user``, and of the ``context`` of the
            first held-out event.
    """

    past: Histories
    future: Histories
    users: np.ndarray
    features: Mapping[str, SparseRows] = field(default_factory=dict)

    @classmethod
    def of(cls, past: Histories, future: Histories) -> HeldOut:
        """The users of a view with held-out events, from the two folds of all its users."""
        return cls(past, future, np.flatnonzero(future.lengths))

    def __len__(self) -> int:
        return len(self.users)

    def chosen(self, places: np.ndarray | slice) -> HeldOut:
        """Some of these users."""
        places = np.arange(len(self))[places]
        features = {name: rows.take(places) for name, rows in self.features.items()}
        return replace(self, users=self.users[places], features=features)

    def asked(self, places: np.ndarray, length: int) -> Inputs:
        """What some users are asked with: their latest events, at the moment of the first held-out one."""
        past, future, users = self.past, self.future, self.users[places]
        features = {name: rows.dense(places) for name, rows in self.features.items()}
        asked = {"history": past.last(users, length), **features}
        if past.times is None or future.times is None:
            return {**asked, "times": np.zeros((len(places), length + 1), np.int64)}
        now = future.times[future.offsets[users]]
        return {**asked, "times": np.column_stack([past.last_times(users, length), now])}

    def part(self, rank: int, size: int) -> HeldOut:
        """Every ``size``-th user from ``rank`` on."""
        return self.chosen(slice(rank, None, size))


@dataclass(frozen=True)
class RankedUsers:
    """What a model did for each user.

    Attributes:
        ranks: ``[U, T]`` int64, the rank of each held-out item; 0 is padding.
        targets: ``[U, T]`` int64, the held-out items, rising; 0 is padding.
        recommended: ``[U, K]`` int64 item rows, best first; 0 is padding.
        past_lengths: ``[U]`` int64, events of the user before the held-out ones.
        users: ``[U]`` int64, the users' rows in the view.
    """

    ranks: np.ndarray
    targets: np.ndarray
    recommended: np.ndarray
    past_lengths: np.ndarray
    users: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[RankedUsers]) -> RankedUsers:
        """The users of several parts, one part after the other."""
        width = max(part.ranks.shape[1] for part in parts)

        def wide(rows: np.ndarray) -> np.ndarray:
            return np.pad(rows, ((0, 0), (0, width - rows.shape[1])))

        return cls(
            ranks=np.concatenate([wide(part.ranks) for part in parts]),
            targets=np.concatenate([wide(part.targets) for part in parts]),
            recommended=np.concatenate([part.recommended for part in parts]),
            past_lengths=np.concatenate([part.past_lengths for part in parts]),
            users=np.concatenate([part.users for part in parts]),
        )


def rank_users(
    score: ScoreFunction, held_out: HeldOut, num_items: int, max_length: int, top: int, exclude_seen: bool = True
) -> RankedUsers:
    """Rank all items for every user, on the device where the scores are.

    An item held out twice counts once. With ``exclude_seen``, a held-out item that the user already had cannot be
    recommended by anybody and is no target; a user left without a target is left out.

    Args:
        score: The model.
        held_out: The users.
        num_items: V, the items there are.
        max_length: How many of the latest events the model reads.
        top: K, how many recommendations to keep of each user.
        exclude_seen: Remove the items of the past from the ranking.
    """
    targets, lengths = _targets(held_out, exclude_seen), held_out.past.lengths_of(held_out.users)
    users = np.flatnonzero(targets.lengths)
    width = max(1, int(targets.lengths.max(initial=0)))
    ranks = np.zeros((len(users), width), dtype=np.int64)
    recommended = np.zeros((len(users), top), dtype=np.int64)
    for places in _batches(np.minimum(lengths[users], max_length), num_items + 1):
        past, wanted = held_out.past.of_users(held_out.users[users[places]]), targets.of_users(users[places])
        scores = torch.as_tensor(score(held_out.asked(users[places], min(max_length, _longest(past)))))
        excluded = _excluded(past, exclude_seen, scores.device)
        padded = torch.from_numpy(_padded(wanted, -1, _longest(wanted))).to(scores.device)
        ranks[places, : padded.shape[1]] = rank_targets(scores, padded, excluded).cpu().numpy()
        # A model that gives everybody the same may give a view of one row.
        scores = scores.contiguous().index_put(excluded, scores.new_tensor(-torch.inf))
        recommended[places] = top_k_tensor(scores, top)[0].cpu().numpy()
    return RankedUsers(
        ranks,
        _padded(targets.of_users(users), 0, width),
        recommended,
        lengths[users],
        held_out.users[users],
    )


def _batches(lengths: np.ndarray, columns: int) -> Iterator[np.ndarray]:
    """Places of users to score at a time: ``[b]`` int64, of like length to pad little, the longest first."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        length = max(1, int(lengths[order[start]]))
        size = max(1, min(LARGEST_BATCH, SCORES_AT_A_TIME // columns, EVENTS_AT_A_TIME // length))
        yield order[start : start + size]
        start += size


def _targets(held_out: HeldOut, exclude_seen: bool) -> Histories:
    """The distinct held-out items of each user, rising; without those they had, if those are excluded."""
    lengths, items = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for block in blocks_of(len(held_out), USERS_AT_A_TIME):
        users = held_out.users[block.start : block.stop]
        past, future = held_out.past.of_users(users), held_out.future.of_users(users)
        highest = 1 + max(past.items.max(initial=0), future.items.max(initial=0))
        pairs = np.unique(future.owners * highest + future.items)
        if exclude_seen:
            pairs = np.setdiff1d(pairs, past.owners * highest + past.items)
        lengths.append(np.bincount(pairs // highest, minlength=len(block)))
        items.append(pairs % highest)
    return Histories.grouped(np.concatenate(lengths), np.concatenate(items))


def _padded(histories: Histories, padding: int, width: int) -> np.ndarray:
    """``[U, width]`` int64, the items of each user from the left on."""
    padded = np.full((len(histories), width), padding, dtype=np.int64)
    padded[np.arange(width) < histories.lengths[:, None]] = histories.items
    return padded


def _longest(histories: Histories) -> int:
    return max(1, int(histories.lengths.max(initial=0)))


def _excluded(past: Histories, exclude_seen: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns of what is no candidate: padding, and what the user already had."""
    rows, columns = np.arange(len(past)), np.zeros(len(past), dtype=np.int64)
    if exclude_seen:
        rows, columns = np.concatenate([rows, past.owners]), np.concatenate([columns, past.items])
    return torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)
