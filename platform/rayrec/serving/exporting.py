"""Hands what a replica has counted to Ray, whose agent on each node gives it to Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.samples import Sample
from ray.serve import metrics


class Exporter:
    """Hands a registry's sums to Ray.

    Counters are Ray's counters. What makes up a histogram is handed over as gauges of the names that Prometheus knows
    (``_bucket``, ``_sum``, ``_count``): Ray's own histograms take single observations, and rebuild their sum from the
    middles of the buckets.

    Args:
        registry: What is counted.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._metrics: dict[str, Any] = {}
        self._told: dict[tuple[str, tuple[str, ...]], float] = {}

    def hand_over(self) -> None:
        """Tell Ray where everything stands now."""
        for metric in self._registry.collect():
            for sample in metric.samples:
                if metric.type == "counter":
                    self._count(metric, sample)
                elif not sample.name.endswith("_created"):
                    # Anew each time: Ray drops what it is not told of, such as a Release that is live no longer.
                    self._of(metrics.Gauge, sample.name, metric, sample).set(sample.value, tags=dict(sample.labels))

    def _count(self, metric: Metric, sample: Sample) -> None:
        key = sample.name, tuple(sample.labels.values())
        more = sample.value - self._told.get(key, 0.0)
        if more > 0 and not sample.name.endswith("_created"):
            # Ray puts `_total` behind the name itself.
            self._of(metrics.Counter, metric.name, metric, sample).inc(more, tags=dict(sample.labels))
            self._told[key] = sample.value

    def _of(self, kind: Any, name: str, metric: Metric, sample: Sample) -> Any:
        """Ray's metric of a name."""
        if name not in self._metrics:
            self._metrics[name] = kind(name, metric.documentation, tuple(sample.labels))
        return self._metrics[name]
