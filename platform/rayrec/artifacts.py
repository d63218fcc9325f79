"""Artifacts: checksummed files, published by their manifest, on any filesystem that fsspec reaches.

Files go first, under names made from their content; the manifest goes last, by a write that fails if it is there
already. So an artifact without its manifest does not exist, two writers of the same artifact agree, and a reader sees
the whole artifact or none of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rayrec.errors import ModelError, RayrecError, StorageError

Json = dict[str, Any]

DIGEST_LENGTH = 16
"""Hexadecimal digits of a digest in a file's name: 64 bits; the full SHA-256 stands in the manifest."""


TEMPORARY = ".tmp-"
"""How names begin that are no artifacts, not yet or never."""

CUT_OFF = re.compile(rf"{re.escape(TEMPORARY)}[0-9a-f]{{12,32}}")
ROOMS = ("datasets", "evaluations", "indexes", "models", "releases", "runs", "sources", "stages", "sweeps")
"""The folders of a storage."""

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "az"}
"""Protocols whose paths begin with a bucket, which is never made on the way."""


def home() -> Path:
    """Where rayrec keeps what is this machine's own: ``RAYREC_HOME``, by default ``~/.rayrec``.

    Raises:
        StorageError: ``RAYREC_HOME`` is a URI.
    """
    given = os.environ.get("RAYREC_HOME")
    if given and "://" in given:
        raise StorageError(
            f"RAYREC_HOME={given} is a URI, but it names a folder of this machine. Set RAYREC_STORAGE to it instead."
        )
    return Path(given or Path.home() / ".rayrec").expanduser().absolute()


def default_storage() -> str:
    """The storage where a recipe names none: ``RAYREC_STORAGE``, by default `home`."""
    return os.environ.get("RAYREC_STORAGE") or str(home())


