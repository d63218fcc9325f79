"""Erasure: a user who asks to be forgotten leaves the log, the tables, the quarantine and every view.

Files are immutable, so those that hold the user are written anew without, then the manifests are made to list the new
ones, then the old files go. The same command again finishes what was cut off. What stays is a tombstone: the index,
which nobody else gets, and a fingerprint of the key, by which later logs are searched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.artifacts import Json, Storage, canonical
from rayrec.data.dataset import Dataset, manifest_numbers, manifest_path, open_dataset, read_part, write_table
from rayrec.data.segments import write_segment
from rayrec.data.splits import FOLDS
from rayrec.data.tombstones import erasures, fingerprints
from rayrec.data.vocabulary import ERASED
from rayrec.errors import DataError

SCHEMA = 1
UNDER_WAY, DONE = "under way", "done"
LOCK = "lock"


def erase_user(storage: Storage, name: str, user: str) -> Json:
    """Forget a user. Returns the receipt: what was rewritten and removed, and what is left to do elsewhere.

    Raises:
        DataError: The Dataset does not know the user, or another erasure is under way.
    """
    user = user.strip()
    fingerprint = int(fingerprints(pa.array([user]), name)[0])
    tombstone = f"{erasures(name)}/{fingerprint:016x}.json"
    with _alone(storage, name):
        erasure = _Erasure(storage, name, user)
        if storage.exists(tombstone):
            before = storage.read_json(tombstone)
            erasure.replaced.update(before["removed"])
            if before["state"] == DONE and not erasure.found:
                return before
        elif not erasure.found:
            raise DataError(f"Dataset '{name}' in {storage.uri} knows no user '{user}'. Keys are as in the logs.")
        receipt = {"schema": SCHEMA, "dataset": name, "fingerprint": f"{fingerprint:016x}"}
        # From here on no prepare takes the user in again.
        storage.replace(tombstone, canonical(receipt | erasure.receipt(UNDER_WAY)))
        manifests = erasure.write_parts()
        storage.replace(tombstone, canonical(receipt | erasure.receipt(UNDER_WAY)))
        erasure.carry_out(manifests)
        receipt |= erasure.receipt(DONE)
        storage.replace(tombstone, canonical(receipt))
    return receipt


@contextmanager
def _alone(storage: Storage, name: str) -> Iterator[None]:
    """One erasure at a time: two would each bring back the other's user."""
    open_dataset(storage, name)
    lock = f"{erasures(name)}/{LOCK}"
    if not storage.write_new(lock, canonical({"since": datetime.now(UTC).isoformat(timespec="seconds")})):
        raise DataError(
            f"another erasure is under way in Dataset '{name}' (since {storage.read_json(lock)['since']}). "
            f"Wait for it; if it was killed, remove {storage.url(lock)} and give the same command again."
        )
    try:
        yield
    finally:
        storage.remove(lock)


