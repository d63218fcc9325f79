"""Micro-batches form while a pass computes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from rayrec.serving.batching import Batcher, OverloadedError


def test_a_single_request_is_computed_at_once() -> None:
    batcher = Batcher[int, int](lambda requests: [r * 2 for r in requests], max_batch_size=8, max_queued=8, deadline=60)

    assert asyncio.run(batcher.submit(21)) == 42


def test_requests_that_arrive_during_a_pass_share_the_next_one() -> None:
    sizes: list[int] = []
    go_on = threading.Event()

    def compute(requests: Sequence[int]) -> Sequence[int]:
        sizes.append(len(requests))
        go_on.wait(5)
        return requests

    async def scenario() -> list[int]:
        batcher = Batcher[int, int](compute, max_batch_size=4, max_queued=100, deadline=60)
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.05)  # the first pass is under way
        others = [asyncio.create_task(batcher.submit(i)) for i in range(1, 7)]
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(scenario()) == [0, 1, 2, 3, 4, 5, 6]
    assert sizes == [1, 4, 2]


def test_a_full_queue_refuses() -> None:
    go_on = threading.Event()

    def compute(requests: Sequence[int]) -> Sequence[int]:
        go_on.wait(5)
        return requests

    async def scenario() -> None:
        batcher = Batcher[int, int](compute, max_batch_size=1, max_queued=2, deadline=60)
        tasks = [asyncio.create_task(batcher.submit(0))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(batcher.submit(i)) for i in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await batcher.submit(3)
        go_on.set()
        assert await asyncio.gather(*tasks) == [0, 1, 2]

    asyncio.run(scenario())


def test_a_failing_pass_fails_its_own_requests_only() -> None:
    def compute(requests: Sequence[int]) -> Sequence[int]:
        if 13 in requests:
            raise ValueError("unlucky")
        return requests

    async def scenario() -> None:
        batcher = Batcher[int, int](compute, max_batch_size=1, max_queued=10, deadline=60)
        results = await asyncio.gather(*(batcher.submit(i) for i in (1, 13, 2)), return_exceptions=True)
        assert results[0] == 1
        assert isinstance(results[1], ValueError)
        assert results[2] == 2

    asyncio.run(scenario())


def test_a_client_that_leaves_does_not_hold_up_the_others() -> None:
    go_on = threading.Event()

    def compute(requests: Sequence[int]) -> Sequence[int]:
        go_on.wait(5)
        return requests

    async def scenario() -> None:
        batcher = Batcher[int, int](compute, max_batch_size=4, max_queued=10, deadline=60)
        leaving, staying = asyncio.create_task(batcher.submit(1)), asyncio.create_task(batcher.submit(2))
        await asyncio.sleep(0.05)
        leaving.cancel()
        go_on.set()
        assert await staying == 2

    asyncio.run(scenario())


def test_of_a_batch_that_fails_only_the_request_at_fault_does() -> None:
    sizes: list[int] = []
    go_on = threading.Event()

    def compute(requests: Sequence[int]) -> Sequence[int]:
        sizes.append(len(requests))
        go_on.wait(5)
        if 2 in requests:
            raise ValueError("2 is bad")
        return requests

    async def scenario() -> list[int | BaseException]:
        batcher = Batcher[int, int](compute, max_batch_size=4, max_queued=100, deadline=60)
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.05)  # the first pass is under way
        others = [asyncio.create_task(batcher.submit(i)) for i in (1, 2, 3)]
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    answers = asyncio.run(scenario())
    assert str(answers.pop(2)) == "2 is bad"
    assert answers == [0, 1, 3]
    assert sizes == [1, 3, 1, 1, 1]
