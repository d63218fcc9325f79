"""From what a recipe calls a source to the files behind it."""

from __future__ import annotations

import glob
import posixpath
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import fsspec

from rayrec.artifacts import TEMPORARY, Json, Storage, short_digest
from rayrec.data import samples, simulator
from rayrec.errors import DataError
from rayrec.recipe import Recipe
from rayrec.recipe_data import TableSource

SCHEME = "rayrec://"
SIMULATION = {"users": 1500, "items": 1000, "events": 60_000, "seed": 7}
READABLE = (".csv", ".tsv", ".txt", ".inter", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        uri: Where it is.
        name: Its path below the folder that all files of its source share: the same wherever that folder lies.
        ordinal: Its place among all files of all sources: by source, then by path. Ties in time are broken by it.
        source: The position of its source in the recipe.
        size: Bytes.
        version: What the filesystem knows about its last change.
    """

    uri: str
    name: str
    ordinal: int
    source: int
    size: int
    version: str

    @property
    def file_id(self) -> str:
        """A short name that event ids start with: from the file's own name, place and size.

        48 bits: of ten thousand files two agree with a chance of two in ten million.
        """
        return short_digest([self.source, PurePosixPath(self.uri).name, self.ordinal, self.size])[:12]

    def fingerprint(self) -> Json:
        """What identifies its content without reading it."""
        return {"uri": self.uri, "size": self.size, "version": self.version}


def provide(recipe: Recipe, storage: Storage) -> None:
    """Fetch or make the data behind ``rayrec://`` paths, once, below the storage's ``sources/``."""
    tables: list[TableSource | None] = [*recipe.data.sources, recipe.data.items, recipe.data.users]
    paths = [table.path for table in tables if table and table.path.startswith(SCHEME)]
    for name in sorted({path.removeprefix(SCHEME).split("/")[0] for path in paths}):
        provide_sample(name, storage)


def provide_sample(name: str, storage: Storage) -> str:
    """Fetch a public data set, or simulate one, into the storage. Done already: nothing happens. Returns its folder."""
    inside = f"sources/{name}"
    if storage.is_local:
        _fetch(name, Path(storage.full(inside)))
    elif not storage.exists(f"{inside}/{_last_file(name)}"):
        with tempfile.TemporaryDirectory(prefix="rayrec-source-") as temporary:
            folder = Path(temporary) / name
            _fetch(name, folder)
            for file in sorted(folder.iterdir(), key=lambda file: file.name == _last_file(name)):
                storage.replace(f"{inside}/{file.name}", file.read_bytes())
    return storage.full(inside) if storage.is_local else storage.url(inside)


def _fetch(name: str, folder: Path) -> None:
    if name != "simulated":
        samples.fetch(name, folder)
    elif not (folder / _last_file(name)).exists():
        _simulate(folder)


def _last_file(name: str) -> str:
    """The file that is written last: with it, all are there."""
    return "events.csv" if name == "simulated" else samples.MANIFEST


def _simulate(folder: Path) -> None:
    """Under another name first: half a log, left by an interrupted run, would pass for the whole one."""
    temporary = folder.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    simulator.write(simulator.simulate(**SIMULATION), temporary)
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(temporary.iterdir(), key=lambda file: file.name == _last_file("simulated")):
        file.replace(folder / file.name)
    temporary.rmdir()


def check_sources(recipe: Recipe, storage: Storage) -> list[SourceFile]:
    """Find what is wrong with the paths of a recipe before anything is started. Returns the files.

    Raises:
        DataError: A path leads to nothing, or only to empty files.
    """
    provide(recipe, storage)
    tables = [recipe.data.items, recipe.data.users]
    return list_files([*recipe.data.sources, *(table for table in tables if table)], storage)


def list_files(sources: list[TableSource], storage: Storage) -> list[SourceFile]:
    """Every file of the sources, in the order that breaks ties: by source, then by path.

    Raises:
        DataError: A path leads to no file, or a folder holds none that can be read.
    """
    found: list[SourceFile] = []
    for index, source in enumerate(sources):
        files = _files_of(source, storage)
        shared = posixpath.commonpath([posixpath.dirname(uri) for uri, _ in files])
        for uri, info in files:
            version = str(info.get("mtime") or info.get("ETag") or info.get("LastModified") or "")
            name = posixpath.relpath(uri, shared)
            found.append(SourceFile(uri, name, len(found), index, int(info["size"]), version))
    return found


def _files_of(source: TableSource, storage: Storage) -> list[tuple[str, Json]]:
    """URIs and filesystem infos of one source, sorted by path."""
    uri = source.path
    if uri.startswith(SCHEME):
        uri = storage.url(f"sources/{uri.removeprefix(SCHEME)}")
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        if filesystem.isdir(path):
            paths = _inside(filesystem, path)
        elif glob.has_magic(path) and not filesystem.exists(path):
            found = [p for p in filesystem.glob(path) if not _hidden(PurePosixPath(p).name)]
            paths = [p for f in found for p in (_inside(filesystem, f) if filesystem.isdir(f) else [f])]
        else:
            paths = [path] if filesystem.exists(path) else []
        infos = [(filesystem.unstrip_protocol(p), filesystem.info(p)) for p in sorted(set(paths))]
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{source.path}: cannot be reached ({error}). Check `path` in the recipe.") from error
    if not infos:
        raise DataError(
            f"{source.path}: there is no such file, or no readable file in that folder "
            f"({', '.join(READABLE)}, also compressed). Check `path` in the recipe."
        )
    if not any(info["size"] for _, info in infos):
        raise DataError(f"{source.path}: the file is empty (0 bytes). Check `path` in the recipe.")
    return [(name, info) for name, info in infos if info["size"]]


def _inside(filesystem: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """The files of a folder that are meant to be read: of a known kind, neither hidden nor in a hidden folder."""
    inside = ((path, PurePosixPath(path).relative_to(folder).parts) for path in filesystem.find(folder))
    return [path for path, parts in inside if _readable(path) and not any(_hidden(part) for part in parts)]


def _hidden(name: str) -> bool:
    """By the customs of Unix, of Hadoop and Spark (``_SUCCESS``, ``_temporary``), and of archives made on a Mac."""
    return name.startswith((".", "_"))


def _readable(path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return name.endswith(READABLE)
