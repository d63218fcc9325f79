"""Micro-batches that form under load: while one pass computes, the next requests gather. Nobody waits for company."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from rayrec.serving import tracing
from rayrec.serving.metrics import BATCH_SIZE, QUEUE_LENGTH
from rayrec.serving.stages import took

Request = TypeVar("Request")
Result = TypeVar("Result")


class OverloadedError(Exception):
    """The queue is full."""


@dataclass(eq=False, slots=True)
class _Waiting(Generic[Request, Result]):
    """A request in the queue.

    Attributes:
        request: The request.
        future: Who waits for its result.
        since: When it came, by `time.perf_counter`.
        began: When its batch did.
        laps: The stages of that.
    """

    request: Request
    future: asyncio.Future[Result]
    since: float
    began: float = 0.0
    laps: Sequence[tracing.Lap] = ()


class Batcher(Generic[Request, Result]):
    """Collects concurrent requests into one call.

    Args:
        compute: Computes results for requests, in their order. Runs in a thread of its own, one call at a time.
        max_batch_size: Most requests of a call.
        max_queued: Requests that may wait; beyond, `OverloadedError`.
    """

    def __init__(
        self, compute: Callable[[Sequence[Request]], Sequence[Result]], max_batch_size: int, max_queued: int
    ) -> None:
        self._compute = compute
        self._max_batch_size = max_batch_size
        self._max_queued = max_queued
        self._waiting: deque[_Waiting[Request, Result]] = deque()
        self._running = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scorer")

    async def submit(self, request: Request) -> Result:
        """The result of one request.

        Raises:
            OverloadedError: Too many requests are waiting.
        """
        if len(self._waiting) >= self._max_queued:
            raise OverloadedError
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Request, Result] = _Waiting(request, loop.create_future(), time.perf_counter())
        self._waiting.append(waiting)
        if not self._running:
            self._running = True
            self._task = loop.create_task(self._drain())
        result = await waiting.future
        took("wait", waiting.since, waiting.began)
        if waiting.laps:
            tracing.show(waiting.laps)
        return result

    async def _drain(self) -> None:
        """Compute until nobody waits."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            size = min(len(self._waiting), self._max_batch_size)
            batch = [self._waiting.popleft() for _ in range(size)]
            BATCH_SIZE.observe(size)
            QUEUE_LENGTH.set(len(self._waiting))
            began = time.perf_counter()
            outcomes, laps = await loop.run_in_executor(self._thread, self._timed, [each.request for each in batch])
            for waiting, outcome in zip(batch, outcomes, strict=True):
                waiting.began, waiting.laps = began, laps
                if waiting.future.done():  # the client may have gone
                    continue
                if isinstance(outcome, Exception):
                    waiting.future.set_exception(outcome)
                else:
                    waiting.future.set_result(outcome)
        self._running = False

    def _timed(self, requests: Sequence[Request]) -> tuple[Sequence[Result | Exception], Sequence[tracing.Lap]]:
        if not tracing.is_on():
            return self._outcomes(requests), ()
        with tracing.gathered() as laps:
            return self._outcomes(requests), laps

    def _outcomes(self, requests: Sequence[Request]) -> Sequence[Result | Exception]:
        """A result or an error each: of requests that fail together, those that can are answered alone."""
        try:
            return self._compute(requests)
        except Exception as error:
            if len(requests) == 1:
                return [error]
            return [outcome for request in requests for outcome in self._outcomes([request])]
