"""What Prometheus reads of an endpoint."""

from __future__ import annotations

from rayrec.serving.metrics import REGISTRY

ENDINGS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
RAYS_PREFIX = "ray_"


def exposed_names() -> set[str]:
    """The names of the endpoint's own series, as Ray gives them out."""
    return {RAYS_PREFIX + metric.name + ending for metric in REGISTRY.collect() for ending in ENDINGS[metric.type]}
