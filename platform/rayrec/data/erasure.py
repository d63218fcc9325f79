"""Erasure: a user who asks to be forgotten leaves the log, the tables, the quarantine and every view.

Files are immutable, so those that hold the user are written anew without, then views and manifests are made to list
the new ones, then the old files go. The same command again finishes what was cut off. What stays is a tombstone: the
index, which nobody else gets, and a fingerprint of the key, by which later logs are searched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec.artifacts import Json, Storage, canonical
from rayrec.data.dataset import (
    Dataset,
    manifest_numbers,
    manifest_path,
    open_dataset,
    read_part,
    read_statistics,
    vocabularies,
    write_table,
)
from rayrec.data.segments import write_segment, write_statistics
from rayrec.data.spill import partition_of
from rayrec.data.splits import FOLDS
from rayrec.data.statistics import segment_statistics, signed
from rayrec.data.tombstones import Erased, erasures, tombstone_path, without_text
from rayrec.data.vocabulary import ERASED
from rayrec.errors import DataError
from rayrec.lease import lease

SCHEMA = 1
UNDER_WAY, DONE = "under way", "done"
LEASE = "lease"
OUTCOMES = "evaluations"
"""Where evaluations keep the ranks of every user (`rayrec.evaluation.outcomes`)."""

NOBODY = 0
"""The index of padding."""


def erase_user(storage: Storage, name: str, user: str, *, known_only: bool = True) -> Json:
    """Forget a user. Returns the receipt: what was rewritten and removed, and what is left to do elsewhere.

    Of one whom the Dataset does not know it remembers, unless ``known_only``, to leave them out of later logs.

    Raises:
        DataError: The Dataset does not know the user.
        StorageError: Another erasure is under way.
    """
    if not _is_text(user):
        raise DataError(f"Dataset '{name}': {user!a} is no text in UTF-8, and no user's key.")
    with _alone(storage, name):
        erasure = _Erasure(storage, name, user.strip())
        if storage.exists(erasure.tombstone):
            before = storage.read_json(erasure.tombstone)
            if before["state"] == DONE and not erasure.found:
                return before
            erasure.go_on(before)
        elif (known_only and not erasure.found) or not erasure.user:
            raise DataError(f"Dataset '{name}' in {storage.uri} knows no user '{user}'. Keys are as in the logs.")
        # From here on no prepare takes the user in again; one may have done so since the versions were listed.
        begun = erasure.record(UNDER_WAY)
        erasure = _Erasure(storage, name, user.strip())
        erasure.go_on(begun)
        manifests = erasure.without()
        views = erasure.views_without(manifests)
        # Whoever goes on from here knows which files are to go, though nothing lists them any more.
        erasure.record(UNDER_WAY)
        erasure.carry_out(manifests, views)
        return erasure.record(DONE)


def _is_text(user: str) -> bool:
    """Whether it can be written: bytes of the command line that are no UTF-8 come as lone surrogates."""
    return user == user.encode(errors="replace").decode()


@contextmanager
def _alone(storage: Storage, name: str) -> Iterator[None]:
    """One erasure at a time: two would each bring back the other's user."""
    open_dataset(storage, name)
    with lease(storage, f"{erasures(name)}/{LEASE}", f"another erasure is under way in Dataset '{name}',"):
        yield


