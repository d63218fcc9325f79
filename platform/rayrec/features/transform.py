"""The fitted features: the same immutable transform in prepare, train and serve."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from rayrec.errors import DataError
from rayrec.features.base import FeatureConfig, Fitted, Json, Output
from rayrec.features.categorical import Categorical, FittedCategorical
from rayrec.features.columns import blocks, column_of
from rayrec.features.fill import Fill, FittedFill
from rayrec.features.multi_valued import FittedMultiValued, MultiValued
from rayrec.features.numeric import FittedNumeric, Numeric
from rayrec.features.rows import rows_as_columns
from rayrec.features.text import FittedText, Text
from rayrec.features.timestamp import FittedTimestamp, Timestamp
from rayrec.features.vector import FittedVector, Vector

SCHEMA = 1

KINDS: dict[str, tuple[type[FeatureConfig], type[Fitted]]] = {
    "categorical": (Categorical, FittedCategorical),
    "multi-valued": (MultiValued, FittedMultiValued),
    "numeric": (Numeric, FittedNumeric),
    "timestamp": (Timestamp, FittedTimestamp),
    "text": (Text, FittedText),
    "vector": (Vector, FittedVector),
    "fill": (Fill, FittedFill),
}


@dataclass(frozen=True, eq=False)
class Transform:
    """Fitted features by name.

    Row i of what `apply` gives depends on row i alone, to the last bit, and nothing in a row makes it raise: what is
    unseen is unknown, what cannot be read is missing.
    """

    features: Mapping[str, Fitted]

    @cached_property
    def outputs(self) -> dict[str, Output]:
        """What each feature gives to a model."""
        return {name: fitted.output for name, fitted in self.features.items()}

    def apply(self, table: pa.Table) -> pa.Table:
        """``[N]`` rows to ``[N]`` rows with a column for each feature; a column that is absent is all missing."""
        return pa.concat_tables(
            pa.table({name: fitted.apply(column_of(block, _source(name, fitted))) for name, fitted in self._items})
            for block in blocks(table)
        )

    def apply_rows(self, rows: Sequence[Mapping[str, object]]) -> pa.Table:
        """`apply` to JSON objects, such as the contexts of requests.

        Values are read as the text the log would have of them: an epoch number is in seconds or milliseconds by its
        size.
        """
        columns = {}
        for name, fitted in self._items:
            values = [row.get(_source(name, fitted)) for row in rows]
            parts = rows_as_columns(values)
            order = np.argsort(np.concatenate([positions for positions, _ in parts]))
            applied = pa.concat_arrays([fitted.apply(column) for _, column in parts])
            columns[name] = applied.take(pa.array(order))
        return pa.table(columns)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return _digest(self._content)

    def to_json(self) -> str:
        """All that was learnt: JSON with sorted keys and no spaces."""
        return _canonical({**self._content, "digest": self.digest})

    @classmethod
    def from_json(cls, text: str | bytes) -> Transform:
        """What `to_json` wrote.

        Raises:
            DataError: It is damaged, or of a newer rayrec.
        """
        damaged = "the fitted features are damaged: run `rayrec prepare` again, or restore the file"
        try:
            content = json.loads(text)
            schema, digest = content["schema"], content.pop("digest")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataError(f"{damaged} ({error or type(error).__name__}).") from error
        if schema != SCHEMA:
            raise DataError(
                f"the fitted features have schema {schema}, this rayrec reads {SCHEMA}: install the rayrec that wrote "
                "them, or a newer one, or run `rayrec prepare` again."
            )
        if digest != _digest(content):
            raise DataError(f"{damaged} (their checksum differs).")
        return cls({name: _fitted(feature) for name, feature in content["features"].items()})

    @property
    def _items(self) -> list[tuple[str, Fitted]]:
        return list(self.features.items())

    @property
    def _content(self) -> Json:
        features = {name: {"config": asdict(f.config), "learnt": f.to_json()} for name, f in self._items}
        return {"schema": SCHEMA, "features": features}


def _source(name: str, fitted: Fitted) -> str:
    return fitted.config.column or name


def _fitted(feature: Json) -> Fitted:
    # Configs are frozen: their lists are tuples.
    given: Json = {key: tuple(value) if isinstance(value, list) else value for key, value in feature["config"].items()}
    config_class: Any
    config_class, fitted_class = KINDS[given["kind"]]
    return fitted_class.from_json(config_class(**given), feature["learnt"])


def _canonical(content: Json) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _digest(content: Json) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()
