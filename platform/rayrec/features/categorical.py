"""One of many words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from rayrec.features.base import Statistics
from rayrec.features.columns import as_words
from rayrec.features.vocabulary import FittedWords, WordsConfig


@dataclass(frozen=True, kw_only=True)
class Categorical(WordsConfig):
    """One of many words."""

    kind: Literal["categorical"] = "categorical"

    def update(self, column: pa.Array, statistics: Statistics) -> None:
        """Count the words."""
        self.count(as_words(column).drop_null(), statistics)

    def fitted(self, statistics: Statistics) -> FittedCategorical:
        """The vocabulary."""
        return FittedCategorical(self, self.vocabulary(statistics))


@dataclass(frozen=True)
class FittedCategorical(FittedWords):
    """One of many words: int64 ids."""

    def apply(self, column: pa.Array) -> pa.Array:
        """See `Fitted.apply`."""
        return pa.array(self.ids(as_words(column)), pa.int64())
