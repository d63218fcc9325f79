"""From what a recipe calls a source to the files behind it."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import fsspec

from rayrec.artifacts import Json, Storage, home, short_digest
from rayrec.data import samples, simulator
from rayrec.errors import DataError
from rayrec.recipe import Recipe, TableSource

SCHEME = "rayrec://"
SIMULATION = {"users": 1500, "items": 1000, "events": 60_000, "seed": 7}
READABLE = (".csv", ".tsv", ".txt", ".inter", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        uri: Where it is.
        ordinal: Its place among all files of all sources: by source, then by path. Ties in time are broken by it.
        source: The position of its source in the recipe.
        size: Bytes.
        version: What the filesystem knows about its last change.
    """

    uri: str
    ordinal: int
    source: int
    size: int
    version: str

    @property
    def file_id(self) -> str:
        """A short name that event ids start with: from the file's own name, place and size."""
        return short_digest([self.source, PurePosixPath(self.uri).name, self.ordinal, self.size])[:8]

    def fingerprint(self) -> Json:
        """What identifies its content without reading it."""
        return {"uri": self.uri, "size": self.size, "version": self.version}


def provide(recipe: Recipe, storage: Storage) -> None:
    """Fetch or make the data behind ``rayrec://`` paths, once, below the storage's ``sources/``."""
    tables: list[TableSource | None] = [*recipe.data.sources, recipe.data.items, recipe.data.users]
    names = {table.path.removeprefix(SCHEME).split("/")[0] for table in tables if table and table.path.startswith(SCHEME)}
    for name in sorted(names):
        provide_sample(name, storage)


def provide_sample(name: str, storage: Storage) -> None:
    """Fetch a public data set, or simulate one, into the storage. Done already: nothing happens."""
    inside = f"sources/{name}"
    folder = Path(storage.full(inside)) if storage.is_local else home() / inside
    if name == "simulated":
        if not (folder / "events.csv").exists():
            simulator.write(simulator.simulate(**SIMULATION), folder)
    else:
        samples.fetch(name, folder)
    if not storage.is_local:
        for file in sorted(folder.iterdir()):
            storage.write_new(f"{inside}/{file.name}", file.read_bytes())


def list_files(sources: list[TableSource], storage: Storage) -> list[SourceFile]:
    """Every file of the sources, in the order that breaks ties: by source, then by path.

    Raises:
        DataError: A path leads to no file, or a folder holds none that can be read.
    """
    found: list[SourceFile] = []
    for index, source in enumerate(sources):
        for uri, info in _files_of(source, storage):
            version = str(info.get("mtime") or info.get("ETag") or info.get("LastModified") or "")
            found.append(SourceFile(uri, len(found), index, int(info["size"]), version))
    return found


def _files_of(source: TableSource, storage: Storage) -> list[tuple[str, Json]]:
    """URIs and filesystem infos of one source, sorted by path."""
    uri = source.path
    if uri.startswith(SCHEME):
        uri = storage.url(f"sources/{uri.removeprefix(SCHEME)}")
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        if filesystem.isdir(path):
            paths = [p for p in filesystem.find(path) if _readable(p)]
        elif glob.has_magic(path) and not filesystem.exists(path):
            paths = [p for p in filesystem.glob(path) if not filesystem.isdir(p)]
        else:
            paths = [path] if filesystem.exists(path) else []
        infos = [(filesystem.unstrip_protocol(p), filesystem.info(p)) for p in sorted(paths)]
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


def _readable(path: str) -> bool:
    """Whether a file of a folder is meant to be read: not hidden, and of a known kind."""
    name = PurePosixPath(path).name.lower()
    if name.startswith((".", "_")):
        return False
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return name.endswith(READABLE)
