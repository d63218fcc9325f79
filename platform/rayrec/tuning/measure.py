"""What a trained model is worth and what it costs: measured once, when its trial ends."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rayrec.artifacts import Storage
from rayrec.evaluation.full_ranking import HeldOut, rank_users
from rayrec.inference.bundle import open_bundle, publish_bundle
from rayrec.inference.runtime import Runtime, TorchRuntime
from rayrec.inference.top_k import top_k
from rayrec.metrics.ranking import parse_metric, ranking_metrics
from rayrec.models.base import Recommender
from rayrec.tuning.objectives import COSTS

REQUESTS, WARM_UP = 200, 20
ANSWERS = 10
"""Items a request asks for."""


def measure(model: Recommender, users: HeldOut, wanted: Sequence[str], exclude_seen: bool) -> dict[str, float]:
    """What is wanted of a model: metrics on held-out events, and `COSTS`.

    Args:
        model: The trained model; where costs are wanted it is moved to the CPU.
        users: Who validates.
        wanted: Names of metrics and costs.
        exclude_seen: Do not recommend what a user already had.
    """
    names = [name for name in wanted if name not in COSTS]
    ks = sorted({parse_metric(name)[1] for name in names})
    score = TorchRuntime(model).on_device
    ranked = rank_users(score, users, model.num_items, model.max_length, max(ks), exclude_seen)
    metrics = ranking_metrics(ranked.ranks, ks)
    values = {name: metrics[name] for name in names}
    if set(wanted) & set(COSTS):
        costs = _costs(model, users)
        values |= {name: costs[name] for name in wanted if name in COSTS}
    return values


def _costs(model: Recommender, users: HeldOut) -> dict[str, float]:
    """Publish the model for a moment, as it would be served, and ask it."""
    with tempfile.TemporaryDirectory(prefix="rayrec-costs-") as folder:
        storage = Storage.open(folder)
        keys = [str(row) for row in range(1, model.num_items + 1)]
        bundle = open_bundle(storage, publish_bundle(storage, "trial", model, keys, [], {"training": {}}, {}))
        weights = [path for path in bundle.folder.rglob("*") if path.suffix in {".safetensors", ".onnx", ".data"}]
        return {"p95_ms": _p95(bundle.scorer(threads=1).runtime, model, users), "size_mb": _megabytes(weights)}


def _p95(runtime: Runtime, model: Recommender, users: HeldOut) -> float:
    """Milliseconds: users one after the other, each with the history that a server would know."""
    chosen = np.arange(WARM_UP + REQUESTS) % len(users)
    asked = [users.asked(np.array([place]), _length(users, int(place), model.max_length)) for place in chosen]
    seconds = []
    for inputs in asked:
        began = time.perf_counter()
        top_k(runtime(inputs), ANSWERS)
        seconds.append(time.perf_counter() - began)
    return float(np.percentile(seconds[WARM_UP:], 95) * 1000)


def _length(users: HeldOut, place: int, most: int) -> int:
    lengths = users.past.lengths_of(users.users[[place]])
    return max(1, min(most, int(lengths[0])))


def _megabytes(files: Sequence[Path]) -> float:
    return sum(path.stat().st_size for path in files) / 1e6