@dataclass
class _Erasure:
    """One user, one Dataset: all that has to change.

    Attributes:
        storage: The storage.
        name: The Dataset.
        user: The key.
        found: For each manifest that has the user, by number, the index; `NOBODY` where only rejected rows do.
        indexes: Every index that is the user's.
        replaced: Paths that are to go.
        events: The user's events, in the version that had most.
    """

    storage: Storage
    name: str
    user: str
    found: dict[int, int] = field(default_factory=dict)
    indexes: set[int] = field(default_factory=set)
    replaced: set[str] = field(default_factory=set)
    events: int = 0

    def __post_init__(self) -> None:
        self._erased = Erased.of(self.name, self.user)
        self._base = f"datasets/{self.name}"
        self._datasets = self._versions()
        rejected = {part["path"]: part for d in self._datasets for part in d.manifest["quarantine"]}
        self._mentioning = {path for path, listed in rejected.items() if self._mentions(listed)}
        for dataset in self._datasets:
            index = pc.index(dataset.vocabulary("user")["key"], self.user).as_py() + 1
            if index != NOBODY or any(part["path"] in self._mentioning for part in dataset.manifest["quarantine"]):
                self.found[dataset.number] = index
        self.indexes = {index for index in self.found.values() if index != NOBODY}
        # Events that were taken out, by manifest.
        self._taken: dict[int, int] = {}

    @property
    def tombstone(self) -> str:
        """Where it is recorded."""
        return tombstone_path(self._erased)

    def go_on(self, before: Json) -> None:
        """Take up what was cut off, by its record."""
        self.indexes |= {*before["indexes"]}
        self.replaced |= {*before["removed"]}
        self.events = before["events"]

    def record(self, state: str) -> Json:
        """Write the tombstone. Returns it: what was done, without the key."""
        ((fingerprint, _),) = self._erased.marks
        receipt = {
            "schema": SCHEMA,
            "dataset": self.name,
            "fingerprint": f"{fingerprint:016x}",
            "state": state,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "indexes": sorted(self.indexes),
            "events": self.events,
            "removed": sorted(self.replaced),
            "left": self._left() if state == DONE else {},
        }
        self.storage.replace(self.tombstone, canonical(receipt))
        return receipt

    def without(self) -> dict[int, Json]:
        """Write the files without the user. Returns the manifests that will list them, by number."""
        self.replaced |= {*self._unlisted(), *self._outcomes()}
        return {d.number: self._manifest(d) for d in self._datasets if d.number in self.found}

    def views_without(self, manifests: dict[int, Json]) -> dict[str, Json | None]:
        """Write the files of views without the user. Returns their manifests by path; None for those that must go."""
        renewed = {number: Dataset(self.storage, self.name, number, m).digest for number, m in manifests.items()}
        datasets = {dataset.digest: dataset for dataset in self._datasets}
        changed: dict[str, Json | None] = {}
        for view in self.storage.list(f"{self._base}/views"):
            path = f"{self._base}/views/{view}"
            if not self.storage.exists(f"{path}/view.json"):
                # It was never finished, and without a vocabulary indexes are nobody's.
                continue
            content = self.storage.read_json(f"{path}/view.json")
            dataset = datasets.get(content["dataset"])
            if dataset is None and content["dataset"] not in renewed.values():
                # Nobody can tell whose the indexes are; it can be built again.
                changed[path] = None
            elif dataset is not None and dataset.number in manifests:
                changed[path] = self._view(path, content, dataset.number, renewed[dataset.number])
        self.replaced |= {path for path, content in changed.items() if content is None}
        return changed

    def carry_out(self, manifests: dict[int, Json], views: dict[str, Json | None]) -> None:
        """Make views and manifests list the new files; remove the old ones."""
        for path, content in views.items():
            if content is None:
                self.storage.remove(f"{path}/view.json")
            else:
                self.storage.replace(f"{path}/view.json", canonical(content))
        for number, manifest in manifests.items():
            self.storage.replace(manifest_path(self.name, number), canonical(manifest))
        # Equal content has an equal name: what was replaced in one version may be what another lists.
        for path in sorted(self.replaced - _listed(self._versions())):
            if self.storage.exists(path):
                self.storage.remove(path)

    def _versions(self) -> list[Dataset]:
        return [open_dataset(self.storage, self.name, n) for n in manifest_numbers(self.storage, self.name)]

    def _mentions(self, rejected: Json) -> bool:
        return bool(self._erased.mentioned(read_part(self.storage, rejected, ["text"])["text"]).any())

    # ---- what is not listed

    def _left(self) -> Json:
        """Where the user may still be, which is not the Dataset's to change."""
        transforms = [f"{self._base}/transforms/{name}" for name in self.storage.list(f"{self._base}/transforms")]
        as_json = json.dumps(self.user, ensure_ascii=False).encode()
        return {
            "sources": sorted({file["name"] for dataset in self._datasets for file in dataset.manifest["files"]}),
            "models": [f"models/{self.name}/{digest}" for digest in self.storage.list(f"models/{self.name}")],
            # Models and Releases refer to them by their content.
            "transforms": [path for path in transforms if as_json in self.storage.read(path)],
            "working_files": [path for path in self.storage.temporaries() if path.startswith(f"{self._base}/")],
        }

    def _outcomes(self) -> Iterator[str]:
        """What evaluations keep of every user: measured again, it will be without this one."""
        for path in (f"{OUTCOMES}/{name}" for name in self.storage.list(OUTCOMES) if name.endswith(".parquet")):
            table = pq.read_table(pa.BufferReader(self.storage.read(path)), columns=["user", "dataset"])
            mine = table.filter(pc.equal(table["dataset"], self.name))
            if np.isin(mine["user"].to_numpy(), [*self.indexes]).any():
                yield path

    def _unlisted(self) -> Iterator[str]:
        """Files with the user that no version lists: of a preparation that was refused or cut off."""
        listed = _listed(self._datasets)
        for folder, column in (("vocab", "key"), ("users", "user"), ("quarantine", "text")):
            search = self._erased.mentioned if column == "text" else self._erased.known
            paths = {f"{self._base}/{folder}/{name}" for name in self.storage.list(f"{self._base}/{folder}")}
            for path in sorted(paths - listed):
                table = pq.read_table(pa.BufferReader(self.storage.read(path)), columns=[column])
                if search(table[column]).any():
                    yield path

    # ---- manifests

    def _manifest(self, dataset: Dataset) -> Json:
        """The manifest with new files in the place of those that hold the user."""
        manifest, index = dataset.manifest, self.found[dataset.number]
        segments, gone = self._segments(manifest, index)
        tables = vocabularies(dataset)
        left = {"user": _tombstone(tables["user"], index), "item": _seen_less(tables["item"], gone)}
        taken = sum(events.num_rows for events in gone)
        self._taken[dataset.number] = taken
        self.events = max(self.events, taken)
        counts = manifest["counts"]
        return {
            **manifest,
            "events": segments,
            "time_range_ms": _time_range(manifest["time_range_ms"], segments),
            "vocab": {name: self._renewed("vocab", manifest["vocab"][name], tables[name], left[name]) for name in left},
            "users": self._users(manifest["users"]),
            "quarantine": [self._quarantine(listed) for listed in manifest["quarantine"]],
            "counts": {**counts, "events": counts["events"] - taken, "erased": counts["erased"] + taken},
            "statistics": self._statistics(dataset, gone, left),
        }

    def _segments(self, manifest: Json, index: int) -> tuple[list[Json], list[pa.Table]]:
        """The segments without the user, and the events that were taken out."""
        (mine,) = partition_of(pa.array([self.user]), manifest["partitions"]).tolist()
        segments: list[Json] = []
        gone: list[pa.Table] = []
        for listed in manifest["events"]:
            if index == NOBODY or listed["partition"] != mine:
                segments.append(listed)
                continue
            events = read_part(self.storage, listed)
            theirs = pc.equal(events["user"], index)
            rest = events.filter(pc.invert(theirs))
            if rest.num_rows == events.num_rows:
                segments.append(listed)
                continue
            gone.append(events.filter(theirs))
            self.replaced.add(listed["path"])
            if rest.num_rows:
                segments.append(write_segment(self.storage, self.name, rest, mine, listed["batch"]))
        return segments, gone

    def _users(self, listed: Json | None) -> Json | None:
        if listed is None:
            return None
        users = read_part(self.storage, listed)
        return self._renewed("users", listed, users, users.filter(pc.not_equal(users["user"], self.user)))

    def _quarantine(self, listed: Json) -> Json:
        if listed["path"] not in self._mentioning:
            return listed
        rejected = read_part(self.storage, listed)
        return self._renewed("quarantine", listed, rejected, without_text(rejected, self._erased))

    def _statistics(self, dataset: Dataset, gone: Sequence[pa.Table], left: dict[str, pa.Table]) -> Json:
        listed: Json = dataset.manifest["statistics"]
        if not gone:
            return listed
        self.replaced.add(listed["path"])
        less = [signed(segment_statistics(events), -1) for events in gone]
        return write_statistics(self.storage, self.name, [read_statistics(dataset), *less], left)

    def _renewed(self, folder: str, listed: Json, before: pa.Table, after: pa.Table) -> Json:
        """A file after a change; itself when that changed nothing."""
        if after.equals(before):
            return listed
        self.replaced.add(listed["path"])
        return write_table(self.storage, self.name, folder, after)

    # ---- views

    def _view(self, view: str, content: Json, number: int, renewed: str) -> Json | None:
        """A view's manifest with new files in the place of those that hold the user; None when nobody is left."""
        shards, gone = self._shards(view, content["shards"], self.found[number])
        items = _flattened(gone, "items")
        fold = next((name for table in gone for name in table.column_names if name.startswith("fold_")), "")
        folds = np.bincount(_flattened(gone, fold), minlength=len(FOLDS)).tolist()
        taken = {"users": len(gone), "events": len(items), **dict(zip(FOLDS, folds, strict=True))}
        known = read_part(self.storage, content["items"])
        changed = {
            "dataset": renewed,
            "shards": shards,
            "items": self._renewed(_inside(view), content["items"], known, _fewer(known, items)),
            "counts": {key: count - taken.get(key, 0) for key, count in content["counts"].items()},
            "filtered": _filtered(content["filtered"], self._taken[number] - len(items)),
        }
        return {**content, **changed} if shards else None

    def _shards(self, view: str, listed: Sequence[Json], index: int) -> tuple[list[Json], list[pa.Table]]:
        """The shards without the user, and the rows that were taken out."""
        shards: list[Json] = []
        gone: list[pa.Table] = []
        for shard in listed:
            table = read_part(self.storage, shard)
            theirs = pc.equal(table["user"], index)
            rest, mine = table.filter(pc.invert(theirs)), table.filter(theirs)
            if mine.num_rows:
                gone.append(mine)
            renewed = self._renewed(_inside(view), shard, table, rest)
            if rest.num_rows:
                shards.append(renewed)
        return shards, gone


