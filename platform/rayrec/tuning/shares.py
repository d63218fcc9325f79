"""What a trial takes of the cluster, and how many trials run at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import ray

from rayrec.errors import ClusterError
from rayrec.recipe import Recipe
from rayrec.tuning.options import Options

ASIDE = 0.1
"""CPUs of a trial that only waits for the workers of its training; Ray Tune wants more than none."""

Resources = Mapping[str, float]


def shares(recipe: Recipe, options: Options, threads: int | None) -> tuple[int, dict[str, float], int]:
    """Threads of a trial, its resources (``CPU`` and ``GPU``), and how many trials there are at a time.

    Args:
        recipe: What is tuned.
        options: Of the sweep.
        threads: Of a trial, where that is settled: it is never changed.

    Raises:
        ClusterError: The cluster has not what one trial takes, or what so many do.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU"))
    if recipe.training.workers:
        # Its workers take what they need; the trial itself waits for them.
        return threads or 1, {"CPU": ASIDE}, options.parallel or max(1, cpus // (recipe.training.workers + 1))
    gpu = _gpu_of_a_trial(recipe, options, gpus)
    wanted = options.parallel or (max(1, int(gpus / gpu)) if gpu else max(1, cpus // (threads or 1)))
    # A trial is in one place.
    largest = max(int(node.get("CPU", 0)) for node in nodes)
    threads = threads or max(1, min(largest, cpus // wanted))
    resources: dict[str, float] = {"CPU": threads, **({"GPU": gpu} if gpu else {})}
    fit = _fit(nodes, resources)
    if fit < (options.parallel or 1):
        takes = " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
        raise ClusterError(
            f"tune: a trial takes {takes} of one node, and so {fit} of {options.parallel or 1} fit into this cluster "
            "at a time. Lower --parallel, training.threads or `gpus`, or begin anew with --no-resume."
        )
    return threads, resources, min(wanted, fit)


def _gpu_of_a_trial(recipe: Recipe, options: Options, gpus: int) -> float:
    """The share of a GPU that a trial gets; 0 for none.

    Raises:
        ClusterError: The recipe wants GPUs, and there are none.
    """
    if recipe.training.gpus == "yes" and not gpus:
        raise ClusterError("training.gpus = 'yes', but the cluster has no GPU. Set training.gpus to auto.")
    if recipe.training.gpus == "no":
        return 0.0
    if options.gpus is not None:
        return options.gpus
    # Several trials share a GPU, one does not span two.
    return 1 / math.ceil((options.parallel or gpus) / gpus) if gpus else 0.0


def _fit(nodes: Sequence[Resources], each: Resources) -> int:
    """How many times the resources of a trial are there."""
    return sum(min(int(node.get(kind, 0) / amount + 1e-9) for kind, amount in each.items()) for node in nodes)
