"""What a Dataset remembers of users who asked to be forgotten."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

from rayrec.artifacts import Storage, digest
from rayrec.features.hashing import hash64

BETWEEN_WORDS = re.compile(r"[\s,;|:'\"{}\[\]()=]+")


def erasures(name: str) -> str:
    """The folder of a Dataset's tombstones."""
    return f"datasets/{name}/erasures"


def fingerprints(keys: pa.Array | pa.ChunkedArray, name: str) -> np.ndarray:
    """What a Dataset remembers of erased users: ``[N]`` uint64, not the keys themselves.

    Whoever can guess a key can check the guess: it is a pseudonym, not a secret.
    """
    seed = int(digest(name.encode())[:16], 16)
    return np.concatenate([hash64(chunk, seed) for chunk in pa.chunked_array(keys).chunks] or [np.empty(0, np.uint64)])


def erased_users(storage: Storage, name: str) -> list[int]:
    """The fingerprints of a Dataset's erased users."""
    files = storage.list(erasures(name))
    return [int(file.removesuffix(".json"), 16) for file in files if file.endswith(".json")]


def forget(events: pa.Table, rejected: pa.Table, name: str, erased: frozenset[int]) -> tuple[pa.Table, pa.Table]:
    """Events without those of erased users, and rejected rows without the text of those that mention one.

    Args:
        events: With a column ``user``.
        rejected: With a column ``text``.
        name: The Dataset.
        erased: Fingerprints.
    """
    if not erased:
        return events, rejected
    known = np.array(sorted(erased), np.uint64)
    hit = np.isin(fingerprints(events["user"], name), known)
    texts = [None if _mentions(text, name, known) else text for text in rejected["text"].to_pylist()]
    column = rejected.column_names.index("text")
    return events.filter(pa.array(~hit)), rejected.set_column(column, "text", pa.array(texts, pa.string()))


def _mentions(text: str | None, name: str, known: np.ndarray) -> bool:
    words = pa.array(BETWEEN_WORDS.split(text or ""), pa.string())
    return bool(np.isin(fingerprints(words, name), known).any())
