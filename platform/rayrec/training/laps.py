"""What the time of training goes into."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import cast

import torch

MARKS = 4096
"""Held at most before they are added up."""


class Laps:
    """Seconds by what they went into, without making a GPU wait: there they are its own, read at the end.

    What Python does while the GPU is busy costs nothing, so that for example ``data`` is how long the GPU had to wait.

    Args:
        device: Where the work is done.

    Example::

        >>> laps = Laps(torch.device("cpu"))
        >>> batch = feed.batch(plan, step)
        >>> laps.end("data")
        >>> laps.read()
        {'data': 0.002}
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, torch.cuda.Event | float]] = []
        self._seconds: dict[str, float] = {}
        self.end("")

    def end(self, name: str) -> None:
        """What was done since the last call was ``name``."""
        if len(self._marks) == MARKS:
            self._add_up()
        if self._device.type != "cuda":
            self._marks.append((name, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((name, event))

    def skip(self) -> None:
        """What was done since the last call does not count."""
        self._add_up()
        self._marks.clear()
        self.end("")

    def read(self) -> dict[str, float]:
        """Seconds since the last call, or the beginning."""
        self._add_up()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _add_up(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        for (_, before), (name, after) in pairwise(self._marks):
            self._seconds[name] = self._seconds.get(name, 0.0) + _between(before, after)
        del self._marks[:-1]


def _between(before: torch.cuda.Event | float, after: torch.cuda.Event | float) -> float:
    if isinstance(before, float):
        return cast("float", after) - before
    return before.elapsed_time(cast("torch.cuda.Event", after)) / 1000
