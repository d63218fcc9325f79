"""Items in the order in which they came, kept while they change."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence
from typing import overload

from rayrec.serving.state import Item

MOST_ONE_BY_ONE = 1000
"""Changes that are made one by one: each moves half of the list, beyond it is sorted anew."""

Entry = tuple[int, str, Item]
"""Milliseconds since the epoch times -1, the key, the item: the newest are first, of equally old ones by key."""


class Newest(Sequence[Item]):
    """Items, the newest first, as they were at one moment.

    Args:
        entries: In order. They must not be changed.
    """

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, place: int) -> Item: ...

    @overload
    def __getitem__(self, place: slice) -> list[Item]: ...

    def __getitem__(self, place: int | slice) -> Item | list[Item]:
        if isinstance(place, slice):
            return [entry[2] for entry in self._entries[place]]
        return self._entries[place][2]


class Dated:
    """The items of which it is known when they came, and that are not hidden; others are passed over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._waiting: dict[tuple[int, str], Item | None] = {}

    def add(self, item: Item) -> None:
        """Take in an item, in place of one that is the same in key and time."""
        self._wait(item, item)

    def discard(self, item: Item) -> None:
        """Drop an item."""
        self._wait(item, None)

    def _wait(self, item: Item, becomes: Item | None) -> None:
        if item.timestamp is not None and not item.hidden:
            with self._lock:
                self._waiting[-item.timestamp, item.item] = becomes

    def newest(self) -> Newest:
        """All of them, as they are now."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
            if len(waiting) > MOST_ONE_BY_ONE:
                self._entries = [entry for entry in self._entries if entry[:2] not in waiting]
                self._entries.extend((*at, item) for at, item in waiting.items() if item is not None)
                self._entries.sort(key=lambda entry: entry[:2])
            elif waiting:
                # A copy: earlier answers are still read.
                self._entries = self._entries.copy()
                for at, item in waiting.items():
                    self._put(at, item)
            return Newest(self._entries)

    def _put(self, at: tuple[int, str], item: Item | None) -> None:
        place = bisect_left(self._entries, at, key=lambda entry: entry[:2])
        there = place < len(self._entries) and self._entries[place][:2] == at
        self._entries[place : place + there] = [] if item is None else [(*at, item)]