def _listed(datasets: Sequence[Dataset]) -> set[str]:
    """Every file that some version lists."""
    return {part["path"] for dataset in datasets for part in dataset.parts()}


def _inside(view: str) -> str:
    """The folder of a view in its Dataset."""
    return view.split("/", 2)[2]


def _flattened(tables: Sequence[pa.Table], column: str) -> np.ndarray:
    """All values of a column of lists: ``[N]`` integers."""
    return np.concatenate([np.empty(0, np.int64), *(t[column].combine_chunks().flatten().to_numpy() for t in tables)])


def _time_range(before: list[int] | None, segments: Sequence[Json]) -> list[int] | None:
    if before is None or not segments:
        return before
    first, last = zip(*(segment["time_range_ms"] for segment in segments), strict=True)
    return [min(first), max(last)]


def _tombstone(users: pa.Table, index: int) -> pa.Table:
    """The vocabulary with nothing but the index of one key."""
    mine = pc.equal(users["index"], index)
    columns = {name: pc.if_else(mine, None, users[name]) for name in ("key", "first_seen", "last_seen")}
    columns |= {"events": pc.if_else(mine, 0, users["events"]), "state": pc.if_else(mine, ERASED, users["state"])}
    return pa.table({name: columns.get(name, users[name]) for name in users.column_names}, schema=users.schema)


