"""Histories: what each user did, in order, in two flat arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Empty = Callable[[int, npt.DTypeLike], np.ndarray]
"""Makes an array of a length and dtype, for values that are then written to it: ``np.empty``, or one on disk."""

AT_A_TIME = 1 << 20
"""Events: what is done with all of them is done in blocks of so many, as they may not fit into memory."""


@dataclass(frozen=True)
class Histories:
    """Sequences of many users, stored flat.

    Attributes:
        offsets: ``[U + 1]`` int64; the events of user u are ``items[offsets[u]:offsets[u + 1]]``.
        items: ``[N]`` int64 item rows (0 is padding and does not occur), oldest first within a user.
        times: ``[N]`` int64 seconds since the epoch of each event; None where the log has no times.

    Example::

        >>> Histories.of([[3, 1], [2]]).last(np.array([0, 1]), 3)
        array([[0, 3, 1],
               [0, 0, 2]])
    """

    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray | None = None

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int] | np.ndarray]) -> Histories:
        """From a list of item rows a user."""
        arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
        offsets = np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int64)
        return cls(offsets, np.concatenate([np.empty(0, np.int64), *arrays]))

    @classmethod
    def grouped(cls, lengths: np.ndarray, items: np.ndarray, times: np.ndarray | None = None) -> Histories:
        """From the number of events of each user (``[U]``) and, one user after the other, items and times (``[N]``)."""
        return cls(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), items.astype(np.int64), times)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, user: int) -> np.ndarray:
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Events of each user: ``[U]`` int64."""
        return np.diff(self.offsets)

    def lengths_of(self, users: np.ndarray) -> np.ndarray:
        """Events of some users (``[B]`` int64): ``[B]`` int64."""
        lengths: np.ndarray = self.offsets[users + 1] - self.offsets[users]
        return lengths

    def keep(self, labels: np.ndarray, wanted: Sequence[Any] = (True,), empty: Empty = np.empty) -> Histories:
        """The events whose label (``[N]``) is one of those wanted; users stay, if need be with none.

        Args:
            labels: A label, such as a fold, of each event.
            wanted: Which labels.
            empty: Makes the arrays of what is kept.
        """
        blocks = [slice(first, first + AT_A_TIME) for first in range(0, len(self.items), AT_A_TIME)]
        offsets, kept = np.empty_like(self.offsets), 0
        for block in blocks:
            before = np.concatenate([[kept], kept + np.cumsum(np.isin(labels[block], wanted))])
            begin = slice(*np.searchsorted(self.offsets, [block.start, block.stop]))
            offsets[begin], kept = before[self.offsets[begin] - block.start], before[-1]
        offsets[self.offsets == len(self.items)] = kept
        items = empty(kept, np.int64)
        times = None if self.times is None else empty(kept, np.int64)
        first = 0
        for block in blocks:
            mask = np.isin(labels[block], wanted)
            to = slice(first, first := first + int(mask.sum()))
            items[to] = self.items[block][mask]
            if times is not None and self.times is not None:
                times[to] = self.times[block][mask]
        return Histories(offsets, items, times)

    def of_users(self, users: np.ndarray) -> Histories:
        """Some users (``[B]`` int64) alone, in the order given."""
        lengths = self.lengths_of(users)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[users] - offsets[:-1], lengths)
        return Histories(offsets, self.items[places], None if self.times is None else self.times[places])

    @property
    def owners(self) -> np.ndarray:
        """The user of each event: ``[N]`` int64."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def last(self, users: np.ndarray, length: int) -> np.ndarray:
        """The latest events of ``users``: ``[B, length]`` int64, left-padded with 0."""
        return self._latest(self.items, users, length)

    def last_times(self, users: np.ndarray, length: int) -> np.ndarray:
        """When the latest events of ``users`` were: ``[B, length]`` int64 seconds, left-padded with 0."""
        assert self.times is not None  # noqa: S101 - for the type checker: who asks has looked
        return self._latest(self.times, users, length)

    def _latest(self, values: np.ndarray, users: np.ndarray, length: int) -> np.ndarray:
        positions = self.offsets[users + 1][:, None] - np.arange(length, 0, -1)[None, :]
        inside = positions >= self.offsets[users][:, None]
        if not len(values):
            return np.zeros_like(positions)
        return np.where(inside, values[np.where(inside, positions, 0)], 0)


def pad(sequences: Sequence[np.ndarray], max_length: int) -> np.ndarray:
    """The latest events of each sequence: ``[B, L]`` int64, left-padded with 0.

    L is the longest sequence, at least 1 and at most ``max_length``.
    """
    width = max(1, min(max_length, max((len(s) for s in sequences), default=1)))
    padded = np.zeros((len(sequences), width), dtype=np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        latest = sequence[-width:]
        if len(latest):
            row[-len(latest) :] = latest
    return padded
