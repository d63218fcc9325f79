"""Text, kept as it is for encoders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from rayrec.features.base import FeatureConfig, Fitted, Output, Statistics
from rayrec.features.columns import as_text


@dataclass(frozen=True, kw_only=True)
class Text(FeatureConfig):
    """Text, kept as it is for encoders."""

    kind: Literal["text"] = "text"
    max_length: int = field(default=4096, metadata={"ge": 1, "description": "Longer ones are cut, in characters."})

    def update(self, column: pa.Array, statistics: Statistics) -> None:
        """Nothing is learnt."""

    def fitted(self, statistics: Statistics) -> FittedText:
        """The same for all data."""
        return FittedText(self)


@dataclass(frozen=True)
class FittedText(Fitted):
    """Text: string, empty when missing."""

    config: Text

    @property
    def output(self) -> Output:
        """A text."""
        return Output(self.config.kind)

    def apply(self, column: pa.Array) -> pa.Array:
        """See `Fitted.apply`."""
        text = pc.fill_null(as_text(column), "")
        return pc.utf8_slice_codeunits(text, 0, self.config.max_length).cast(pa.string())
