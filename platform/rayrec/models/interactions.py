"""What models are fitted to: the training events, and what is declared of the items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np

from rayrec.features.histories import AT_A_TIME, Histories

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class SparseRows:
    """A sparse matrix in CSR form.

    Attributes:
        offsets: ``[R + 1]`` int64; the entries of row r stand at ``offsets[r]:offsets[r + 1]``.
        columns: ``[N]`` int64, rising within a row.
        values: ``[N]`` float32.
        width: Number of columns.
    """

    offsets: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    width: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def rows(self) -> np.ndarray:
        """The row of each entry: ``[N]`` int64."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))

    def part(self, block: range) -> SparseRows:
        """The rows of a block that stand next to each other."""
        first, last = self.offsets[block.start], self.offsets[block.stop]
        offsets = self.offsets[block.start : block.stop + 1] - first
        return SparseRows(offsets, self.columns[first:last], self.values[first:last], self.width)

    def take(self, chosen: np.ndarray) -> SparseRows:
        """Some rows (``[n]`` int64), in the order given."""
        lengths = self.offsets[chosen + 1] - self.offsets[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[chosen] - offsets[:-1], lengths)
        return SparseRows(offsets, self.columns[places], self.values[places], self.width)

    def dense(self, chosen: np.ndarray) -> np.ndarray:
        """Some rows (``[n]`` int64, in any order) written out: ``[n, width]`` float32."""
        taken = self.take(chosen)
        written = np.zeros((len(chosen), self.width), np.float32)
        written[taken.rows, taken.columns] = taken.values
        return written

    def transposed(self) -> SparseRows:
        """Rows and columns exchanged."""
        order = np.argsort(self.columns, kind="stable")
        return SparseRows.of(self.columns[order], self.rows[order], self.values[order], self.width, len(self))

    @classmethod
    def of(cls, rows: np.ndarray, columns: np.ndarray, values: np.ndarray, height: int, width: int) -> SparseRows:
        """From entries in the order of their rows, and within a row of their columns."""
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=height))]).astype(np.int64)
        return cls(offsets, columns.astype(np.int64), values.astype(np.float32), width)


@dataclass(frozen=True)
class Interactions:
    """The training events of a view.

    Attributes:
        histories: What each user did, as item rows, oldest first, and when, where the log has times.
        num_items: Items; their rows run from 1.
        weights: ``[N]`` float32, how much each event says; None where the recipe declares no weights.
        item_features: A row for every item row (row 0, padding, is empty) of what is declared of it: a column each
            number and each category, numbers as fitted; None where the recipe declares no features of items.
        user_features: The same for every user of the histories; None where it declares no features of users.
        context_features: The same for every event; None where it declares no features of the context.
    """

    histories: Histories
    num_items: int
    weights: np.ndarray | None = None
    item_features: SparseRows | None = None
    user_features: SparseRows | None = None
    context_features: SparseRows | None = None

    @property
    def counts(self) -> np.ndarray:
        """Events of each item row: ``[num_items + 1]`` int64."""
        items, counts = self.histories.items, np.zeros(self.num_items + 1, np.int64)
        for block in blocks_of(len(items), AT_A_TIME):
            counts += np.bincount(items[block.start : block.stop], minlength=self.num_items + 1)
        return counts

    @cached_property
    def matrix(self) -> SparseRows:
        """Who had what: ``[U, num_items + 1]``, the summed weight of the events of each user with each item.

        Without weights every entry is 1, however often it was repeated.
        """
        users = np.repeat(np.arange(len(self.histories), dtype=np.int64), self.histories.lengths)
        pairs = users * (self.num_items + 1) + self.histories.items
        distinct, places = np.unique(pairs, return_inverse=True)
        values = np.ones(len(distinct), np.float32) if self.weights is None else np.bincount(places, self.weights)
        rows, columns = np.divmod(distinct, self.num_items + 1)
        return SparseRows.of(rows, columns, values, len(self.histories), self.num_items + 1)


class Each(Protocol):
    """How work on blocks is shared out; `here` does it one block after the other."""

    def __call__(self, function: Callable[[S, range], T], shared: S, blocks: Sequence[range]) -> Iterator[T]:
        """``function(shared, block)`` of every block, in the order of the blocks.

        Args:
            function: A function of a module, or a `functools.partial` of one.
            shared: What every block needs; sent to each machine once.
            blocks: The blocks.
        """


def here(function: Callable[[S, range], T], shared: S, blocks: Sequence[range]) -> Iterator[T]:
    """`Each` in this process."""
    return (function(shared, block) for block in blocks)


def blocks_of(size: int, length: int) -> list[range]:
    """``range(size)`` in blocks of at most ``length``.

    Example::

        >>> blocks_of(5, 2)
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    return [range(start, min(start + length, size)) for start in range(0, size, length)]
