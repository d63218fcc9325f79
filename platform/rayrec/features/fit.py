"""Fitting several features in one streaming pass, in any number of pieces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

import polars as pl
import pyarrow as pa

from rayrec.errors import DataError
from rayrec.features.base import FeatureConfig, Statistics
from rayrec.features.columns import blocks, column_of
from rayrec.features.counts import Counts
from rayrec.features.sums import Sums
from rayrec.features.transform import Transform


class Fit:
    """What is learnt so far.

    Counts and sums are exact, so the result does not depend on how rows are split or in which order parts are merged.
    Memory is that of the distinct words, however few ``max_size`` keeps; numbers take a bounded amount.

    Example::

        >>> first, second = (Fit.begin({"genre": Categorical()}) for _ in range(2))
        >>> first.update(pa.table({"genre": ["war", "drama"]}))
        >>> second.update(pa.table({"genre": ["drama"]}))
        >>> first.merge(second)
        >>> first.finish().apply(pa.table({"genre": ["war", "drama", "new", None]}))["genre"].to_pylist()
        [3, 2, 1, 0]
    """

    def __init__(self, configs: Mapping[str, FeatureConfig], statistics: Mapping[str, Statistics]) -> None:
        self._configs = dict(sorted(configs.items()))
        self._statistics = statistics

    @classmethod
    def begin(cls, configs: Mapping[str, FeatureConfig]) -> Fit:
        """Nothing learnt yet, for these features by name."""
        return cls(configs, {name: Statistics() for name in configs})

    def update(self, table: pa.Table) -> None:
        """Learn from further rows; a column that is absent is all missing."""
        for block in blocks(table):
            for name, config in self._configs.items():
                config.update(column_of(block, config.column or name), self._statistics[name])

    def merge(self, other: Fit) -> None:
        """Add what another one with the same features has learnt."""
        for name, statistics in self._statistics.items():
            statistics.merge(other._statistics[name])

    def finish(self) -> Transform:
        """The fitted features."""
        return Transform({name: config.fitted(self._statistics[name]) for name, config in self._configs.items()})

    def to_bytes(self) -> bytes:
        """What is learnt, to send: two Arrow IPC streams a feature, words and numbers, the sums in the metadata."""
        sink = pa.BufferOutputStream()
        for name, config in self._configs.items():
            learnt = self._statistics[name]
            header = {
                "feature": _identity(name, config),
                "sums": json.dumps(learnt.sums.to_json()),
                "logs": json.dumps(learnt.logs.to_json()),
            }
            for counts in (learnt.words, learnt.values):
                table = counts.frame().to_arrow(compat_level=pl.CompatLevel.oldest()).replace_schema_metadata(header)
                with pa.ipc.new_stream(sink, table.schema) as writer:
                    writer.write_table(table)
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, configs: Mapping[str, FeatureConfig], data: bytes) -> Fit:
        """What `to_bytes` gave.

        Raises:
            DataError: It is of other features.
        """
        source = pa.BufferReader(data)
        statistics = {}
        for name, config in sorted(configs.items()):
            words, values = (pa.ipc.open_stream(source).read_all() for _ in range(2))
            header = {key.decode(): value.decode() for key, value in words.schema.metadata.items()}
            if header["feature"] != _identity(name, config):
                raise DataError(f"feature '{name}': what was learnt is of other features. Fit them all again.")
            statistics[name] = Statistics(
                Counts.of(pl.DataFrame(words)),
                Counts.of(pl.DataFrame(values)),
                Sums.from_json(json.loads(header["sums"])),
                Sums.from_json(json.loads(header["logs"])),
            )
        return cls(configs, statistics)


def _identity(name: str, config: FeatureConfig) -> str:
    return json.dumps([name, asdict(config)], sort_keys=True)
