"""The log of events in the database."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from rayrec.serving.state import Event
from rayrec.serving.store.database import Database
from rayrec.serving.store.fingerprints import event_fingerprint, salt_of
from rayrec.serving.store.tables import CHANGES, EVENTS, ITEMS, REMOVED_EVENTS, USERS

IDENTITY = ("user", "item", "type", "timestamp")
"""Columns by which an event of a Dataset is one that came over HTTP."""
MOST_LISTED = 100_000
"""Events that are taken together for one answer."""
MOST_COMPARED = 20
"""Items of a user by which others are found."""
CLOCKS = 60_000
"""Milliseconds by which clients' clocks may be ahead."""
MOST_NOTED = 1000
"""Keys that are noted one by one."""
COLUMNS = [column for column in EVENTS.c if column.name != "position"]


@dataclass(frozen=True)
class StoredEvents:
    """See `rayrec.serving.state.EventLog`.

    Attributes:
        database: Where they are.
    """

    database: Database

    def append(self, events: Sequence[Event], with_items: bool = False) -> int:
        """See `EventLog`. Users that nobody has told of yet are taken in, and if so asked items, too."""
        return self.database.write(lambda connection: append(connection, events, with_items))

    def page(self, after: int, count: int, *, user: str | None = None, item: str | None = None) -> list[Any]:
        """See `EventLog`."""
        query = sa.select(EVENTS).where(EVENTS.c.position > after).order_by(EVENTS.c.position).limit(count)
        for column, key in ((EVENTS.c.user, user), (EVENTS.c.item, item)):
            query = query if key is None else query.where(column == key)
        return self.database.read(lambda connection: [_event(row) for row in connection.execute(query)])

    def remove(self, event_ids: Collection[str]) -> int:
        """See `EventLog`."""
        return len(self.users_without(event_ids))

    def users_without(self, event_ids: Collection[str]) -> list[str]:
        """Forget events. Returns the user of each that there was."""
        return self.database.write(lambda connection: remove_for_good(connection, EVENTS.c.event_id.in_(event_ids)))

    def remove_pair(self, user: str, item: str, type: str | None) -> None:
        """Forget a user's events on an item, of all types or of one."""
        which = [EVENTS.c.user == user, EVENTS.c.item == item, *([] if type is None else [EVENTS.c.type == type])]
        self.database.write(lambda connection: remove_for_good(connection, sa.and_(*which)))

    def feedback(self, **keys: str | None) -> list[Feedback]:
        """What users did with items, by type, of the user, item and type given; the latest first.

        Of more than `MOST_LISTED` events those that came last.
        """
        query = sa.select(EVENTS).order_by(EVENTS.c.position.desc()).limit(MOST_LISTED)
        for name, key in keys.items():
            query = query if key is None else query.where(EVENTS.c[name] == key)
        rows = self.database.read(lambda connection: [_event(row) for row in connection.execute(query)])
        return sorted(
            taken_together(event for _, event in reversed(rows)), key=lambda told: (-told.timestamp, told.item)
        )

    def feedback_page(self, after: FeedbackKey | None, count: int, type: str | None = None) -> list[Feedback]:
        """Up to ``count``, by user, item and type, from the one after a key."""
        key = sa.tuple_(EVENTS.c.user, EVENTS.c.item, EVENTS.c.type)
        keys = sa.select(EVENTS.c.user, EVENTS.c.item, EVENTS.c.type).distinct()
        if after is not None:
            # The first condition lets the index of users be used.
            keys = keys.where(EVENTS.c.user >= after[0], key > sa.tuple_(*map(sa.literal, after)))
        if type is not None:
            keys = keys.where(EVENTS.c.type == type)
        keys = keys.order_by(EVENTS.c.user, EVENTS.c.item, EVENTS.c.type).limit(count)

        def read(connection: sa.Connection) -> list[Feedback]:
            wanted = [tuple(row) for row in connection.execute(keys)]
            query = sa.select(EVENTS).where(key.in_(wanted)).order_by(EVENTS.c.position)
            found = taken_together(_event(row)[1] for row in connection.execute(query)) if wanted else []
            # The database's order, by which the next page begins, depends on its collation.
            places = {one: place for place, one in enumerate(wanted)}
            return sorted(found, key=lambda told: places[told.key])

        return self.database.read(read)

    def neighbours(self, user: str, count: int) -> list[tuple[str, float]]:
        """Users who had most of the items that a user had last, with the share of them that they had."""
        last = sa.select(EVENTS.c.item).where(EVENTS.c.user == user).group_by(EVENTS.c.item)
        last = last.order_by(sa.func.max(EVENTS.c.timestamp).desc()).limit(MOST_COMPARED)
        shared = sa.func.count(EVENTS.c.item.distinct())

        def read(connection: sa.Connection) -> list[tuple[str, float]]:
            items = connection.execute(last).scalars().all()
            query = sa.select(EVENTS.c.user, shared).where(EVENTS.c.item.in_(items), EVENTS.c.user != user)
            query = query.group_by(EVENTS.c.user).order_by(shared.desc(), EVENTS.c.user).limit(count)
            return [(other, number / len(items)) for other, number in connection.execute(query)]

        return self.database.read(read)

    def most_users(self, since: int, count: int) -> list[tuple[str, int]]:
        """Items of the catalogue that most users did something with since a time in milliseconds, with how many.

        Hidden ones are left out.
        """
        users = sa.func.count(EVENTS.c.user.distinct())
        offered = sa.exists().where(ITEMS.c.item == EVENTS.c.item, ITEMS.c.hidden.is_(False))
        # What clients say of the future has not happened.
        lately = EVENTS.c.timestamp.between(since, int(time.time() * 1000) + CLOCKS)
        query = sa.select(EVENTS.c.item, users).where(lately, offered).group_by(EVENTS.c.item)
        query = query.order_by(users.desc(), EVENTS.c.item).limit(count)
        return self.database.read(lambda connection: [(row[0], row[1]) for row in connection.execute(query)])


