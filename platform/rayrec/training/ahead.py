"""Work that is done ahead of who waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def ahead(make: Callable[[K], V], wanted: Iterable[K], begin: Callable[[], None] | None = None) -> Iterator[V]:
    """What is made of each wanted, in their order, made by a thread while the one before is in use.

    Args:
        make: Makes one. What it raises is raised where its result is asked for.
        wanted: Of what.
        begin: Called once in the thread, before all others.
    """
    with ThreadPoolExecutor(1, "ahead", begin) as thread:
        pending: Future[V] | None = None
        for key in wanted:
            ready, pending = pending, thread.submit(make, key)
            if ready:
                yield ready.result()
        if pending:
            yield pending.result()
