"""What stands for users and events that are to be forgotten: it cannot be made without the database it is kept in."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

import sqlalchemy as sa

from rayrec.serving.store.tables import SALT


def salt_of(connection: sa.Connection) -> bytes:
    """What fingerprints of this database are made with."""
    return bytes(connection.execute(sa.select(SALT.c.value)).scalar_one())


def fingerprint(salt: bytes, user: str) -> str:
    """What stands for a user, with what `salt_of` the database gave."""
    return hmac.digest(salt, user.encode(), "sha256").hex()


def event_fingerprint(salt: bytes, event: Sequence[object]) -> str:
    """The same of an event: of its user, item, type and timestamp."""
    return fingerprint(salt, "\0".join(map(str, event)))
