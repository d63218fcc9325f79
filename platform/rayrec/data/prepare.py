"""The prepare stage: logs -> Dataset and view, through Ray Data.

Passes over pieces, each in parallel and in memory bounded by its piece: read and clean every file into working files
grouped by user (`ingest`); find the keys of each group, which the driver numbers (`vocabulary`); index, sort,
deduplicate and write each group as a segment of the log (`segments`); build the view (`views`). Everything depends on
content and source order only, so the same input gives the same digests however the work is spread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa

from rayrec.artifacts import Json, Storage
from rayrec.data.dataset import (
    SCHEMA,
    Dataset,
    manifest_numbers,
    manifest_path,
    open_dataset,
    publish_manifest,
    write_table,
)
from rayrec.data.files import SourceFile, list_files, provide
from rayrec.data.ingest import Ingested, Shuffle, ingest
from rayrec.data.segments import Log, Written, write_log, write_statistics
from rayrec.data.splits import check_split
from rayrec.data.tables import read_items, read_users
from rayrec.data.tombstones import Erased, erased_users
from rayrec.data.view_building import build_view
from rayrec.data.vocabulary import number_keys, vocabulary
from rayrec.errors import DataError, RecipeError
from rayrec.recipe import Recipe

_LOG = logging.getLogger(__name__)

PARTITION_BYTES = 32 << 20
"""Bytes of input a partition: in memory it is several times as large."""

MAX_PARTITIONS = 1024
OUTGROWN = 8
"""Times the bytes a partition that an appended log may have before a warning."""


@dataclass(frozen=True)
class Prepared:
    """What prepare leaves behind: a Dataset and the view the recipe asks for."""

    dataset: Dataset
    view: str


def prepare(recipe: Recipe, storage: Storage, append: bool = False) -> Prepared:
    """Turn the recipe's logs into a Dataset and a view.

    Args:
        recipe: The recipe.
        storage: Where to.
        append: Add the files that the latest version of the Dataset does not have, instead of making it anew.

    Raises:
        DataError: The logs cannot be used; nothing is published then.
        RecipeError: The split cannot be made of these logs.
    """
    check_split(recipe.data.split, timed=timed(recipe))
    _warn_of_untimed(recipe)
    provide(recipe, storage)
    files = list_files(list(recipe.data.sources), storage)
    parent = open_dataset(storage, recipe.name) if append and manifest_numbers(storage, recipe.name) else None
    if parent is not None:
        _check_appendable(recipe, parent)
        files = new_files(files, parent)
        if not files:
            return Prepared(parent, build_view(recipe, parent))
    erased = erased_users(storage, recipe.name)
    try:
        with storage.workspace(f"datasets/{recipe.name}") as folder:
            manifest = _make(recipe, Shuffle(storage, folder, _partitions(files, parent)), files, parent, erased)
        # The view first: a Dataset that the recipe can make nothing of is not published.
        view = build_view(recipe, Dataset(storage, recipe.name, 0, manifest))
    except DataError:
        # A file that is missing may be one of a user who was erased.
        _check_unchanged(storage, recipe.name, parent, erased)
        raise
    _check_unchanged(storage, recipe.name, parent, erased)
    before = manifest_numbers(storage, recipe.name)
    published = publish_manifest(storage, recipe.name, manifest)
    if published.number not in before and erased_users(storage, recipe.name) != erased:
        # The erasure may have looked before this version was there.
        storage.remove(manifest_path(recipe.name, published.number))
        raise DataError(f"Dataset '{recipe.name}' was changed meanwhile: a user was erased. Give this command again.")
    return Prepared(published, view)


def timed(recipe: Recipe) -> bool:
    """Whether every source says when its events were."""
    return all(source.columns.timestamp is not None for source in recipe.data.sources)


def new_files(files: Sequence[SourceFile], parent: Dataset) -> list[SourceFile]:
    """The files that a Dataset does not have yet, numbered after those that it has.

    Raises:
        DataError: One that it has is another now.
    """
    known = {(file["source"], file["name"]): file for file in parent.manifest["files"]}
    new: list[SourceFile] = []
    for file in files:
        before = known.get((file.source, file.name))
        if before is None:
            new.append(replace(file, ordinal=len(known) + len(new)))
        elif before["size"] != file.size:
            raise DataError(
                f"{file.uri} is in the Dataset '{parent.name}' already, and was changed since (it had "
                f"{before['size']:,} bytes, now {file.size:,}). Append only adds new files: prepare without it, or put "
                "new rows in new files."
            )
    return new


def _warn_of_untimed(recipe: Recipe) -> None:
    untimed = [source.path for source in recipe.data.sources if source.columns.timestamp is None]
    if untimed:
        _LOG.warning(
            "%s: no timestamp column is mapped, so the order of the rows is taken for the order in time, "
            "repeated rows are kept, and nothing can be split by time. Map `columns.timestamp` if there is one.",
            ", ".join(untimed),
        )


def _check_appendable(recipe: Recipe, parent: Dataset) -> None:
    now = _settings(recipe)
    sources, before = now.pop("sources"), parent.manifest["sources"]
    # Files are known by the place of their source: another one in that place would pass for it.
    moved = [place for place, source in enumerate(before) if sources[place : place + 1] != [source]]
    if moved:
        raise RecipeError(
            f"--append: data.sources.{moved[0]} of the Dataset '{parent.name}' would be another (in its columns or "
            "type). New sources go after those that are there; for other columns prepare without --append."
        )
    changed = [key for key, value in now.items() if parent.manifest[key] != value]
    if changed:
        raise RecipeError(
            f"--append: {', '.join(changed)} of the Dataset '{parent.name}' would change (from "
            f"{[parent.manifest[key] for key in changed]} to {[now[key] for key in changed]}). "
            "Prepare without --append."
        )


def _check_unchanged(storage: Storage, name: str, parent: Dataset | None, erased: Erased) -> None:
    """Refuse to publish what lacks the events of another append, or has those of a user who was erased."""
    if parent is not None and open_dataset(storage, name).digest != parent.digest:
        raise DataError(f"Dataset '{name}' was changed meanwhile, by another command. Give this one again.")
    if erased_users(storage, name) != erased:
        raise DataError(f"Dataset '{name}' was changed meanwhile: a user was erased. Give this command again.")


def _settings(recipe: Recipe) -> Json:
    """What must be the same for all events of a log."""
    sources = [source.model_dump(mode="json", include={"columns", "type"}) for source in recipe.data.sources]
    order = "timestamp" if timed(recipe) else "file"
    return {"sources": sources, "simulated": recipe.simulated, "order": order, "deduplicate": _keep(recipe)}


def _keep(recipe: Recipe) -> Literal["first", "last", "no"]:
    """Without times nothing tells a repeated row from a repeated event: such rows are kept."""
    return recipe.data.clean.deduplicate if timed(recipe) else "no"


def _make(
    recipe: Recipe, shuffle: Shuffle, files: Sequence[SourceFile], parent: Dataset | None, erased: Erased
) -> Json:
    """Write everything that a new manifest lists. Returns the manifest."""
    base, storage = parent.manifest if parent else None, shuffle.storage
    ingested = ingest(recipe, files, shuffle, erased)
    tables = {"user": _without(erased, read_users(recipe, storage)), "item": read_items(recipe, storage)}
    bases = {name: parent.vocabulary(name) if parent else None for name in tables}
    keys = number_keys(ingested, shuffle, bases, tables)
    listed = [*(base["files"] if base else []), *_listed(files, ingested)]
    ranks = Dataset(storage, recipe.name, 0, {"files": listed}).ranks
    segments = base["events"] if base else []
    batch = 1 + max((segment["batch"] for segment in segments), default=-1)
    log = Log(recipe.name, segments, ranks, batch, _keep(recipe))
    written = write_log(log, ingested, shuffle, keys)
    vocabularies = {name: vocabulary(keys[name], bases[name], written.seen[name]) for name in tables}
    before = [storage.read_json(base["statistics"]["path"])] if base else []

    def publish(folder: str, table: pa.Table | None) -> Json | None:
        return None if table is None else write_table(storage, recipe.name, folder, table)

    return {
        "schema": SCHEMA,
        "name": recipe.name,
        "parent": parent.number if parent else None,
        **_settings(recipe),
        "partitions": shuffle.partitions,
        "files": listed,
        "time_range_ms": _time_range(recipe, ingested, base),
        "counts": _counts(ingested, written, base),
        "reasons": _reasons(ingested, base),
        "events": written.segments,
        "vocab": {name: publish("vocab", table) for name, table in vocabularies.items()},
        "items": publish("items", tables["item"]),
        "users": publish("users", tables["user"]),
        "quarantine": [*(base["quarantine"] if base else []), *(q for f in ingested.files for q in f["quarantine"])],
        "statistics": write_statistics(storage, recipe.name, [*before, *written.statistics], vocabularies),
        "item_columns": recipe.data.items.columns.model_dump() if recipe.data.items else None,
        "category_separator": recipe.data.items.category_separator if recipe.data.items else None,
    }


def _partitions(files: Sequence[SourceFile], parent: Dataset | None) -> int:
    """Of a new log as many as its bytes ask for; an appended one keeps those it has."""
    size = sum(file.size for file in files)
    if parent is None:
        return int(min(MAX_PARTITIONS, 1 + size // PARTITION_BYTES))
    partitions = int(parent.manifest["partitions"])
    whole = size + sum(file["size"] for file in parent.manifest["files"])
    if whole > OUTGROWN * partitions * PARTITION_BYTES and partitions < MAX_PARTITIONS:
        _LOG.warning(
            "Dataset '%s' has outgrown its %d partitions, which makes every pass take more memory. Prepare it once "
            "without --append.",
            *(parent.name, partitions),
        )
    return partitions


def _without(erased: Erased, users: pa.Table | None) -> pa.Table | None:
    return None if users is None else users.filter(pa.array(~erased.known(users["user"])))


def _listed(files: Sequence[SourceFile], ingested: Ingested) -> list[Json]:
    """How a manifest lists files: the position in this list is the number in the ids of their events."""
    pairs = zip(files, ingested.files, strict=True)
    return [{"source": f.source, "name": f.name, "size": f.size, "rows": found["read"]} for f, found in pairs]


def _time_range(recipe: Recipe, ingested: Ingested, base: Json | None) -> list[int] | None:
    if not timed(recipe):
        return None
    first, last = ingested.time_range
    return [min(first, base["time_range_ms"][0]), max(last, base["time_range_ms"][1])] if base else [first, last]


def _counts(ingested: Ingested, written: Written, base: Json | None) -> Json:
    reasons = ingested.reasons
    counts = {
        "read": ingested.total("read"),
        "quarantined": int(sum(reasons.values())),
        "erased": ingested.total("erased"),
        "deduplicated": written.duplicates,
        "events": sum(segment["rows"] for segment in written.segments),
    }
    if base:
        counts |= {key: counts[key] + base["counts"][key] for key in counts if key != "events"}
    return counts


def _reasons(ingested: Ingested, base: Json | None) -> Json:
    return dict(sorted((ingested.reasons + Counter(base["reasons"] if base else {})).items()))
