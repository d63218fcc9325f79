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


class LateError(Exception):
    """The deadline has passed."""


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
        deadline: Seconds after which nobody waits any more.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Request]], Sequence[Result]],
        max_batch_size: int,
        max_queued: int,
        deadline: float,
    ) -> None:
        self._compute = compute
        self._max_batch_size = max_batch_size
        self._max_queued = max_queued
        self._deadline = deadline
        self._waiting: deque[_Waiting[Request, Result]] = deque()
        self._running = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scorer")

    async def submit(self, request: Request) -> Result:
        """The result of one request.

        Raises:
            OverloadedError: Too many requests are waiting.
            LateError: It was not computed in time.
        """
        if len(self._waiting) >= self._max_queued:
            raise OverloadedError
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Request, Result] = _Waiting(request, loop.create_future(), time.perf_counter())
        self._waiting.append(waiting)
        if not self._running:
            self._running = True
            self._task = loop.create_task(self._drain())
        late = loop.call_later(self._deadline, _give_up, waiting.future)
        try:
            result = await waiting.future
        finally:
            late.cancel()
        took("wait", waiting.since, waiting.began)
        if waiting.laps:
            tracing.show(waiting.laps)
        return result

    async def _drain(self) -> None:
        """Compute until nobody waits."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = self._next_batch()
            if not batch:
                break
            BATCH_SIZE.observe(len(batch))
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

    def _next_batch(self) -> list[_Waiting[Request, Result]]:
        """Those who have waited longest, and still do."""
        batch: list[_Waiting[Request, Result]] = []
        while self._waiting and len(batch) < self._max_batch_size:
            waiting = self._waiting.popleft()
            if not waiting.future.done():
                batch.append(waiting)
        return batch

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


def _give_up(future: asyncio.Future[Result]) -> None:
    if not future.done():
        future.set_exception(LateError())
