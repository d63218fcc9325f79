"""Which items of a catalogue changed, for those who keep something worked out from all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Set

MOST_CHANGES = 100_000
"""Keys that are remembered: beyond, to look at all items anew takes no longer."""


class Changes:
    """The keys that changed with each of the latest versions."""

    def __init__(self) -> None:
        self._known_after = 0
        self._changes: deque[tuple[int, Collection[str]]] = deque()
        self._keys = 0

    def add(self, version: int, keys: Collection[str]) -> None:
        """A version came about by a change of these keys."""
        self._changes.append((version, keys))
        self._keys += len(keys)
        while self._keys > MOST_CHANGES:
            # In this order: whoever reads meanwhile must not take what is forgotten for what never was.
            self._known_after = self._changes[0][0]
            self._keys -= len(self._changes.popleft()[1])

    def after(self, version: int) -> Set[str] | None:
        """Keys that have changed since a version; None where that is no longer known."""
        changes = [*self._changes]
        if version < self._known_after:
            return None
        return {key for changed, keys in changes if changed > version for key in keys}