@dataclass
class _Erasure:
    """One user, one Dataset: all that has to change.

    Attributes:
        storage: The storage.
        name: The Dataset.
        user: The key.
        found: For each manifest that knows the user, by number, the index.
        replaced: Paths that are to go.
        events: Events that were taken out of the latest log.
    """

    storage: Storage
    name: str
    user: str
    found: dict[int, int] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)
    events: int = 0

    def __post_init__(self) -> None:
        self.datasets = [open_dataset(self.storage, self.name, n) for n in manifest_numbers(self.storage, self.name)]
        for dataset in self.datasets:
            place = pc.index(dataset.vocabulary("user")["key"], self.user).as_py()
            if place >= 0:
                self.found[dataset.number] = place + 1
        self.left = {
            "sources": sorted({file["name"] for dataset in self.datasets for file in dataset.manifest["files"]})
        }

    def receipt(self, state: str) -> Json:
        """What was done, without the key."""
        return {
            "state": state,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "indexes": sorted(set(self.found.values())),
            "events": self.events,
            "removed": sorted(self.replaced),
            "left": self._left(),
        }

    def _left(self) -> Json:
        """Where the user may still be, which is not the Dataset's to change."""
        files = {file["name"] for dataset in self.datasets for file in dataset.manifest["files"]}
        below = f"datasets/{self.name}/"
        return {
            "sources": sorted(files),
            "models": [f"models/{self.name}/{digest}" for digest in self.storage.list(f"models/{self.name}")],
            "working_files": [path for path in self.storage.temporaries() if path.startswith(below)],
        }

    def write_parts(self) -> dict[int, Json]:
        """Write the files without the user. Returns the manifests that will list them, by number."""
        return {d.number: self._without(d) for d in self.datasets if d.number in self.found}

    def carry_out(self, manifests: dict[int, Json]) -> None:
        """Make views and manifests list the new files; remove the old ones."""
        renewed = {d.digest: d for d in self.datasets}
        for dataset in self.datasets:
            if dataset.number in manifests:
                new = Dataset(self.storage, self.name, dataset.number, manifests[dataset.number])
                renewed[dataset.digest] = renewed[new.digest] = new
        for view in self.storage.list(f"datasets/{self.name}/views"):
            self._renew_view(f"datasets/{self.name}/views/{view}", renewed)
        for number, manifest in manifests.items():
            self.storage.replace(manifest_path(self.name, number), canonical(manifest))
        self._remove()

    # ---- manifests

    def _without(self, dataset: Dataset) -> Json:
        """The manifest with new files in the place of those that hold the user."""
        index, manifest = self.found[dataset.number], dict(dataset.manifest)
        segments = [self._segment(listed, index) for listed in manifest["events"]]
        manifest["events"] = [listed for listed, _ in segments if listed]
        items = np.concatenate([np.empty(0, np.int64), *(taken for _, taken in segments)])
        quarantined = [self._rewrite("quarantine", listed, self._unmentioned) for listed in manifest["quarantine"]]
        manifest["quarantine"] = [listed for listed in quarantined if listed]
        if manifest["users"]:
            manifest["users"] = self._rewrite("users", manifest["users"], self._other_users)
        vocab = manifest["vocab"]
        manifest["vocab"] = {
            "user": self._rewrite("vocab", vocab["user"], lambda table: _tombstone(table, index)),
            "item": self._rewrite("vocab", vocab["item"], lambda table: _fewer(table, "events", items)),
        }
        self.events = max(self.events, len(items))
        counts = manifest["counts"]
        fewer = {"events": counts["events"] - len(items), "erased": counts["erased"] + len(items)}
        return manifest | {"counts": counts | fewer}

    def _segment(self, listed: Json, index: int) -> tuple[Json | None, np.ndarray]:
        """A segment without the user, and the items of the events that were taken out."""
        events = read_part(self.storage, listed)
        mine = pc.equal(events["user"], index)
        items = events.filter(mine)["item"].to_numpy()
        if not len(items):
            return listed, items
        rest = events.filter(pc.invert(mine))
        if rest.num_rows:
            entry = write_segment(self.storage, self.name, rest, listed["partition"], listed["batch"])
        self.replaced.add(listed["path"])
        return entry if rest.num_rows else None, items

    def _rewrite(self, folder: str, listed: Json, change: Callable[[pa.Table], pa.Table]) -> Json | None:
        """A file after a change; itself when that changes nothing, None when it leaves no row."""
        table = read_part(self.storage, listed)
        changed = change(table)
        if changed.equals(table):
            return listed
        self.replaced.add(listed["path"])
        return write_table(self.storage, self.name, folder, changed) if changed.num_rows else None

    def _unmentioned(self, rejected: pa.Table) -> pa.Table:
        """Rejected rows whose text does not have the key as a word of its own."""
        mentioned = pc.match_substring_regex(rejected["text"], rf"(^|\W){re.escape(self.user)}(\W|$)")
        return rejected.filter(pc.invert(pc.fill_null(mentioned, False)))

    def _other_users(self, users: pa.Table) -> pa.Table:
        return users.filter(pc.not_equal(users["user"], self.user))

    # ---- views

    def _renew_view(self, path: str, renewed: dict[str, Dataset]) -> None:
        """A view without the user; one of a log that is gone is removed, as it can be built again."""
        try:
            view = self.storage.read_json(f"{path}/view.json")
        except FileNotFoundError:
            view = {"dataset": ""}
        dataset = renewed.get(view["dataset"])
        if dataset is None:
            self.storage.remove(path)
            self.replaced.add(path)
            return
        if dataset.number not in self.found:
            return
        shards = [self._shard(path, shard, self.found[dataset.number]) for shard in view["shards"]]
        items = np.concatenate([np.empty(0, np.int64), *(taken["items"] for _, taken in shards)])
        folds = np.concatenate([np.empty(0, np.int8), *(taken["folds"] for _, taken in shards)])
        counts = view["counts"]
        taken = {"users": int(len(items) > 0), "events": len(items)}
        taken |= dict(zip(FOLDS, np.bincount(folds, minlength=len(FOLDS)).tolist(), strict=True))
        changed = view | {
            "dataset": dataset.digest,
            "shards": [listed for listed, _ in shards if listed],
            "items": self._rewrite_in(path, view["items"], lambda table: _fewer(table, "events", items)),
            "counts": counts | {key: counts[key] - count for key, count in taken.items()},
        }
        self.storage.replace(f"{path}/view.json", canonical(changed))

    def _shard(self, path: str, listed: Json, index: int) -> tuple[Json | None, dict[str, np.ndarray]]:
        """A shard without the user, and the items and folds that were taken out."""
        table = read_part(self.storage, listed)
        mine = pc.equal(table["user"], index)
        gone, fold = table.filter(mine), next(c for c in table.column_names if c.startswith("fold_"))
        taken = {"items": gone["items"].combine_chunks(), "folds": gone[fold].combine_chunks()}
        entry = self._rewrite_in(path, listed, lambda t: t.filter(pc.invert(mine)))
        return entry, {key: column.flatten().to_numpy() for key, column in taken.items()}

    def _rewrite_in(self, view: str, listed: Json, change: Callable[[pa.Table], pa.Table]) -> Json | None:
        return self._rewrite(view.removeprefix(f"datasets/{self.name}/"), listed, change)

    # ---- the end

    def _remove(self) -> None:
        """Remove what was replaced, unless something lists it again: equal content has an equal name."""
        datasets = [open_dataset(self.storage, self.name, n) for n in manifest_numbers(self.storage, self.name)]
        listed = {part["path"] for dataset in datasets for part in dataset.parts()}
        for path in sorted(self.replaced - listed):
            if self.storage.exists(path):
                self.storage.remove(path)


def _tombstone(users: pa.Table, index: int) -> pa.Table:
    """The vocabulary with nothing but the index of one key."""
    mine = pc.equal(users["index"], index)
    columns = {name: pc.if_else(mine, None, users[name]) for name in ("key", "first_seen", "last_seen")}
    columns |= {"events": pc.if_else(mine, 0, users["events"]), "state": pc.if_else(mine, ERASED, users["state"])}
    return pa.table({name: columns.get(name, users[name]) for name in users.column_names}, schema=users.schema)


def _fewer(table: pa.Table, column: str, items: np.ndarray) -> pa.Table:
    """A table of items by ``index`` with one event less for each of ``items``."""
    taken = np.bincount(items, minlength=int(pc.max(table["index"]).as_py() or 0) + 1)
    left = table[column].to_numpy() - taken[table["index"].to_numpy()]
    return table.set_column(table.column_names.index(column), column, pa.array(left))
