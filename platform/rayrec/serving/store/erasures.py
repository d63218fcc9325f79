"""Users who asked to be forgotten: what was removed at once, and which Datasets are still to be rewritten."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from rayrec.artifacts import Json
from rayrec.serving.store.database import Database
from rayrec.serving.store.events import note, remember, remove
from rayrec.serving.store.fingerprints import fingerprint, salt_of
from rayrec.serving.store.keys import USER_ERASED, recorded
from rayrec.serving.store.tables import ERASURES, EVENTS, FILLED, IMPRESSIONS, USERS


@dataclass(frozen=True)
class Erasure:
    """The receipt of an erasure.

    Attributes:
        erasure_id: Names it.
        fingerprint: Stands for the user.
        actor: Who asked.
        asked: When, in milliseconds since the epoch.
        removed: How many rows went at once, by table.
        datasets: By the name of each Dataset that was served, the receipt of its own erasure; None while it is to come.
    """

    erasure_id: str
    fingerprint: str
    actor: str
    asked: int
    removed: Mapping[str, int]
    datasets: Mapping[str, Json | None]

    @property
    def done(self) -> bool:
        """Whether no Dataset is still to be rewritten."""
        return all(receipt is not None for receipt in self.datasets.values())


COLUMNS = [ERASURES.c[name] for name in Erasure.__dataclass_fields__]


@dataclass(frozen=True)
class StoredErasures:
    """What is read and written of erasures.

    Attributes:
        database: Where they are.
    """

    database: Database

    def erase(self, user: str, actor: str) -> Erasure | None:
        """Forget a user and all that is kept of them, record who asked, and queue their Datasets.

        Returns None where nothing is kept of such a user.
        """
        return self.database.write(lambda connection: _erase(connection, user, actor))

    def get(self, erasure_id: str) -> Erasure | None:
        """The receipt."""
        query = sa.select(*COLUMNS).where(ERASURES.c.erasure_id == erasure_id)
        row = self.database.read(lambda connection: connection.execute(query).first())
        return None if row is None else Erasure(**row._mapping)

    def page(self, after: int, count: int) -> list[tuple[int, Erasure]]:
        """Up to ``count`` receipts with their positions, from the one after a position."""
        query = sa.select(ERASURES.c.position, *COLUMNS).where(ERASURES.c.position > after)
        query = query.order_by(ERASURES.c.position).limit(count)
        rows = self.database.read(lambda connection: connection.execute(query).all())
        return [(row.position, Erasure(**{c.name: row._mapping[c] for c in COLUMNS})) for row in rows]

    def queued(self, dataset: str) -> list[tuple[str, str]]:
        """Erasures that a Dataset is still to carry out, the oldest first: ``erasure_id`` and the user's key."""
        query = sa.select(ERASURES).where(ERASURES.c.user.is_not(None)).order_by(ERASURES.c.position)
        rows = self.database.read(lambda connection: connection.execute(query).all())
        return [(row.erasure_id, row.user) for row in rows if row.datasets.get(dataset, {}) is None]

    def carried_out(self, erasure_id: str, dataset: str, receipt: Json) -> None:
        """Keep the receipt of a Dataset; with the last one the user's key goes."""
        self.database.write(lambda connection: _carried_out(connection, erasure_id, dataset, receipt))


def _erase(connection: sa.Connection, user: str, actor: str) -> Erasure | None:
    events = remove(connection, EVENTS.c.user == user)
    gone = {"events": len(events)}
    for table in (IMPRESSIONS, USERS):
        gone[table.name] = connection.execute(sa.delete(table).where(table.c.user == user)).rowcount
    if not any(gone.values()):
        return None
    if not events:
        note(connection, "user", [user])
    now = int(time.time() * 1000)
    # What a Dataset has of them until now stays away by its time.
    remember(connection, [event for event in events if event.timestamp > now])
    mark = fingerprint(salt_of(connection), user)
    recorded(connection, actor, USER_ERASED, mark)
    names = connection.execute(sa.select(FILLED.c.dataset).distinct().order_by(FILLED.c.dataset)).scalars()
    datasets: dict[str, Json | None] = dict.fromkeys(names)
    erasure = Erasure(uuid.uuid4().hex, mark, actor, now, gone, datasets)
    connection.execute(sa.insert(ERASURES), [{**asdict(erasure), "user": user if datasets else None}])
    return erasure


def _carried_out(connection: sa.Connection, erasure_id: str, dataset: str, receipt: Json) -> None:
    which = ERASURES.c.erasure_id == erasure_id
    before: dict[str, Any] = connection.execute(sa.select(ERASURES.c.datasets).where(which)).scalar_one()
    datasets = {**before, dataset: receipt}
    done = {} if None in datasets.values() else {"user": None}
    connection.execute(sa.update(ERASURES).where(which).values(datasets=datasets, **done))