def _seen_less(vocabulary: pa.Table, gone: Sequence[pa.Table]) -> pa.Table:
    """The vocabulary of items without events that are gone.

    When an item was first and last seen stays, while it has events: to tell whose those were, all would be read.
    """
    items = np.concatenate([np.empty(0, np.int64), *(events["item"].to_numpy() for events in gone)])
    fewer = _fewer(vocabulary, items)
    never = pc.equal(fewer["events"], 0)
    columns = {name: pc.if_else(never, None, fewer[name]) for name in ("first_seen", "last_seen")}
    return pa.table({name: columns.get(name, fewer[name]) for name in fewer.column_names}, schema=vocabulary.schema)


def _fewer(table: pa.Table, items: np.ndarray) -> pa.Table:
    """A table with ``index`` and ``events``, with one event less for each of ``items``."""
    taken = np.bincount(items, minlength=int(pc.max(table["index"]).as_py() or 0) + 1)
    left = table["events"].to_numpy() - taken[table["index"].to_numpy()]
    return table.set_column(table.column_names.index("events"), "events", pa.array(left))


def _filtered(filtered: dict[str, int], gone: int) -> dict[str, int]:
    """Events that are not in the view, by reason, when some of them are gone from the log.

    Which reason those had was not kept: they are taken for having had the most frequent one, so that the sum is right.
    """
    left: dict[str, int] = {}
    for reason in sorted(filtered, key=filtered.__getitem__, reverse=True):
        left[reason] = filtered[reason] - min(filtered[reason], gone)
        gone -= min(filtered[reason], gone)
    return {reason: count for reason, count in left.items() if count}