FeedbackKey = tuple[str, str, str]
"""User, item and type."""


@dataclass(frozen=True)
class Feedback:
    """A user's events of one type on one item, taken together: what Gorse calls feedback.

    Attributes:
        user: Key of the user.
        item: Key of the item.
        type: Of the events.
        value: The sum of their values, from the last one on that replaces those before it.
        timestamp: Of the last one told of, in milliseconds since the epoch.
        comment: Of the last one told of.
    """

    user: str
    item: str
    type: str
    value: float
    timestamp: int
    comment: str

    @property
    def key(self) -> FeedbackKey:
        """What there is only one of."""
        return self.user, self.item, self.type


def taken_together(events: Iterable[Event]) -> list[Feedback]:
    """What events, in the order in which they came, amount to."""
    found: dict[FeedbackKey, Feedback] = {}
    for event in events:
        key = event.user, event.item, event.type
        before = found[key].value if key in found and not event.replaces else 0.0
        found[key] = Feedback(*key, before + (event.value or 0.0), event.timestamp, event.comment)
    return [*found.values()]


def append(connection: sa.Connection, events: Sequence[Event], with_items: bool) -> int:
    """Add events in a transaction. Returns how many are new."""
    if not events:
        return 0
    if with_items:
        introduce(connection, ITEMS, {event.item for event in events})
    introduce(connection, USERS, {event.user for event in events})
    # Not every driver counts the rows of many statements.
    insert = unless_there(connection, EVENTS).returning(EVENTS.c.position)
    return len(connection.execute(insert, [asdict(event) for event in events]).all())


def introduce(connection: sa.Connection, table: sa.Table, keys: Iterable[str]) -> None:
    """Take in users or items by their keys, unless they are there."""
    nothing = {"categories": [], "hidden": False, "comment": "", "title": None, "timestamp": None, "labels": None}
    (key,) = table.primary_key.columns
    blank = {name: value for name, value in nothing.items() if name in table.c}
    wanted = [{key.name: found, **blank} for found in sorted(keys)]
    added = connection.execute(unless_there(connection, table).returning(key), wanted).scalars().all()
    if added and table is ITEMS:
        note(connection, "item", added)


def remove(connection: sa.Connection, which: sa.ColumnElement[bool]) -> list[Any]:
    """Remove events in a transaction. Returns user, item, type and timestamp of each that there was."""
    identities = [EVENTS.c[name] for name in IDENTITY]
    gone = connection.execute(sa.delete(EVENTS).where(which).returning(*identities)).all()
    note(connection, "user", sorted({event.user for event in gone}))
    return [*gone]


def remove_for_good(connection: sa.Connection, which: sa.ColumnElement[bool]) -> list[str]:
    """The same, so that they do not come back out of a Dataset. Returns the user of each."""
    gone = remove(connection, which)
    remember(connection, gone)
    return [event.user for event in gone]


def remember(connection: sa.Connection, events: Sequence[Any]) -> None:
    """Have single events, given by user, item, type and timestamp, not come back out of a Dataset."""
    if events:
        salt = salt_of(connection)
        marks = [{"fingerprint": event_fingerprint(salt, event)} for event in events]
        connection.execute(unless_there(connection, REMOVED_EVENTS), marks)


def note(connection: sa.Connection, kind: str, keys: Sequence[str] | None) -> None:
    """Have replicas read ``item`` or ``user`` keys anew; None: all of them, as of many keys."""
    rows: list[str | None] = [None] if keys is None or len(keys) > MOST_NOTED else [*keys]
    if rows:
        now = int(time.time() * 1000)
        connection.execute(sa.insert(CHANGES), [{"kind": kind, "key": key, "at": now} for key in rows])


def unless_there(connection: sa.Connection, table: sa.Table) -> Any:
    """An INSERT that passes over rows whose key is there."""
    return _insert(connection, table).on_conflict_do_nothing()


def in_place(connection: sa.Connection, table: sa.Table, keep: Collection[str] = ()) -> Any:
    """An INSERT that writes over rows whose primary key is there, but for some columns."""
    insert = _insert(connection, table)
    names = [column.name for column in table.c if not column.primary_key and column.name not in keep]
    others = {name: insert.excluded[name] for name in names}
    return insert.on_conflict_do_update(index_elements=[*table.primary_key.columns], set_=others)


def _insert(connection: sa.Connection, table: sa.Table) -> Any:
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def _event(row: sa.Row[Any]) -> tuple[int, Event]:
    values = row._mapping
    return values[EVENTS.c.position], Event(**{column.name: values[column] for column in COLUMNS})
