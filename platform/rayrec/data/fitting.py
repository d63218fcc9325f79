"""What a view learns before it is written: how to fill, clip and encode columns, and which items there are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.artifacts import Json, canonical, digest
from rayrec.data.dataset import Dataset, read_part
from rayrec.features.base import FeatureConfig
from rayrec.features.fill import fills
from rayrec.features.fit import Fit
from rayrec.features.transform import Transform
from rayrec.recipe_data import Data

CONTEXT, GIVEN = "context_", "given_"
"""How columns begin that the user named: in the log and in views, in the tables."""

FEATURE, USER = "feature_", "user_"
"""How a view's columns of features of items and users begin."""


@dataclass(frozen=True)
class Fitted:
    """The transforms of a view.

    Attributes:
        fill: Filling and clipping of ``value`` and context columns, before anything else sees them.
        context: Features of events.
        items: Features of the item table.
        users: Features of the user table.
    """

    fill: Transform
    context: Transform
    items: Transform
    users: Transform

    def to_json(self) -> Json:
        """All of it."""
        return {part.name: json.loads(getattr(self, part.name).to_json()) for part in fields(self)}

    @classmethod
    def from_json(cls, content: Json) -> Fitted:
        """What `to_json` gave.

        Raises:
            DataError: It is damaged.
        """
        return cls(**{part.name: Transform.from_json(json.dumps(content.get(part.name))) for part in fields(cls)})

    def fill_events(self, events: pa.Table) -> pa.Table:
        """Events of the log with missing values filled and outliers clipped."""
        filled = self.fill.apply(recipe_columns(events))
        for name in filled.column_names:
            column = log_column(name)
            if column in events.column_names:
                events = events.set_column(events.column_names.index(column), column, filled[name])
        return events

    def encode_events(self, events: pa.Table) -> pa.Table:
        """The features of events whose columns are filled: ``[N]`` rows."""
        return self.context.apply(recipe_columns(events))

    def encode_moments(self, rows: Sequence[Mapping[str, object]]) -> pa.Table:
        """`fill_events` and `encode_events` of JSON objects, such as the contexts of requests: ``[N]`` rows."""
        filled = self.fill.apply_rows(rows).to_pylist() if self.fill.features else [{} for _ in rows]
        return self.context.apply_rows([{**row, **fill} for row, fill in zip(rows, filled, strict=True)])


def load_fitted(dataset: Dataset, view: Json) -> Fitted:
    """The transforms of a view, by its manifest."""
    return Fitted.from_json(dataset.storage.read_json(view["transform"]["path"]))


def publish_fitted(dataset: Dataset, fitted: Fitted) -> Json:
    """Write the transforms under the name their content gives them. Returns the entry for the view's manifest."""
    data = canonical(fitted.to_json())
    path = dataset.storage.write_content(f"{dataset.path}/transforms", data, ".json")
    return {"path": path, "sha256": digest(data), "bytes": len(data)}


def log_column(name: str) -> str:
    """What the log calls a column that the recipe calls ``name``."""
    return name if name in {"value", "timestamp"} else f"{CONTEXT}{name}"


def event_columns(data: Data) -> list[str]:
    """Columns of the log that are filled, clipped or encoded."""
    encoded = [config.column or name for name, config in data.features.context.items()]
    return [log_column(name) for name in dict.fromkeys([*data.clean.missing, *data.clean.outliers, *encoded])]


def recipe_columns(table: pa.Table) -> pa.Table:
    """A table with the columns as the recipe calls them; an event's own ``timestamp`` hides a context of that name."""
    own = {name: table[name] for name in ("value", "timestamp") if name in table.column_names}
    named = {n.removeprefix(p): table[n] for p in (CONTEXT, GIVEN) for n in table.column_names if n.startswith(p)}
    return pa.table({**named, **own})


class EventFit:
    """What is being learnt from events: how to fill, clip and encode their columns."""

    def __init__(self, data: Data) -> None:
        outliers = {name: asked.model_dump() for name, asked in data.clean.outliers.items()}
        self._configs: dict[str, Mapping[str, FeatureConfig]] = {
            "fill": fills(data.clean.missing, outliers),
            "context": data.features.context,
        }
        self._fits = {name: Fit.begin(configs) for name, configs in self._configs.items()}

    def update(self, events: pa.Table) -> None:
        """Learn from events of the log."""
        for fit in self._fits.values():
            fit.update(recipe_columns(events))

    def to_bytes(self) -> dict[str, bytes]:
        """What is learnt so far, to send."""
        return {name: fit.to_bytes() for name, fit in self._fits.items()}

    def merge(self, sent: Mapping[str, bytes]) -> None:
        """Add what another has learnt and sent."""
        for name, fit in self._fits.items():
            fit.merge(Fit.from_bytes(self._configs[name], sent[name]))

    def finish(self) -> dict[str, Transform]:
        """``fill`` and ``context``."""
        return {name: fit.finish() for name, fit in self._fits.items()}


@dataclass(frozen=True)
class Table:
    """The item or user table, by the indexes of the vocabulary.

    Attributes:
        table: As the manifest lists it.
        rows: ``[V + 1]`` int64, the row of each index; -1 where the table has none.
    """

    table: pa.Table
    rows: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset, name: str) -> Table | None:
        """The ``item`` or ``user`` table; None where there is none."""
        listed = dataset.manifest[f"{name}s"]
        if listed is None:
            return None
        table, keys = read_part(dataset.storage, listed), dataset.vocabulary(name)["key"].combine_chunks()
        found = pc.fill_null(pc.index_in(keys, table[name].combine_chunks(), skip_nulls=True), -1)
        return cls(table, np.concatenate([[-1], found.to_numpy().astype(np.int64)]))

    def encode(self, transform: Transform, indexes: np.ndarray) -> pa.Table:
        """The features of some indexes, ``[N]`` rows; of those that the table does not have, as missing."""
        rows = self.rows[indexes]
        return transform.apply(recipe_columns(self.table.take(pa.array(rows, pa.int64(), mask=rows < 0))))

    def known(self, indexes: np.ndarray) -> np.ndarray:
        """Which rows of the table belong to some indexes: ``[T]`` bool."""
        rows = self.rows[indexes]
        return np.isin(np.arange(self.table.num_rows), rows[rows >= 0])


def fit_table(configs: Mapping[str, FeatureConfig], table: Table | None, indexes: np.ndarray | None) -> Transform:
    """Learn the features of the item or user table.

    Args:
        configs: Which.
        table: The table, or None where there is none.
        indexes: Whose rows to learn from; None for all.
    """
    fit = Fit.begin(configs)
    if table is not None:
        rows = table.table if indexes is None else table.table.filter(pa.array(table.known(indexes)))
        fit.update(recipe_columns(rows))
    return fit.finish()
