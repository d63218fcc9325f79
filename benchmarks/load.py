"""A load generator for HTTP endpoints: `GET` requests over connections that stay open, from one process.

    .venv/bin/python benchmarks/load.py http://127.0.0.1:8000/v1/recommend/{user} --users users.txt --concurrency 16
    .venv/bin/python benchmarks/load.py ... --rate 1000        # open loop: requests come when they come

In a closed loop each connection asks again as soon as it is answered. In an open loop requests come at random (Poisson)
at a rate, and what is measured begins when a request should have been sent: one that waits for a connection is late.
Prints JSON: requests a second, percentiles in milliseconds, and how many answers each status had; 0 is none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlsplit

import numpy as np
import uvloop

END = b"\r\n\r\n"
LENGTH = b"content-length:"
CONNECTIONS = 512
"""Of an open loop, at most."""


@dataclass
class Seen:
    """What came back.

    Attributes:
        seconds: Of each answer.
        statuses: How many answers each status had; 0 is none.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def summary(self, elapsed: float) -> dict[str, Any]:
        """As it is printed."""
        at = np.percentile(np.array(self.seconds or [np.nan]) * 1000, [50, 90, 99, 99.9])
        names = ("p50_ms", "p90_ms", "p99_ms", "p999_ms")
        return {
            "requests_per_s": len(self.seconds) / elapsed,
            **{name: float(value) for name, value in zip(names, at, strict=True)},
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
        }


class Connection(asyncio.Protocol):
    """One connection, one request at a time.

    Args:
        told: Called with an answer's status, or 0 when the connection is lost amid a request.
    """

    def __init__(self, told: Callable[[Connection, int], None]) -> None:
        self._told = told
        self._buffer = b""
        self._missing = -1
        self._status = 0
        self._asking = False
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what is written to."""
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def ask(self, request: bytes) -> None:
        """Send a request."""
        self._asking = True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Wait for the end of the answer."""
        self._buffer += data
        if self._missing < 0:
            head, found, rest = self._buffer.partition(END)
            if not found:
                return
            self._status = int(head[9:12])
            lower = head.lower()
            at = lower.index(LENGTH) + len(LENGTH)
            self._missing = int(lower[at:].split(b"\r", 1)[0])
            self._buffer = rest
        if len(self._buffer) >= self._missing:
            self._buffer, self._missing, self._asking = b"", -1, False
            self._told(self, self._status)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell that nothing comes any more."""
        self.is_open = False
        if self._asking:
            self._asking = False
            self._told(self, 0)

    def close(self) -> None:
        """End."""
        self._transport.close()


async def closed(host: str, port: int, requests: Iterator[bytes], concurrency: int, seconds: float) -> Seen:
    """Ask over some connections, each as soon as it has been answered."""
    loop, seen, began = asyncio.get_running_loop(), Seen(), {}
    lost: list[Connection] = []

    def told(connection: Connection, status: int) -> None:
        seen.statuses[status] += 1
        if status:
            seen.seconds.append(time.perf_counter() - began[connection])
        if connection.is_open:
            ask(connection)
        else:
            lost.append(connection)

    def ask(connection: Connection) -> None:
        began[connection] = time.perf_counter()
        connection.ask(next(requests))

    async def connect() -> Connection:
        return (await loop.create_connection(lambda: Connection(told), host, port))[1]

    connections = [await connect() for _ in range(concurrency)]
    for connection in connections:
        ask(connection)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        await asyncio.sleep(0.05)
        for _ in range(len(lost)):
            lost.pop()
            try:
                connections.append(await connect())
            except OSError:
                break
            ask(connections[-1])
    for connection in connections:
        connection.close()
    return seen


async def opened(host: str, port: int, requests: Iterator[bytes], rate: float, seconds: float) -> Seen:
    """Ask at random moments, whatever is answered."""
    loop, seen, due = asyncio.get_running_loop(), Seen(), {}
    idle: deque[Connection] = deque()
    waiting: deque[float] = deque()

    def told(connection: Connection, status: int) -> None:
        seen.statuses[status] += 1
        if status:
            seen.seconds.append(time.perf_counter() - due[connection])
        if not connection.is_open:
            return
        if waiting:
            ask(connection, waiting.popleft())
        else:
            idle.append(connection)

    def ask(connection: Connection, since: float) -> None:
        due[connection] = since
        connection.ask(next(requests))

    connections = [(await loop.create_connection(lambda: Connection(told), host, port))[1] for _ in range(CONNECTIONS)]
    idle.extend(connections)
    following = time.perf_counter()
    end = following + seconds
    while following < end:
        now = time.perf_counter()
        while following <= now:
            if idle:
                ask(idle.popleft(), following)
            else:
                waiting.append(following)
            following += random.expovariate(rate)
        await asyncio.sleep(max(0.0, following - time.perf_counter()))
    deadline = time.perf_counter() + 5
    while len(idle) < len(connections) and time.perf_counter() < deadline:
        await asyncio.sleep(0.01)
    for connection in connections:
        connection.close()
    return seen


def requests_of(url: str, users: list[str], seed: int) -> Iterator[bytes]:
    """Requests for users in random order, each of them before one comes again."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    order = random.Random(seed).sample(users, len(users))
    head = f"HTTP/1.1\r\nhost: {parts.netloc}\r\n\r\n"
    return cycle([f"GET {target.replace('{user}', quote(user, safe=''))} {head}".encode() for user in order])


def main() -> None:
    """Ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="`{user}` stands for a user")
    parser.add_argument("--users", type=Path, required=True, help="a file with a user a line")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rate", type=float, help="requests a second of an open loop; by default it is closed")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    parts = urlsplit(arguments.url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    requests = requests_of(arguments.url, arguments.users.read_text().split(), arguments.seed)
    if arguments.rate is None:
        work = closed(host, port, requests, arguments.concurrency, arguments.seconds)
    else:
        work = opened(host, port, requests, arguments.rate, arguments.seconds)
    print(json.dumps(uvloop.run(work).summary(arguments.seconds)))


if __name__ == "__main__":
    main()
