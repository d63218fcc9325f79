"""Words to ids: by a vocabulary, or hashed into buckets."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.features.base import FeatureConfig, Fitted, Json, Output, Statistics
from rayrec.features.hashing import hash64

MISSING, UNKNOWN, FIRST_WORD = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class WordsConfig(FeatureConfig):
    """What all kinds of words have in common."""

    min_count: int = field(default=1, metadata={"ge": 1, "description": "Words that occur less often are unknown."})
    max_size: int | None = field(
        default=None, metadata={"ge": 1, "description": "Keep only so many words, the most frequent."}
    )
    buckets: int | None = field(
        default=None, metadata={"ge": 1, "description": "Hash into so many, instead of a vocabulary."}
    )

    def count(self, words: pa.Array, statistics: Statistics) -> None:
        """Count ``[M]`` words without nulls; with buckets there is nothing to learn."""
        if self.buckets is None:
            statistics.words.add(pl.Series(words))

    def vocabulary(self, statistics: Statistics) -> pa.Array:
        """The words that are kept, by count, then by word: large_string."""
        frequent = statistics.words.frame().filter(pl.col("count") >= self.min_count)
        ordered = frequent.sort(["count", "key"], descending=[True, False])["key"].head(self.max_size or len(frequent))
        return ordered.to_arrow(compat_level=pl.CompatLevel.oldest())


@dataclass(frozen=True)
class FittedWords(Fitted):
    """A fitted vocabulary.

    Attributes:
        words: large_string; the first has id 2. Empty with buckets.
    """

    config: WordsConfig
    words: pa.Array

    @property
    def output(self) -> Output:
        """Ids: 0 missing, 1 unknown, from 2 known; with buckets 0 missing, then the buckets."""
        buckets = self.config.buckets
        return Output(self.config.kind, size=FIRST_WORD + len(self.words) if buckets is None else 1 + buckets)

    def ids(self, words: pa.Array) -> np.ndarray:
        """``[N]`` int64 of ``[N]`` words."""
        encoded = words.dictionary_encode()
        distinct = np.append(self._ids_of(encoded.dictionary), MISSING)
        return distinct[encoded.indices.fill_null(-1).to_numpy()]

    def to_json(self) -> Json:
        """The words."""
        return {"words": self.words.to_pylist()}

    @classmethod
    def from_json(cls, config: Any, learnt: Json) -> Fitted:
        """A vocabulary of these words."""
        return cls(config, pa.array(learnt["words"], pa.large_string()))

    def _ids_of(self, words: pa.Array) -> np.ndarray:
        if self.config.buckets is not None:
            return 1 + (hash64(words) % np.uint64(self.config.buckets)).astype(np.int64)
        if not len(self.words):
            return np.full(len(words), UNKNOWN)
        seed, hashes, rows = self._index
        found = rows[np.minimum(np.searchsorted(hashes, hash64(words, seed)), len(rows) - 1)]
        same = pc.equal(self.words.take(pa.array(found)), words).to_numpy(zero_copy_only=False)
        return np.where(same, FIRST_WORD + found, UNKNOWN)

    @cached_property
    def _index(self) -> tuple[int, np.ndarray, np.ndarray]:
        """A seed, the sorted hashes of the words, and their rows: found in microseconds, however many words."""
        for seed in itertools.count():
            hashes = hash64(self.words, seed)
            rows = np.argsort(hashes)
            if (np.diff(hashes[rows]) > 0).all():
                break
        return seed, hashes[rows], rows
