"""From what a recipe calls a source to the files behind it."""

from __future__ import annotations

import glob
import os
import posixpath
import re
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rayrec.artifacts import TEMPORARY, Json, Storage
from rayrec.data import samples, simulator
from rayrec.data.readers import FORMATS
from rayrec.data.sql import is_database, look_up
from rayrec.data.variables import expanded, hidden
from rayrec.errors import DataError
from rayrec.recipe import Recipe
from rayrec.recipe_data import TableSource

SCHEME = "rayrec://"
SIMULATION = {"users": 1500, "items": 1000, "events": 60_000, "seed": 7}
READABLE = (".csv", ".tsv", ".txt", ".inter", *FORMATS)
WILDCARD = re.compile(r"[*?\[]")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, or the database that it is.

    Attributes:
        uri: Where it is, with the variables of the source's path in place of their values; of a database the URL
            without user, password and options.
        name: Its path below the source's own, up to the first wildcard: the same wherever that lies, and however many
            files there come to be.
        ordinal: Its place among all files of all sources: by source, then by path. Ties in time are broken by it.
        source: The position of its source in the recipe.
        size: Bytes.
        version: What the filesystem knows about its last change; of a database see `rayrec.data.sql.look_up`.
    """

    uri: str
    name: str
    ordinal: int
    source: int
    size: int
    version: str

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
        if is_database(source):
            database = look_up(source)
            name = source.table or "query"
            found.append(SourceFile(database.uri, name, len(found), index, database.size, database.version))
            continue
        for uri, below, info in _files_of(source, storage):
            version = str(info.get("mtime") or info.get("ETag") or info.get("LastModified") or "")
            shown, name = (hidden(text, source.path) for text in (uri, below))
            found.append(SourceFile(shown, name, len(found), index, int(info["size"] or 0), version))
    return found


def first_file(source: TableSource) -> str:
    """The URI of a source's first file, for a source that is not ``rayrec://``.

    Raises:
        DataError: There is none.
    """
    return _found(source, expanded(source.path))[0][0]


def _files_of(source: TableSource, storage: Storage) -> list[tuple[str, str, Json]]:
    """URIs, names and filesystem infos of one source, sorted by path."""
    if source.path.startswith(SCHEME):
        return _found(source, storage.url(f"sources/{source.path.removeprefix(SCHEME)}"))
    return _found(source, expanded(source.path))


def _found(source: TableSource, uri: str) -> list[tuple[str, str, Json]]:
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        root = posixpath.dirname(path)
        if filesystem.isdir(path):
            root, paths = path, _inside(filesystem, path, source)
        elif glob.has_magic(path) and not filesystem.exists(path):
            root = posixpath.dirname(WILDCARD.split(path, maxsplit=1)[0])
            found = [p for p in filesystem.glob(path) if not _hidden(PurePosixPath(p).name)]
            paths = [p for f in found for p in (_inside(filesystem, f, source) if filesystem.isdir(f) else [f])]
        else:
            paths = [path] if filesystem.exists(path) else []
        named = [(p, posixpath.relpath(p, root)) for p in sorted(set(paths))]
        infos = [(filesystem.unstrip_protocol(p), name, filesystem.info(p)) for p, name in named]
    except Exception as error:
        # Clients of object stores and archives raise kinds of their own.
        reason = hidden(str(error), source.path)
        raise DataError(f"{source.path}: cannot be reached ({reason}). Check `path` in the recipe.") from error
    if not infos:
        raise DataError(
            f"{source.path}: there is no such file, or no readable file in that folder "
            f"({', '.join(READABLE)}, also compressed). Check `path` in the recipe."
        )
    # A web server may not tell the size.
    if all(info["size"] == 0 for *_, info in infos):
        raise DataError(f"{source.path}: the file is empty (0 bytes). Check `path` in the recipe.")
    return [found for found in infos if found[-1]["size"] != 0]


def _inside(filesystem: fsspec.AbstractFileSystem, folder: str, source: TableSource) -> list[str]:
    """The files of a folder that are meant to be read: of a known kind, neither hidden nor in a hidden folder."""
    found = _walk(folder) if isinstance(filesystem, LocalFileSystem) else filesystem.find(folder)
    inside = ((path, PurePosixPath(path).relative_to(folder).parts) for path in found)
    return [path for path, parts in inside if _readable(path, source) and not any(_hidden(part) for part in parts)]


def _walk(folder: str) -> Iterator[str]:
    """The files below a folder of this machine. fsspec passes over the folders that may not be looked into."""

    def refuse(error: OSError) -> None:
        raise error

    for inner, _, names in os.walk(folder, onerror=refuse):
        yield from (posixpath.join(inner, name) for name in names)


def _hidden(name: str) -> bool:
    """By the customs of Unix, of Hadoop and Spark (``_SUCCESS``, but ``_day=1``), and of archives made on a Mac."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _readable(path: str, source: TableSource) -> bool:
    """By its name; where the recipe says the format, names may have no ending, as Hive's have none."""
    name = PurePosixPath(path).name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return name.endswith(READABLE) or (source.format != "auto" and "." not in name)
