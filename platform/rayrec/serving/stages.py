"""Stages of an answer, timed for the metrics and, if that is asked for, as spans."""

from __future__ import annotations

import time
from typing import Literal

from rayrec.serving import tracing
from rayrec.serving.metrics import STAGE_SECONDS

Stage = Literal["ask", "wait", "score", "arrange"]
_TIMES = {name: STAGE_SECONDS.labels(name) for name in ("ask", "wait", "score", "arrange")}


class stage:  # noqa: N801 - reads as a statement
    """Times what is in its block.

    Example::

        with stage("score"):
            rows, scores = scorer.top(histories, depth)
    """

    __slots__ = ("_began", "_name")

    def __init__(self, name: Stage) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        took(self._name, self._began, time.perf_counter())


def took(name: Stage, began: float, ended: float) -> None:
    """Note from when to when a stage took, by `time.perf_counter`."""
    _TIMES[name].observe(ended - began)
    if tracing.is_on():
        tracing.note(tracing.Lap(name, began, ended))
