"""Work on blocks as Ray tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from rayrec.errors import RayrecError
from rayrec.models.interactions import S, T, here

IN_FLIGHT = 2
"""Blocks under way for each CPU of the cluster: enough to keep all busy, and few enough to hold in memory."""


def by_ray(function: Callable[[S, range], T], shared: S, blocks: Sequence[range]) -> Iterator[T]:
    """`Each` by a Ray task a block. One block alone is done here.

    Raises:
        RayrecError: What a task raised, as it was.
    """
    if len(blocks) <= 1:
        yield from here(function, shared, blocks)
        return
    task: Any = ray.remote(num_cpus=1)(function)
    reference = ray.put(shared)
    waiting: deque[Any] = deque()
    most = max(1, int(IN_FLIGHT * ray.cluster_resources().get("CPU", 1)))
    for block in blocks:
        waiting.append(task.remote(reference, block))
        if len(waiting) >= most:
            yield result(waiting.popleft())
    while waiting:
        yield result(waiting.popleft())


def result(reference: Any) -> Any:
    """What a task returned. An error of ours arrives as it was: Ray puts the worker's traceback into its message."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RayrecError):
            raise error.cause from error
        raise
