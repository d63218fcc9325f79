"""What a Dataset knows is taken into the database, once: later events come over HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice

import pyarrow as pa
import sqlalchemy as sa

from rayrec.artifacts import Json
from rayrec.data.dataset import Dataset, read_part
from rayrec.data.segments import ordered
from rayrec.serving.catalog import Items
from rayrec.serving.state import User
from rayrec.serving.store.database import Database
from rayrec.serving.store.events import IDENTITY, note, unless_there
from rayrec.serving.store.fingerprints import event_fingerprint, fingerprint, salt_of
from rayrec.serving.store.keys import ITEM_REMOVED, USER_ERASED
from rayrec.serving.store.tables import AUDIT, EVENTS, FILLED, ITEMS, REMOVED_EVENTS, USERS

BEGUN = "begun"
ROWS_AT_ONCE = 20_000
"""Of a transaction: writers wait for no longer."""


def fill(database: Database, dataset: Dataset) -> None:
    """Take in the items, users and events of a Dataset that are not there yet.

    Items that are there stay as they are: they may have been changed since. An event of the same user, item, type and
    time as one that is there is the same event: it may have come over HTTP, and have been exported into the Dataset.
    What was cut off is finished by the next call.
    """
    done = database.read(lambda connection: _filled(connection, dataset.name))
    # First of all: who is erased from now on is to be erased in this Dataset, too.
    _mark(database, dataset.name, BEGUN)
    parts = [part for part in dataset.manifest["events"] if part["sha256"] not in done]
    tables = dataset.digest
    if tables not in done:
        _fill_tables(database, dataset)
        _mark(database, dataset.name, tables)
    for part in parts:
        _fill_events(database, dataset, part)
        _mark(database, dataset.name, part["sha256"])
    if parts:
        # Whoever reads meanwhile has read some users' histories half.
        database.write(lambda connection: note(connection, "user", None))


def _filled(connection: sa.Connection, dataset: str) -> set[str]:
    return {*connection.execute(sa.select(FILLED.c.part).where(FILLED.c.dataset == dataset)).scalars()}


def _mark(database: Database, dataset: str, part: str) -> None:
    row = {"dataset": dataset, "part": part}
    database.write(lambda connection: connection.execute(unless_there(connection, FILLED), [row]))


@dataclass(frozen=True)
class _Gone:
    """What was to be forgotten, and may be in the Dataset still.

    Attributes:
        users: When each was erased, in milliseconds since the epoch, by the fingerprint of their key.
        items: Keys.
        events: Fingerprints of single events.
        salt: What fingerprints are made with.
    """

    users: Mapping[str, int]
    items: Set[str]
    events: Set[str]
    salt: bytes

    @classmethod
    def of(cls, connection: sa.Connection) -> _Gone:
        """What the database says of it."""
        rows = connection.execute(sa.select(AUDIT.c.action, AUDIT.c.subject, AUDIT.c.at)).all()
        users = {row.subject: row.at for row in rows if row.action == USER_ERASED}
        items = {row.subject for row in rows if row.action == ITEM_REMOVED}
        events = {*connection.execute(sa.select(REMOVED_EVENTS.c.fingerprint)).scalars()}
        return cls(users, items, events, salt_of(connection))

    def kept(self, rows: list[Json]) -> list[Json]:
        """Rows of items, users or events without what was to be forgotten."""
        users = {row["user"] for row in rows if "user" in row} if self.users else set()
        marks = ((user, fingerprint(self.salt, user)) for user in users)
        erased = {user: self.users[mark] for user, mark in marks if mark in self.users}
        return [row for row in rows if not self._is_gone(row, erased)]

    def _is_gone(self, row: Json, erased: Mapping[str, int]) -> bool:
        if "user" not in row:
            return row["item"] in self.items
        at = erased.get(row["user"])
        if at is not None and row.get("timestamp", at) <= at:
            return True
        return bool(self.events) and "item" in row and self._is_removed(row)

    def _is_removed(self, event: Json) -> bool:
        return event_fingerprint(self.salt, [event[name] for name in IDENTITY]) in self.events


def _fill_tables(database: Database, dataset: Dataset) -> None:
    users = (asdict(User(key)) for key in dataset.vocabulary("user")["key"].to_pylist() if key is not None)
    items = ({**asdict(item), "categories": list(item.categories)} for item in Items.of(dataset).all())
    for table, rows in ((USERS, users), (ITEMS, items)):
        for some in _some(rows):
            database.write(partial(_insert, table, some))
    database.write(lambda connection: note(connection, "item", None))


def _fill_events(database: Database, dataset: Dataset, part: Json) -> None:
    columns = ["event_id", "user", "item", "type", "timestamp", "value"]
    log = ordered(read_part(dataset.storage, part, columns), dataset.ranks)
    keys = {name: [None, *dataset.vocabulary(name)["key"].to_pylist()] for name in ("user", "item")}
    newest = database.read(lambda connection: connection.execute(sa.select(sa.func.max(EVENTS.c.position))).scalar())
    for some in _some(_rows(log, keys)):
        database.write(partial(_insert_new, newest or 0, some))


def _rows(log: pa.Table, keys: dict[str, list[str | None]]) -> Iterator[Json]:
    columns = [log[name].to_pylist() for name in ("user", "item", "type", "timestamp", "value")]
    for user, item, kind, timestamp, value in zip(*columns, strict=True):
        yield {
            "event_id": uuid.uuid4().hex,
            "user": keys["user"][user],
            "item": keys["item"][item],
            "type": kind or "",
            "timestamp": timestamp,
            "value": value,
        }


def _insert(table: sa.Table, rows: list[Json], connection: sa.Connection) -> None:
    # Looked up in the same transaction: who is erased meanwhile waits for it, and takes what it wrote.
    if left := _Gone.of(connection).kept(rows):
        connection.execute(unless_there(connection, table), left)


def _insert_new(newest: int, rows: list[Json], connection: sa.Connection) -> None:
    """Add events, unless one of that user, item, type and time was there until a position.

    A log may have an event several times, and means it.
    """
    given = {name: sa.bindparam(name, type_=EVENTS.c[name].type) for name in _GIVEN}
    same = sa.and_(EVENTS.c.position <= newest, *(EVENTS.c[name] == given[name] for name in IDENTITY))
    row = sa.select(*given.values()).where(~sa.exists().where(same))
    insert = unless_there(connection, EVENTS).from_select([*given], row, include_defaults=False)
    if left := _Gone.of(connection).kept(rows):
        connection.execute(insert, left)


_GIVEN = ("event_id", "user", "item", "type", "timestamp", "value")


def _some(rows: Iterator[Json]) -> Iterator[list[Json]]:
    while some := [*islice(rows, ROWS_AT_ONCE)]:
        yield some
