"""Several words at once, such as tags."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from rayrec.features.base import Statistics
from rayrec.features.lists import as_lists
from rayrec.features.vocabulary import FittedWords, WordsConfig


@dataclass(frozen=True, kw_only=True)
class MultiValued(WordsConfig):
    """Several words at once, such as tags."""

    kind: Literal["multi-valued"] = "multi-valued"
    separator: str = field(default="|", metadata={"min_length": 1, "description": "Between them, in a text."})

    def update(self, column: pa.Array, statistics: Statistics) -> None:
        """Count the words."""
        self.count(as_lists(column, self.separator)[0], statistics)

    def fitted(self, statistics: Statistics) -> FittedMultiValued:
        """The vocabulary."""
        return FittedMultiValued(self, self.vocabulary(statistics))


@dataclass(frozen=True)
class FittedMultiValued(FittedWords):
    """Several words at once: list<int64> of ids in the order given, empty when missing."""

    config: MultiValued

    def apply(self, column: pa.Array) -> pa.Array:
        """See `Fitted.apply`."""
        words, rows = as_lists(column, self.config.separator)
        offsets = np.append(0, np.cumsum(np.bincount(rows, minlength=len(column))))
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(self.ids(words), pa.int64()))
