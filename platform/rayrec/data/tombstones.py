"""What a Dataset remembers of users who asked to be forgotten."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.artifacts import Storage, digest
from rayrec.features.hashing import hash64

BOUNDARY = re.compile(r"(?<!\w)|(?!\w)")
"""Where a key can begin or end in a text: everywhere but inside a word."""

ESCAPED = re.compile(r"\\(.)")
TOMBSTONE = re.compile(r"([0-9a-f]{16})-(\d+)\.json")
TEXTS = 1000
"""Texts searched at once: each makes many candidates."""


@dataclass(frozen=True)
class Erased:
    """Users who asked to be forgotten: not their keys.

    Whoever can guess a key can check the guess: it is a pseudonym, not a secret.

    Attributes:
        name: The Dataset.
        marks: Of each user the fingerprint of the key, and its length: where a text has the key is not known before.
    """

    name: str
    marks: frozenset[tuple[int, int]]

    @classmethod
    def of(cls, name: str, user: str) -> Erased:
        """One user of a Dataset."""
        (fingerprint,) = _fingerprints(pa.array([user], pa.string()), name).tolist()
        return cls(name, frozenset({(fingerprint, len(user))}))

    def __bool__(self) -> bool:
        return bool(self.marks)

    def known(self, keys: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Which keys are theirs: ``[N]`` bool."""
        if not self:
            return np.zeros(len(keys), bool)
        return np.isin(_fingerprints(keys, self.name), np.array([mark for mark, _ in self.marks], np.uint64))

    def mentioned(self, texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Which texts have one of their keys, not as a part of a longer word: ``[N]`` bool; null has none."""
        found = np.zeros(len(texts), bool)
        for first in range(0, len(texts) if self else 0, TEXTS):
            pairs = [
                (first + place, word)
                for place, text in enumerate(texts.slice(first, TEXTS).to_pylist())
                for word in self._candidates(text or "")
            ]
            hit = self.known(pa.array([word for _, word in pairs], pa.string()))
            found[np.array([place for place, _ in pairs], np.int64)[hit]] = True
        return found

    def _candidates(self, text: str) -> Iterator[str]:
        """Everything in a text that could be one of the keys, which a rejected row may show with backslashes."""
        lengths = {length for _, length in self.marks}
        for shown in {text, ESCAPED.sub(r"\1", text)}:
            ends = {match.start() for match in BOUNDARY.finditer(shown)}
            yield from (shown[at : at + length] for at in ends for length in lengths if at + length in ends)


def erasures(name: str) -> str:
    """The folder of a Dataset's tombstones."""
    return f"datasets/{name}/erasures"


def tombstone_path(erased: Erased) -> str:
    """Where the tombstone of one user is."""
    ((fingerprint, length),) = erased.marks
    return f"{erasures(erased.name)}/{fingerprint:016x}-{length}.json"


def erased_users(storage: Storage, name: str) -> Erased:
    """A Dataset's erased users."""
    files = (TOMBSTONE.fullmatch(file) for file in storage.list(erasures(name)))
    return Erased(name, frozenset((int(file[1], 16), int(file[2])) for file in files if file))


def forget(events: pa.Table, rejected: pa.Table, erased: Erased) -> tuple[pa.Table, pa.Table]:
    """Events without those of erased users, and rejected rows without the text of those that mention one.

    Args:
        events: With a column ``user``.
        rejected: With a column ``text``.
        erased: Who.
    """
    return events.filter(pa.array(~erased.known(events["user"]))) if erased else events, without_text(rejected, erased)


def without_text(rejected: pa.Table, erased: Erased) -> pa.Table:
    """Rejected rows without the text of those that mention an erased user: how many there were, and why, stays."""
    mentioned = erased.mentioned(rejected["text"])
    if not mentioned.any():
        return rejected
    texts = pc.if_else(pa.array(mentioned), pa.scalar(None, pa.string()), rejected["text"])
    return rejected.set_column(rejected.column_names.index("text"), "text", texts)


def _fingerprints(keys: pa.Array | pa.ChunkedArray, name: str) -> np.ndarray:
    """``[N]`` uint64, other ones in each Dataset."""
    return hash64(keys, seed=int(digest(name.encode())[:16], 16))
