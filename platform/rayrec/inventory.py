"""What there is, and what nothing refers to any more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from rayrec.artifacts import Json, Storage
from rayrec.data.dataset import manifest_numbers, manifest_path, open_dataset, report_path
from rayrec.errors import ModelError, StorageError
from rayrec.inference.release import EXACT, open_release
from rayrec.tracking import RegisteredRelease, Tracker, registered_names, tracking_uri, without_passwords

PART_FOLDERS = ("events", "items", "users", "vocab", "transforms", "quarantine", "statistics", "reports")


def inventory(storage: Storage) -> Json:
    """Datasets, model bundles and Releases, as `rayrec list` shows them."""
    return {
        "storage": storage.uri,
        "datasets": [_dataset(storage, name) for name in storage.list("datasets")],
        "models": [_model(storage, path) for path in _bundles(storage)],
        "releases": [_release(storage, release) for release in _all_releases()],
    }


@dataclass(frozen=True)
class Garbage:
    """What `rayrec gc` removes.

    Attributes:
        paths: Files and folders in the storage that nothing refers to.
        versions: Registered Releases beyond the newest of their name, as (name, version).
    """

    paths: list[str]
    versions: list[tuple[str, int]]


def find_garbage(storage: Storage, keep: int, older_than_hours: float) -> Garbage:
    """What nothing refers to.

    Kept are Releases with an alias and the newest ``keep`` of each name, with all they refer to; the latest version of
    each Dataset; and whatever is younger than ``older_than_hours``, which a running pipeline may be about to use.
    """
    kept, dropped = _retained(storage, keep)
    if storage.list("releases") and not kept and not dropped:
        raise ModelError(
            f"{storage.uri} holds Releases, but MLflow at {without_passwords(tracking_uri())} knows none of them: "
            "everything would be taken for garbage. Set MLFLOW_TRACKING_URI to the server they are registered with."
        )
    referred = _referred(storage, kept)
    candidates = [*_artifacts(storage)]
    old = [path for path in candidates if path not in referred and _is_old(storage, path, older_than_hours)]
    return Garbage(old, [(release.name, release.version) for release in dropped])


def collect_garbage(storage: Storage, garbage: Garbage) -> None:
    """Remove what `find_garbage` found: first what refers, then what was referred to."""
    for name, version in garbage.versions:
        Tracker(name).delete(version)
    for path in sorted(garbage.paths, key=_removal_order):
        # Whoever wrote it may have cleaned up meanwhile.
        with suppress(FileNotFoundError):
            storage.remove(path)


def _retained(storage: Storage, keep: int) -> tuple[list[RegisteredRelease], list[RegisteredRelease]]:
    kept: list[RegisteredRelease] = []
    dropped: list[RegisteredRelease] = []
    for name in registered_names():
        releases = [release for release in Tracker(name).releases() if release.storage == storage.uri]
        newest = {release.version for release in releases[-keep:]} if keep else set()
        for release in releases:
            (kept if release.aliases or release.version in newest else dropped).append(release)
    return kept, dropped


def _referred(storage: Storage, releases: list[RegisteredRelease]) -> set[str]:
    """Every path that the Releases and the latest Datasets need."""
    paths: set[str] = set()
    numbered = {name: manifest_numbers(storage, name) for name in storage.list("datasets")}
    versions = {(name, numbers[-1]) for name, numbers in numbered.items() if numbers}
    for registered in releases:
        release = open_release(storage, registered.digest)
        pinned = release.content["dataset"]
        paths |= {release.path, *release.content["models"].values(), *release.evaluated.values()}
        paths.add(release.content["transforms"]["path"])
        if release.content.get("index", EXACT) != EXACT:
            paths.add(release.content["index"]["path"])
        paths.add(f"datasets/{pinned['name']}/views/{pinned['view']}")
        versions.add((pinned["name"], pinned["manifest"]))
    for name, number in versions:
        dataset = open_dataset(storage, name, number)
        paths |= {manifest_path(name, number), report_path(name, number)}
        paths |= {part["path"] for part in dataset.parts()}
    kept = {(release.name, release.version) for release in releases}
    return paths | _live_records(storage, paths, kept)


def _live_records(storage: Storage, paths: set[str], versions: set[tuple[str, int]]) -> set[str]:
    """Stage records whose output stays, and the evaluations they lead to."""
    live: set[str] = set()
    for record in _stage_records(storage):
        output = storage.read_json(record).get("output") or {}
        if "view" in output:
            needed = f"datasets/{output['dataset']}/views/{output['view']}" in paths
        elif "version" in output:
            needed = (output["name"], output["version"]) in versions
        else:
            index = output.get("index", {}).get("path")
            needed = paths.issuperset(
                [*output.get("bundles", {}).values(), *filter(None, [output.get("bundle"), index])]
            )
        if needed:
            live |= {record, *filter(None, [output.get("evaluation")]), *output.get("outcomes", [])}
    return live


def _artifacts(storage: Storage) -> Iterator[str]:
    """Everything that can be garbage."""
    yield from storage.temporaries()
    yield from _stage_records(storage)
    for folder in ("releases", "evaluations", "runs"):
        yield from (f"{folder}/{name}" for name in storage.list(folder))
    yield from _bundles(storage)
    yield from _folders(storage, "indexes")
    for name in storage.list("datasets"):
        base = f"datasets/{name}"
        yield from (manifest_path(name, number) for number in manifest_numbers(storage, name))
        yield from (f"{base}/views/{view}" for view in storage.list(f"{base}/views"))
        for folder in PART_FOLDERS:
            yield from (f"{base}/{folder}/{file}" for file in storage.list(f"{base}/{folder}"))


def _removal_order(path: str) -> int:
    """Manifests and records first: what is half removed must not look whole."""
    return 0 if path.startswith(("stages/", "releases/")) or "/manifests/" in path else 1


def _stage_records(storage: Storage) -> Iterator[str]:
    for stage in storage.list("stages"):
        yield from (f"stages/{stage}/{name}" for name in storage.list(f"stages/{stage}"))


def _bundles(storage: Storage) -> Iterator[str]:
    return _folders(storage, "models")


def _folders(storage: Storage, kind: str) -> Iterator[str]:
    """Artifacts that are folders, by their name and digest."""
    for name in storage.list(kind):
        yield from (f"{kind}/{name}/{digest}" for digest in storage.list(f"{kind}/{name}"))


def _is_old(storage: Storage, path: str, hours: float) -> bool:
    try:
        return (time.time() - storage.modified(path)) / 3600 >= hours
    except FileNotFoundError:
        # Gone since it was listed.
        return False


def _all_releases() -> Iterator[RegisteredRelease]:
    for name in registered_names():
        yield from Tracker(name).releases()


def _dataset(storage: Storage, name: str) -> Json:
    numbers = manifest_numbers(storage, name)
    if not numbers:
        return {"name": name, "manifests": []}
    latest = open_dataset(storage, name)
    counts = {table: latest.manifest["vocab"][table]["rows"] for table in ("user", "item")}
    return {
        "name": name,
        "manifests": numbers,
        "digest": latest.digest,
        "simulated": latest.manifest["simulated"],
        "events": latest.manifest["counts"]["events"],
        **{f"{table}s": rows for table, rows in counts.items()},
    }


def _model(storage: Storage, path: str) -> Json:
    try:
        manifest = storage.read_json(f"{path}/model.json")
        size = sum(file["bytes"] for file in manifest["files"].values())
        return {"path": path, "kind": manifest["kind"], "items": manifest["num_items"], "bytes": size}
    except (FileNotFoundError, KeyError, StorageError):
        # Files go first, the manifest last: a publishing that was cut off looks like this.
        return {"path": path, "kind": "unpublished or damaged"}


def _release(storage: Storage, release: RegisteredRelease) -> Json:
    shown: Json = {"name": release.name, "version": release.version, "aliases": list(release.aliases)}
    if release.storage != storage.uri:
        return shown | {"digest": release.digest, "storage": release.storage}
    content = open_release(storage, release.digest).content
    metrics = {key: value for key, value in content["metrics"]["main"].items() if key in {"ndcg@10", "hr@10"}}
    return shown | {"digest": release.digest, "simulated": content["simulated"], "test": metrics}
