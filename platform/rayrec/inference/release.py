"""Releases: what is promoted, served, rolled back and compared. A Release pins everything an answer depends on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from rayrec.artifacts import Json, Storage, canonical, short_digest
from rayrec.errors import ModelError, StorageError
from rayrec.inference.bundle import Bundle, open_bundle
from rayrec.inference.index import Indexes, open_indexes

SCHEMA = 1
EXACT = "exact"
"""In place of an index: all items are scored."""


@dataclass(frozen=True)
class Release:
    """A published Release.

    Attributes:
        storage: Where it and its parts live.
        content: What it pins: ``models`` by role (``main`` and ``popular``) and their ``variants``, the ``dataset``
            with its catalogue and transforms, the ``index`` of the items with what was measured of it, or `EXACT`, the
            funnel's policy, the test metrics; ``served``: the folds that
            ``models`` learnt from, and the bundles by role that were ``evaluated``.
    """

    storage: Storage
    content: Json

    @cached_property
    def digest(self) -> str:
        """Its name."""
        return short_digest(self.content)

    @property
    def path(self) -> str:
        """Its file in the storage."""
        return f"releases/{self.digest}.json"

    @property
    def uri(self) -> str:
        """Its file's URI."""
        return self.storage.url(self.path)

    @property
    def name(self) -> str:
        """The name it is registered under."""
        return str(self.content["name"])

    @property
    def evaluated(self) -> dict[str, str]:
        """The bundles by role that the test metrics are of: not what is served, where that was trained again."""
        bundles: dict[str, str] = self.content.get("served", {}).get("evaluated", self.content["models"])
        return bundles

    def indexes(self) -> Indexes | None:
        """The indexes of the model's items, checked; None where all items are scored.

        Raises:
            ModelError: They are damaged or gone.
        """
        pinned = self.content.get("index", EXACT)
        return None if pinned == EXACT else open_indexes(self.storage, pinned["path"])

    def bundle(self, role: str = "main") -> Bundle:
        """The model in a role, checked.

        Raises:
            ModelError: It is damaged or gone.
        """
        return open_bundle(self.storage, self.content["models"][role])


def publish_release(storage: Storage, content: Json) -> Release:
    """Write a Release. The same content gives the same Release."""
    release = Release(storage, {"schema": SCHEMA, **content})
    storage.write_new(release.path, canonical(release.content))
    return release


def open_release(storage: Storage, digest: str) -> Release:
    """The Release with this digest.

    Raises:
        ModelError: It is not there, or was changed.
    """
    try:
        release = Release(storage, storage.read_json(f"releases/{digest}.json"))
    except FileNotFoundError as error:
        message = f"there is no Release {digest} in {storage.uri}. `rayrec list` shows what there is."
        raise ModelError(message) from error
    except StorageError as error:
        raise ModelError(str(error)) from error
    if release.digest != digest:
        raise ModelError(f"{release.storage.url(f'releases/{digest}.json')} was changed after it was published.")
    return release
