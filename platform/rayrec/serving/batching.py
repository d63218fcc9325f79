"""Micro-batches that form under load: while one pass computes, the next requests gather. Nobody waits for company."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Request = TypeVar("Request")
Result = TypeVar("Result")


class OverloadedError(Exception):
    """The queue is full."""


class LateError(Exception):
    """The deadline has passed."""


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
        self._waiting: deque[tuple[Request, asyncio.Future[Result]]] = deque()
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
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((request, future))
        if not self._running:
            self._running = True
            self._task = loop.create_task(self._drain())
        late = loop.call_later(self._deadline, _give_up, future)
        try:
            return await future
        finally:
            late.cancel()

    async def _drain(self) -> None:
        """Compute until nobody waits."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = self._next_batch()
            if not batch:
                break
            outcomes = await loop.run_in_executor(self._thread, self._outcomes, [request for request, _ in batch])
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if future.done():  # the client may have gone
                    continue
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)
        self._running = False

    def _next_batch(self) -> list[tuple[Request, asyncio.Future[Result]]]:
        """Those who have waited longest, and still do."""
        batch: list[tuple[Request, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._max_batch_size:
            request, future = self._waiting.popleft()
            if not future.done():
                batch.append((request, future))
        return batch

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
