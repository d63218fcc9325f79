"""API keys in the database: who may ask what. Of a key only the hash is kept."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import sqlalchemy as sa

from rayrec.errors import RecipeError
from rayrec.serving.store.database import Database
from rayrec.serving.store.events import note
from rayrec.serving.store.tables import AUDIT, KEYS

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")
ITEM_REMOVED, USER_ERASED = "item removed", "user erased"
PREFIX = "rr"
SECRET_BYTES = 32


@dataclass(frozen=True)
class Key:
    """A key, without what it is recognised by.

    Attributes:
        key_id: Names it; part of the key, and no secret.
        name: Whose it is, for people.
        scopes: What it allows: ``read``, ``write``, ``admin``.
        rate: Requests a minute of each replica; None does not limit them.
        created: Milliseconds since the epoch.
        revoked: The same; None while it is good.
    """

    key_id: str
    name: str
    scopes: tuple[Scope, ...]
    rate: int | None
    created: int
    revoked: int | None = None


@dataclass(frozen=True)
class Keyring:
    """The keys at one moment.

    Attributes:
        keys: By the hash of each, those that are good.
        required: Whether there has ever been one: to revoke the last one must not let everybody in.
    """

    keys: Mapping[str, Key]
    required: bool

    def find(self, text: str) -> Key | None:
        """The key that this is, if it is good."""
        return self.keys.get(hashed(text))


@dataclass(frozen=True)
class StoredKeys:
    """What is read and written of keys, and who did what that cannot be undone.

    Attributes:
        database: Where they are.
    """

    database: Database

    def create(self, name: str, scopes: Sequence[Scope], rate: int | None = None) -> tuple[Key, str]:
        """Make a key. Returns it with its text, which cannot be had again."""
        key = Key(secrets.token_hex(4), name, tuple(dict.fromkeys(scopes)), rate, _now())
        text = _text(key.key_id)

        def write(connection: sa.Connection) -> None:
            row = {**asdict(key), "scopes": list(key.scopes), "hash": hashed(text)}
            connection.execute(sa.insert(KEYS), [row])
            _noted(connection, "key created", key.key_id)

        self.database.write(write)
        return key, text

    def rotate(self, key_id: str) -> str:
        """Give a key another text. Returns it; the one before is no longer good.

        Raises:
            RecipeError: There is no such key, or it was revoked.
        """
        text = _text(key_id)
        self._change(key_id, "key rotated", {"hash": hashed(text)})
        return text

    def revoke(self, key_id: str) -> None:
        """Make a key no longer good.

        Raises:
            RecipeError: There is no such key, or it was revoked.
        """
        self._change(key_id, "key revoked", {"revoked": _now()})

    def all(self) -> list[Key]:
        """Every key there has been, the oldest first."""
        query = sa.select(KEYS).order_by(KEYS.c.created, KEYS.c.key_id)
        return [_key(row) for row in self.database.read(lambda connection: connection.execute(query).all())]

    def ring(self) -> Keyring:
        """The keys as they are now."""
        rows = self.database.read(lambda connection: connection.execute(sa.select(KEYS)).all())
        return Keyring({row.hash: _key(row) for row in rows if row.revoked is None}, bool(rows))

    def audit(self) -> list[dict[str, Any]]:
        """What was done that cannot be undone, the oldest first: ``at``, ``actor``, ``action`` and ``subject``."""
        query = sa.select(AUDIT.c.at, AUDIT.c.actor, AUDIT.c.action, AUDIT.c.subject).order_by(AUDIT.c.position)
        return self.database.read(lambda connection: [{**row._mapping} for row in connection.execute(query)])

    def _change(self, key_id: str, action: str, values: Mapping[str, Any]) -> None:
        update = sa.update(KEYS).where(KEYS.c.key_id == key_id, KEYS.c.revoked.is_(None)).values(values)

        def write(connection: sa.Connection) -> bool:
            changed = connection.execute(update).rowcount > 0
            if changed:
                _noted(connection, action, key_id)
            return changed

        if not self.database.write(write):
            raise RecipeError(f"there is no key '{key_id}', or it was revoked. `rayrec keys list NAME` shows them.")


def hashed(text: str) -> str:
    """What is kept of a key. Its secret is as long as the hash: a slow one would not make it harder to guess."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def recorded(connection: sa.Connection, actor: str, action: str, subject: str) -> None:
    """Write into the audit log, in a transaction."""
    connection.execute(sa.insert(AUDIT), [{"at": _now(), "actor": actor, "action": action, "subject": subject}])


def _noted(connection: sa.Connection, action: str, key_id: str) -> None:
    recorded(connection, "command line", action, key_id)
    note(connection, "key", [key_id])


def _text(key_id: str) -> str:
    return f"{PREFIX}_{key_id}_{secrets.token_urlsafe(SECRET_BYTES)}"


def _key(row: sa.Row[Any]) -> Key:
    return Key(row.key_id, row.name, tuple(row.scopes), row.rate, row.created, row.revoked)


def _now() -> int:
    return int(time.time() * 1000)
