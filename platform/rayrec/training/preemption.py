"""Machines that say beforehand that they will be taken away, as spot instances do: Ray drains them."""

from __future__ import annotations

import time

import ray.train

from rayrec.training.world import World

SECONDS = 2.0
"""Between two looks. Ray's own are 5 s apart (``RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S``)."""
MOST_STEPS = 1000


class Notice:
    """Whether a machine that trains is about to go.

    Args:
        world: This worker among all, who must ask equally often.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._between = self._left = 1
        self._began = time.perf_counter()

    def given(self) -> bool:
        """Asked after each step: whether to write a checkpoint, as a machine is about to go.

        Until it goes that is every `SECONDS`, so that what is done in the meantime is kept as well.
        """
        self._left -= 1
        if self._left:
            return False
        seconds = (time.perf_counter() - self._began) / self._between
        # All workers look after the same step: that of the first one's clock.
        steps = min(MOST_STEPS, max(1.0, SECONDS / seconds)) if self._world.rank == 0 else 0.0
        self._between = self._left = int(self._world.sum([steps])[0])
        info = ray.train.get_preemption_info()
        self._began = time.perf_counter()
        return info is not None
