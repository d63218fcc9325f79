"""Users in the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from rayrec.serving.state import User
from rayrec.serving.store.database import Database
from rayrec.serving.store.events import in_place, note
from rayrec.serving.store.tables import USERS


@dataclass(frozen=True)
class StoredUsers:
    """What is read and written of users.

    Attributes:
        database: Where they are.
    """

    database: Database

    def put(self, users: Sequence[User]) -> None:
        """Keep users, in place of those with their keys."""
        rows = {user.user: asdict(user) for user in users}

        def write(connection: sa.Connection) -> None:
            connection.execute(in_place(connection, USERS), [*rows.values()])
            note(connection, "user", [*rows])

        if rows:
            self.database.write(write)

    def change(self, key: str, values: Mapping[str, Any]) -> bool:
        """Change some attributes of a user. Returns whether there is one."""
        update = sa.update(USERS).where(USERS.c.user == key).values({"user": key, **values})
        return self.database.write(lambda connection: connection.execute(update).rowcount > 0)

    def get(self, key: str) -> User | None:
        """A user."""
        found = self._read(sa.select(USERS).where(USERS.c.user == key))
        return found[0] if found else None

    def page(self, after: str | None, count: int) -> list[User]:
        """Up to ``count`` users by their keys, from the one after a key."""
        query = sa.select(USERS).order_by(USERS.c.user).limit(count)
        return self._read(query if after is None else query.where(USERS.c.user > after))

    def _read(self, query: sa.Select[Any]) -> list[User]:
        return self.database.read(lambda connection: [User(**row._mapping) for row in connection.execute(query)])
