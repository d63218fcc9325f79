"""Dataset: an immutable log with its vocabularies and tables, found by numbered manifests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec.artifacts import Json, Storage, canonical, digest, short_digest
from rayrec.data.passes import parquet_bytes, part
from rayrec.errors import DataError
from rayrec.recipe import NAME_PATTERN

ATTEMPTS = 20
SCHEMA = 2
KEYS = {"files", "events", "vocab", "items", "users", "quarantine", "counts", "statistics"}


@dataclass(frozen=True)
class Dataset:
    """One version of a Dataset.

    Attributes:
        storage: Where it lives.
        name: Its name; the folder is ``datasets/NAME``.
        number: The number of its manifest.
        manifest: What the manifest says.
    """

    storage: Storage
    name: str
    number: int
    manifest: Json

    @property
    def path(self) -> str:
        """Its folder in the storage."""
        return f"datasets/{self.name}"

    @property
    def uri(self) -> str:
        """Its manifest's URI."""
        return self.storage.url(manifest_path(self.name, self.number))

    @cached_property
    def digest(self) -> str:
        """Identifies the content: equal input gives equal digests."""
        return short_digest(self.manifest)

    @cached_property
    def ranks(self) -> np.ndarray:
        """The place of each file in the order of the sources, by its ordinal: ``[F]`` int64.

        By source, then by name: files that were appended may belong before those that were there.
        """
        names = [(file["source"], file["name"]) for file in self.manifest["files"]]
        ranks = np.empty(len(names), np.int64)
        ranks[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
        return ranks

    def vocabulary(self, table: str) -> pa.Table:
        """The vocabulary of ``user`` or ``item``: `rayrec.data.vocabulary.SCHEMA`."""
        return read_part(self.storage, self.manifest["vocab"][table])

    def parts(self) -> list[Json]:
        """Every file that the manifest lists."""
        manifest = self.manifest
        single = [manifest[key] for key in ("items", "users", "statistics") if manifest[key]]
        return [*manifest["events"], *manifest["vocab"].values(), *manifest["quarantine"], *single]

    def catalogue(self) -> pa.Table:
        """Every item: ``key`` string, ``title`` string and ``categories`` list of strings, null where unknown.

        An item that the table lists without categories has an empty list.
        """
        keys = self.vocabulary("item").select(["key"])
        listed = self.manifest["items"]
        if listed is None:
            return keys.append_column("title", pa.nulls(len(keys), pa.string())).append_column(
                "categories", pa.nulls(len(keys), pa.list_(pa.string()))
            )
        items, columns = read_part(self.storage, listed), self.manifest["item_columns"]
        rows = pc.index_in(keys["key"].combine_chunks(), items["item"].combine_chunks())
        found = items.take(rows)
        titled = keys.append_column("title", _given(found, columns["title"]))
        given = _given(found, columns["categories"]).to_pylist()
        separator, listed_rows = self.manifest["category_separator"], rows.is_valid().to_pylist()
        mapped = columns["categories"] is not None
        split = [
            [part.strip() for part in (text or "").split(separator) if part.strip()] if mapped and is_listed else None
            for text, is_listed in zip(given, listed_rows, strict=True)
        ]
        return titled.append_column("categories", pa.array(split, pa.list_(pa.string())))


def vocabularies(dataset: Dataset) -> dict[str, pa.Table]:
    """Both vocabularies, by name."""
    return {name: dataset.vocabulary(name) for name in dataset.manifest["vocab"]}


def read_statistics(dataset: Dataset) -> Json:
    """What was counted of a Dataset: `rayrec.data.statistics.log_statistics`."""
    return dataset.storage.read_json(dataset.manifest["statistics"]["path"])


def manifest_path(name: str, number: int) -> str:
    """Where the manifest with this number is."""
    return f"datasets/{name}/manifests/{number:06d}.json"


def report_path(name: str, number: int) -> str:
    """Where the report on the version with this number is."""
    return f"datasets/{name}/reports/{number:06d}.html"


def open_dataset(storage: Storage, name: str, number: int | None = None) -> Dataset:
    """A version of a Dataset, by default the latest.

    A name that is a path would lead to the same files, and be another one to whoever remembers names.

    Raises:
        DataError: There is none.
    """
    numbers = manifest_numbers(storage, name) if re.fullmatch(NAME_PATTERN, name) else []
    if not numbers or (number is not None and number not in numbers):
        version = "" if number is None else f" with manifest {number}"
        raise DataError(f"there is no Dataset '{name}'{version} in {storage.uri}. `rayrec prepare` makes one.")
    chosen = number or numbers[-1]
    path = manifest_path(name, chosen)
    manifest = storage.read_json(path)
    if manifest.get("schema") != SCHEMA:
        raise DataError(
            f"{storage.url(path)} was written by another version of rayrec (its schema is {manifest.get('schema')}, "
            f"not {SCHEMA}). `rayrec prepare` makes it anew from the logs."
        )
    if not manifest.keys() >= KEYS:
        raise DataError(f"{storage.url(path)} is damaged (keys are missing). Restore it from a copy, or remove it.")
    return Dataset(storage, name, chosen, manifest)


def manifest_numbers(storage: Storage, name: str) -> list[int]:
    """The numbers of a Dataset's manifests, ascending."""
    files = storage.list(f"datasets/{name}/manifests")
    return sorted(int(file.removesuffix(".json")) for file in files if re.fullmatch(r"\d+\.json", file))


def publish_manifest(storage: Storage, name: str, manifest: Json) -> Dataset:
    """Make a Dataset exist: its next manifest. One that says the same as the latest is not written again.

    Raises:
        DataError: Too many others publish at the same time.
    """
    for _ in range(ATTEMPTS):
        numbers = manifest_numbers(storage, name)
        if numbers:
            latest = open_dataset(storage, name)
            if canonical(latest.manifest) == canonical(manifest):
                return latest
        number = (numbers[-1] if numbers else 0) + 1
        if storage.write_new(manifest_path(name, number), canonical(manifest)):
            return Dataset(storage, name, number, manifest)
    raise DataError(f"Dataset '{name}': others publish it at the same time, gave up after {ATTEMPTS} attempts.")


def write_table(storage: Storage, name: str, folder: str, table: pa.Table) -> Json:
    """Write a table of a Dataset under the name its content gives it. Returns its entry for the manifest."""
    data = parquet_bytes(table)
    path = storage.write_content(f"datasets/{name}/{folder}", data, ".parquet")
    return part(path, data, digest(data), table.num_rows)


def read_part(storage: Storage, listed: Json, columns: list[str] | None = None) -> pa.Table:
    """Read a file that a manifest lists, checked against its checksum.

    Raises:
        DataError: It is missing or was changed.
    """
    try:
        data = storage.read(listed["path"])
    except FileNotFoundError:
        data = b""
    if digest(data) != listed["sha256"]:
        raise DataError(
            f"{storage.url(listed['path'])} is missing or was changed after it was published (its checksum differs). "
            "Restore it from a copy, or remove the Dataset's folder and prepare again."
        )
    return pq.read_table(pa.BufferReader(data), columns=columns)


def _given(table: pa.Table, column: str | int | None) -> pa.ChunkedArray:
    """A column as the user gave it, by name or position; null where it is not mapped."""
    given = [name for name in table.column_names if name.startswith("given_")]
    if column is None:
        return pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    name = given[column] if isinstance(column, int) else f"given_{column}"
    if name not in given:
        known = ", ".join(name.removeprefix("given_") for name in given)
        raise DataError(f"the item table has no column '{column}'. Its columns: {known}.")
    return table[name]
