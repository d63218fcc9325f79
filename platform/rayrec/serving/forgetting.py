"""Erasures that were asked for over HTTP are carried out in a Dataset."""

from __future__ import annotations

from collections.abc import Iterator

from rayrec.artifacts import Json, Storage
from rayrec.data.erasure import erase_user
from rayrec.serving.store.database import Database
from rayrec.serving.store.erasures import Erasure, StoredErasures


def carry_out(storage: Storage, name: str, database: Database) -> Iterator[Erasure]:
    """Rewrite a Dataset without each user that an endpoint's database has queued for it. Gives the receipts.

    What is cut off is finished by the next call.

    Raises:
        DataError: There is no such Dataset.
        StorageError: Another erasure is under way.
    """
    erasures = StoredErasures(database)
    for erasure_id, user in erasures.queued(name):
        erasures.carried_out(erasure_id, name, _receipt(storage, name, user))
        done = erasures.get(erasure_id)
        if done is not None:
            yield done


def _receipt(storage: Storage, name: str, user: str) -> Json:
    if user != user.strip() or not user:
        # It would be read as somebody else's.
        return {"state": "unknown", "why": "keys of a Dataset have no spaces around them, this one has"}
    return erase_user(storage, name, user, known_only=False)
