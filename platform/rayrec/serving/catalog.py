"""The catalogue in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from functools import reduce
from operator import and_

from rayrec.data.dataset import Dataset
from rayrec.serving.changes import Changes
from rayrec.serving.dated import Dated
from rayrec.serving.state import Item


class Items:
    """A catalogue held in memory.

    Args:
        items: What it has.
    """

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self.version = 0
        self._items: dict[str, Item] = {}
        self._hidden: set[str] = set()
        self._categories: dict[str, set[str]] = {}
        self._labels: dict[tuple[str, str], set[str]] = {}
        self._changes = Changes()
        self._dated = Dated()
        self._newest: tuple[int, Sequence[Item]] = (-1, ())
        self.put(items)

    @classmethod
    def of(cls, dataset: Dataset) -> Items:
        """The items of a Dataset."""
        columns = dataset.catalogue().to_pydict()
        rows = zip(columns["key"], columns["title"], columns["categories"], strict=True)
        return cls(Item(key, title, tuple(categories or ())) for key, title, categories in rows)

    @property
    def keys(self) -> Set[str]:
        """See `Catalog`."""
        return self._items.keys()

    @property
    def hidden(self) -> Set[str]:
        """See `Catalog`."""
        return self._hidden

    def item(self, key: str) -> Item | None:
        """See `Catalog`."""
        return self._items.get(key)

    def within(self, categories: Collection[str], labels: Collection[tuple[str, str]] = ()) -> Set[str] | None:
        """See `Catalog`."""
        if not categories and not labels:
            return None
        chosen: list[Set[str]] = [self._labels.get(label, set()) for label in labels]
        if categories:
            chosen.append(set().union(*(self._categories.get(name, ()) for name in categories)))
        return reduce(and_, sorted(chosen, key=len))

    def changed_after(self, version: int) -> Set[str] | None:
        """See `Catalog`."""
        return self._changes.after(version)

    def newest(self) -> Sequence[Item]:
        """See `Catalog`."""
        version, found = self._newest
        if version != self.version:
            version = self.version
            found = self._dated.newest()
            self._newest = version, found
        return found

    def all(self) -> list[Item]:
        """Every item."""
        return [*self._items.values()]

    def put(self, items: Iterable[Item], gone: Iterable[str] = ()) -> None:
        """Take in items in place of those with their keys, and drop others."""
        changed = []
        for item in items:
            changed.append(item.item)
            self._forget(item.item)
            self._items[item.item] = item
            for keys in self._indexes(item):
                keys.add(item.item)
            (self._hidden.add if item.hidden else self._hidden.discard)(item.item)
            self._dated.add(item)
        for key in gone:
            changed.append(key)
            self._forget(key)
            self._items.pop(key, None)
            self._hidden.discard(key)
        # Whoever sees the version finds its changes.
        self._changes.add(self.version + 1, changed)
        self.version += 1

    def _forget(self, key: str) -> None:
        """Take an item out of the indexes."""
        before = self._items.get(key)
        if before is None:
            return
        for keys in self._indexes(before):
            keys.discard(key)
        self._dated.discard(before)

    def _indexes(self, item: Item) -> Iterator[set[str]]:
        """The sets of keys that an item belongs to."""
        for category in item.categories:
            yield self._categories.setdefault(category, set())
        for label in item.named():
            yield self._labels.setdefault(label, set())
