"""What workers report while they train, and the driver passes on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayrec.errors import RayrecError
from rayrec.training.progress import Metrics, Position

_LOG = logging.getLogger(__name__)

POLL_SECONDS = 0.5


class Reports:
    """An actor that holds the entries of finished epochs; a restarted worker replaces what it repeats."""

    def __init__(self) -> None:
        self._entries: dict[int, Metrics] = {}
        self._begun: list[Position] = []
        self._threads: int | None = None
        self._where: dict[int, str] = {}

    def begin(self, rank: int, where: str, position: Position, threads: int) -> int:
        """A worker begins, after ``position``. Returns the number of threads that was proposed first."""
        self._where[rank] = where
        if rank == 0:
            self._begun.append(position)
        self._threads = self._threads or threads
        return self._threads

    def add(self, entry: Metrics) -> None:
        """An epoch has ended."""
        self._entries[int(entry["epoch"])] = entry

    def where(self, rank: int) -> str:
        """Where a worker is."""
        return self._where.get(rank, "not yet begun")

    def since(self, epoch: int, begun: int) -> tuple[list[Metrics], list[Position]]:
        """Entries of later epochs, and after what workers began, but for the first ``begun`` times."""
        return [entry for number, entry in sorted(self._entries.items()) if number > epoch], self._begun[begun:]


@contextmanager
def reporter(on_epoch: Callable[[Metrics], None]) -> Iterator[Any]:
    """`Reports` for workers to report to, and a thread that passes epochs on to ``on_epoch`` while the block lasts."""
    # Beside this process, with which it ends: on another node it could die alone.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(Reports).remote()
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(actor, on_epoch, ended), daemon=True)
    thread.start()
    try:
        yield actor
    finally:
        ended.set()
        thread.join()
        ray.kill(actor)


def _follow(actor: Any, on_epoch: Callable[[Metrics], None], ended: threading.Event) -> None:
    last, begun, over = 0, 0, False
    while not over:
        # Asked before the look, so that nothing reported until then is missed.
        over = ended.wait(POLL_SECONDS)
        try:
            entries, starts = ray.get(actor.since.remote(last, begun))
        except ray.exceptions.RayError:
            # The actor is beside the driver: the cluster is gone, of which the main thread tells.
            return
        for number, position in enumerate(starts, begun):
            if number:
                _LOG.warning("training: workers were lost; started again, they go on after %s", position)
        begun += len(starts)
        for entry in entries:
            last = int(entry["epoch"])
            try:
                on_epoch(entry)
            except RayrecError as error:
                # No reason to stop training; the stage fails at its end if it still cannot be tracked.
                _LOG.warning("training: epoch %d could not be reported: %s", last, error)
