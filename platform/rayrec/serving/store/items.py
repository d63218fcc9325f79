"""The catalogue in the database."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from rayrec.serving.state import Item
from rayrec.serving.store.database import Database
from rayrec.serving.store.events import in_place, note, remove_for_good
from rayrec.serving.store.keys import ITEM_REMOVED, recorded
from rayrec.serving.store.tables import EVENTS, ITEMS

AT_ONCE = 500
"""Keys of a query: databases bound how many values one may have."""


@dataclass(frozen=True)
class StoredItems:
    """What is read and written of items; answers use a copy in memory, `rayrec.serving.catalog.Items`.

    Attributes:
        database: Where they are.
    """

    database: Database

    def put(self, items: Sequence[Item], keep: Collection[str] = ()) -> None:
        """Keep items, in place of those with their keys, but for the attributes to ``keep`` of these."""
        self.database.write(lambda connection: _put(connection, items, keep))

    def categorise(self, key: str, more: Sequence[str], fewer: Collection[str]) -> bool:
        """Add categories to an item, and take others away. Returns whether there is one."""
        return self.database.write(lambda connection: _categorise(connection, key, more, fewer))

    def change(self, key: str, values: Mapping[str, Any]) -> bool:
        """Change some attributes of an item. Returns whether there is one."""
        return self.database.write(lambda connection: _change(connection, key, values))

    def remove(self, key: str, actor: str) -> bool:
        """Take an item out of the catalogue, and record who asked; what was done with it stays in the log.

        Returns whether there was one.
        """
        return self.database.write(lambda connection: _remove(connection, key, actor))

    def remove_with_events(self, key: str, actor: str) -> tuple[bool, set[str]]:
        """The same with all events on it. Returns whether there was one, and the users who had events on it."""

        def write(connection: sa.Connection) -> tuple[bool, set[str]]:
            return _remove(connection, key, actor), {*remove_for_good(connection, EVENTS.c.item == key)}

        return self.database.write(write)

    def get(self, keys: Sequence[str]) -> list[Item]:
        """The items of these keys that there are."""
        parts = [keys[start : start + AT_ONCE] for start in range(0, len(keys), AT_ONCE)]
        queries = [sa.select(ITEMS).where(ITEMS.c.item.in_(part)) for part in parts]
        return [item for query in queries for item in self._read(query)]

    def page(self, after: str | None, count: int) -> list[Item]:
        """Up to ``count`` items by their keys, from the one after a key."""
        query = sa.select(ITEMS).order_by(ITEMS.c.item).limit(count)
        return self._read(query if after is None else query.where(ITEMS.c.item > after))

    def search(self, text: str, count: int) -> list[Item]:
        """Up to ``count`` items whose title, key or comment has a text in it, whatever its case."""
        columns = (ITEMS.c.title, ITEMS.c.item, ITEMS.c.comment)
        found = sa.or_(*(column.icontains(text, autoescape=True) for column in columns))
        return self._read(sa.select(ITEMS).where(found).order_by(ITEMS.c.item).limit(count))

    def all(self) -> list[Item]:
        """Every item."""
        return self._read(sa.select(ITEMS))

    def _read(self, query: sa.Select[Any]) -> list[Item]:
        return self.database.read(lambda connection: [_item(row) for row in connection.execute(query)])


def _categorise(connection: sa.Connection, key: str, more: Sequence[str], fewer: Collection[str]) -> bool:
    found = connection.execute(sa.select(ITEMS.c.categories).where(ITEMS.c.item == key)).scalar()
    if found is None:
        return False
    wanted = [name for name in dict.fromkeys([*found, *more]) if name not in fewer]
    return _change(connection, key, {"categories": wanted})


def _put(connection: sa.Connection, items: Sequence[Item], keep: Collection[str]) -> None:
    if not items:
        return
    insert = in_place(connection, ITEMS, keep)
    # The last of several with one key.
    rows = {item.item: {**asdict(item), "categories": list(item.categories)} for item in items}
    connection.execute(insert, [*rows.values()])
    note(connection, "item", [*rows])


def _change(connection: sa.Connection, key: str, values: Mapping[str, Any]) -> bool:
    there = ITEMS.c.item == key
    # Without a change it still tells whether there is one.
    changed = connection.execute(sa.update(ITEMS).where(there).values({"item": key, **values})).rowcount > 0
    if changed:
        note(connection, "item", [key])
    return changed


def _remove(connection: sa.Connection, key: str, actor: str) -> bool:
    gone = connection.execute(sa.delete(ITEMS).where(ITEMS.c.item == key)).rowcount > 0
    if gone:
        recorded(connection, actor, ITEM_REMOVED, key)
        note(connection, "item", [key])
    return gone


def _item(row: sa.Row[Any]) -> Item:
    values = dict(row._mapping)
    return Item(**{**values, "categories": tuple(values["categories"])})