def canonical(value: object) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def short_digest(value: object) -> str:
    """A name made from the content of a JSON value."""
    return digest(canonical(value))[:DIGEST_LENGTH]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Storage:
    """A folder, local or remote, that holds everything rayrec makes.

    Paths are relative to it, with ``/``. The object travels to workers, which must reach the same URI.

    Attributes:
        uri: A local path or any URI that fsspec understands (``s3://bucket/folder``, ``memory://x``, ...).
    """

    uri: str

    @classmethod
    def open(cls, uri: str | Path | None = None) -> Storage:
        """The storage at ``uri``; by default `default_storage`. A folder is made if it does not exist, a bucket is not.

        Raises:
            StorageError: It cannot be reached or made.
        """
        text = str(uri) if uri is not None else default_storage()
        try:
            storage = cls(str(Path(text).expanduser().absolute()) if "://" not in text else text.rstrip("/"))
        except RuntimeError as error:
            raise StorageError(f"storage '{text}' cannot be used: {error}") from error
        if "\0" in text:
            raise StorageError(f"storage {text!r} cannot be used: it holds a NUL character.")
        with storage._reporting("", "open"):
            if storage.uri.partition("://")[0] in OBJECT_STORES:
                storage._require_bucket()
            else:
                storage._make_root()
        return storage

    def _make_root(self) -> None:
        try:
            self.filesystem.makedirs(self.root, exist_ok=True)
        except FileNotFoundError as error:
            # As the system says where nothing can be made, such as below /proc.
            raise PermissionError(f"no folder can be made there ({error.strerror})") from error

    def _require_bucket(self) -> None:
        """Listing the folder tells whether the store answers; where it is empty, the bucket itself is asked for."""
        try:
            self.filesystem.ls(self.root)
        except FileNotFoundError:
            try:
                # Who may use the folder need not be allowed to list the whole bucket.
                with suppress(PermissionError):
                    self.filesystem.ls(self.root.split("/")[0])
            except FileNotFoundError as error:
                message = f"storage '{self.uri}' cannot be used: there is no such bucket. Make it, or correct the name."
                raise StorageError(message) from error

    @property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        """The fsspec filesystem (cached by fsspec)."""
        return self._located[0]

    @property
    def root(self) -> str:
        """The path of the storage on its filesystem."""
        return self._located[1]

    @property
    def _located(self) -> tuple[fsspec.AbstractFileSystem, str]:
        # Listings change under us: other processes write to the same storage.
        try:
            return cast("tuple[Any, str]", fsspec.core.url_to_fs(self.uri, use_listings_cache=False))
        except (ImportError, ValueError) as error:
            raise StorageError(f"storage '{self.uri}' cannot be used: {error}") from error

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine's own filesystem (a mounted share counts)."""
        return isinstance(self.filesystem, LocalFileSystem)

    def full(self, path: str) -> str:
        """The path on the filesystem."""
        return f"{self.root}/{path}" if path else self.root

    def url(self, path: str) -> str:
        """The URI of a path."""
        return f"{self.uri}/{path}"

    def exists(self, path: str) -> bool:
        """Whether a file or folder is there."""
        with self._reporting(path, "read"):
            return bool(self.filesystem.exists(self.full(path)))

    def read(self, path: str) -> bytes:
        """A file's content. FileNotFoundError when it is not there."""
        with self._reporting(path, "read"):
            return cast("bytes", self.filesystem.cat_file(self.full(path)))

    def read_json(self, path: str) -> Json:
        """A JSON object. StorageError when it is damaged."""
        try:
            value = json.loads(self.read(path))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise StorageError(f"{self.url(path)} is damaged (it is no JSON object). Remove it and run again.")
        return value

    def list(self, path: str) -> list[str]:
        """Names in a folder, sorted; none when the folder is not there."""
        with self._reporting(path, "list"):
            try:
                found = self.filesystem.ls(self.full(path), detail=False, refresh=True)
            except FileNotFoundError:
                return []
        return sorted(PurePosixPath(name).name for name in found if not PurePosixPath(name).name.startswith(TEMPORARY))

    def temporaries(self) -> Sequence[str]:
        """What was cut off while it was written, by whom a kill left no time to clean up.

        Looked for in the folders that rayrec makes: others may keep things beside them.
        """
        with self._reporting("", "list"):
            files = [file for room in ROOMS for file in self.filesystem.find(self.full(room))]
        inside = [PurePosixPath(file).relative_to(self.root).parts for file in files]
        marked = [(parts, [bool(CUT_OFF.fullmatch(part)) for part in parts]) for parts in inside]
        return sorted({"/".join(parts[: flags.index(True) + 1]) for parts, flags in marked if any(flags)})

    def write_new(self, path: str, data: bytes) -> bool:
        """Write a file that must not exist yet; atomic. False, and nothing written, when it does."""
        with self._reporting(path, "write"):
            if self.is_local:
                return self._write_local(path, data, replace=False)
            try:
                self.filesystem.pipe_file(self.full(path), data, mode="create")
            except FileExistsError:
                return False
        return True

    def replace(self, path: str, data: bytes) -> None:
        """Write a file or replace it whole; atomic."""
        with self._reporting(path, "write"):
            if self.is_local:
                self._write_local(path, data, replace=True)
            else:
                self.filesystem.pipe_file(self.full(path), data)

    def write_content(self, folder: str, data: bytes, suffix: str) -> str:
        """Write a file named by its content into ``folder``. Returns its path. Writing it again changes nothing."""
        path = f"{folder}/{digest(data)[:DIGEST_LENGTH]}{suffix}"
        self.write_new(path, data)
        return path

    @contextmanager
    def scratch(self, path: str) -> Iterator[IO[bytes]]:
        """A new working file, open for writing: neither atomic nor flushed to the disk, and gone after a crash."""
        with self._reporting(path, "write"):
            if self.is_local:
                Path(self.full(path)).parent.mkdir(parents=True, exist_ok=True)
            with self.filesystem.open(self.full(path), "wb") as file:
                yield file

    @contextmanager
    def random_access(self, path: str) -> Iterator[IO[bytes]]:
        """A file, open for reading here and there. FileNotFoundError when it is not there."""
        with self._reporting(path, "read"), self.filesystem.open(self.full(path), "rb") as file:
            yield file

    @contextmanager
    def workspace(self, path: str) -> Iterator[str]:
        """A folder below ``path`` for working files, gone afterwards."""
        folder = f"{path}/{TEMPORARY}{uuid.uuid4().hex[:12]}"
        try:
            yield folder
        finally:
            if self.exists(folder):
                self.remove(folder)

    def modified(self, path: str) -> float:
        """When a file, or the latest file of a folder, was written: seconds since the epoch.

        FileNotFoundError when there is none: a folder that has just become empty is of no age.
        """
        with self._reporting(path, "read"):
            full = self.full(path)
            files = self.filesystem.find(full) if self.filesystem.isdir(full) else [full]
            times = [self.filesystem.modified(file).timestamp() for file in files]
        if not times:
            raise FileNotFoundError(full)
        return max(times)

    def remove(self, path: str) -> None:
        """Remove a file or a folder with all it holds."""
        with self._reporting(path, "remove"):
            self.filesystem.rm(self.full(path), recursive=True)

    def _write_local(self, path: str, data: bytes, *, replace: bool) -> bool:
        """Through a temporary file beside it, flushed to the disk before it gets its name. False when that is taken."""
        target = Path(self.full(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.replace(target)
            else:
                # Unlike a rename, a link fails when the name is taken.
                try:
                    target.hardlink_to(temporary)
                except FileExistsError:
                    return False
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(target.parent)
        return True

    @contextmanager
    def _reporting(self, path: str, verb: str) -> Iterator[None]:
        """Turn what the filesystem raises into one message. A missing file stays FileNotFoundError."""
        try:
            yield
        except (FileNotFoundError, RayrecError):
            raise
        except Exception as error:
            # Clients of object stores raise kinds of their own; FileExistsError: a file stands where a folder should.
            if self.is_local and not isinstance(error, OSError):
                raise
            reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
            raise StorageError(
                f"cannot {verb} {self.url(path)}: {reason}. "
                "Check the path, its permissions and free space, or set `storage` (or RAYREC_STORAGE) to another place."
            ) from error


def _flush_folder(folder: Path) -> None:
    """A new name is on the disk only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_folder(storage: Storage, prefix: str, folder: Path, manifest: Json, manifest_name: str) -> str:
    """Publish a local folder as an artifact.

    Args:
        storage: Where to.
        prefix: The artifact's folder is ``PREFIX/DIGEST``.
        folder: The files; sub-folders are kept.
        manifest: What the manifest says; ``files`` is added: each file's ``sha256`` and ``bytes``.
        manifest_name: The manifest's file name.

    Returns:
        The artifact's path. The same content gives the same path, whoever writes it.
    """
    local = {str(p.relative_to(folder).as_posix()): p for p in sorted(folder.rglob("*")) if p.is_file()}
    files = {name: {"sha256": file_digest(p), "bytes": p.stat().st_size} for name, p in local.items()}
    whole = {**manifest, "files": files}
    path = f"{prefix}/{short_digest(whole)}"
    for name, file in local.items():
        storage.replace(f"{path}/{name}", file.read_bytes())
    storage.write_new(f"{path}/{manifest_name}", canonical(whole))
    return path


def open_folder(storage: Storage, path: str, manifest_name: str, copies: Path | None = None) -> tuple[Path, Json]:
    """A published folder on this machine, every file checked against the manifest, and the manifest.

    Args:
        storage: Where it is.
        path: Its path there.
        manifest_name: The manifest's file name.
        copies: Where a copy is made of what is not on this machine; by default below `home`, to be found again.

    Raises:
        ModelError: It is not there, or a file is not what was published.
    """
    try:
        manifest = storage.read_json(f"{path}/{manifest_name}")
    except FileNotFoundError as error:
        raise ModelError(f"{storage.url(path)} is not a published artifact: it has no {manifest_name}.") from error
    except StorageError as error:
        raise ModelError(str(error)) from error
    if short_digest(manifest) != PurePosixPath(path).name:
        raise ModelError(f"{storage.url(path)}/{manifest_name} was changed after it was published. Publish it again.")
    folder = Path(storage.full(path)) if storage.is_local else _downloaded(storage, path, manifest, copies)
    for name in manifest["files"]:
        if not _intact(folder, name, manifest):
            raise ModelError(
                f"{storage.url(path)}/{name} is missing or was changed after it was published "
                "(its checksum differs). Restore it from a copy, or remove the folder and run again."
            )
    return folder, manifest


def _intact(folder: Path, name: str, manifest: Mapping[str, Any]) -> bool:
    """Whether a file is what the manifest says it was when it was published."""
    file = folder / name
    return file.is_file() and file_digest(file) == manifest["files"][name]["sha256"]


def _downloaded(storage: Storage, path: str, manifest: Mapping[str, Any], copies: Path | None) -> Path:
    """A copy, made once; what is missing or damaged in it is fetched again."""
    cache = Storage.open(copies or home() / "cache")
    copy = digest(storage.url(path).encode())[:DIGEST_LENGTH]
    folder = Path(cache.full(copy))
    for name in manifest["files"]:
        if not _intact(folder, name, manifest):
            # A file absent from the storage stays absent here, which the caller reports.
            with suppress(FileNotFoundError):
                cache.replace(f"{copy}/{name}", storage.read(f"{path}/{name}"))
    return folder


def code_version(*rooms: str) -> str:
    """A digest of the source of these rooms (folders or files of this package), part of every stage's key.

    A changed line in a room re-runs the stages that go through it, and no others.
    """
    package = Path(__file__).parent
    sources: dict[str, str] = {}
    for room in rooms:
        base = package / room
        for file in sorted(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]:
            sources[str(file.relative_to(package).as_posix())] = file_digest(file)
    return short_digest(sources)
