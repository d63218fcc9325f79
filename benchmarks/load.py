"""A load generator for HTTP endpoints: requests over connections that stay open, from one process.

    .venv/bin/python benchmarks/load.py http://127.0.0.1:8000/v1/recommend/{user} --users users.txt --concurrency 16
    .venv/bin/python benchmarks/load.py ... --rate 1000        # open loop: requests come when they come
    .venv/bin/python benchmarks/load.py http://127.0.0.1:8000/predict --body '{"user": "{user}"}' --users users.txt

In a closed loop each connection asks again as soon as it is answered. In an open loop requests come at random (Poisson)
at a rate, and what is measured begins when a request should have been sent: one that waits for a connection is late.
Requests are `GET`, with a body `POST`. Prints JSON: requests a second, percentiles in milliseconds, and how many
answers each status had; 0 is none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import quote, urlsplit

import numpy as np
import uvloop

END = b"\r\n\r\n"
LENGTH = b"content-length:"
CLOSE = b"connection: close"
LAST = b"0\r\n\r\n"
CHUNKED = 1 << 40
CONNECTIONS = 512
"""Of an open loop, at most."""
PATIENCE_SECONDS = 5
"""How long answers are waited for when nothing more is asked."""


class Answer(NamedTuple):
    """What became of a request.

    Attributes:
        status: Of the answer; 0 where there was none.
        seconds: How long that took.
        due: When it was, or should have been, sent: seconds since the load began.
    """

    status: int
    seconds: float
    due: float


@dataclass
class Seen:
    """What came back.

    Attributes:
        answers: In the order in which they came.
        elapsed: Seconds of the whole load.
    """

    answers: list[Answer] = field(default_factory=list)
    elapsed: float = 0.0

    def within(self, first: float, last: float) -> Seen:
        """What was due between two moments, in seconds since the load began."""
        return Seen([answer for answer in self.answers if first <= answer.due < last], last - first)

    def percentiles_ms(self, at: Sequence[float], status: int | None = None) -> list[float]:
        """Of the time that answers took, of all or those with a status; NaN where there are none."""
        took = [one.seconds * 1000 for one in self.answers if one.status and one.status == (status or one.status)]
        found: list[float] = np.percentile(took or [np.nan], at).tolist()
        return found

    def statuses(self) -> dict[str, int]:
        """How many answers each status had; 0 is none."""
        return {str(status): count for status, count in sorted(Counter(one.status for one in self.answers).items())}

    def summary(self) -> dict[str, Any]:
        """As it is printed."""
        names, at = ("p50_ms", "p90_ms", "p99_ms", "p999_ms"), [50, 90, 99, 99.9]
        statuses = self.statuses()
        answered = sum(count for status, count in statuses.items() if status != "0")
        return {
            "requests_per_s": answered / self.elapsed,
            **dict(zip(names, self.percentiles_ms(at), strict=True)),
            "statuses": statuses,
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
        self._is_last = False
        self.is_asking = False
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what is written to."""
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def ask(self, request: bytes) -> None:
        """Send a request."""
        self.is_asking = True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Wait for the end of the answer."""
        self._buffer += data
        if self._missing < 0:
            head, found, rest = self._buffer.partition(END)
            if not found:
                return
            self._status, head = int(head[9:12]), head.lower()
            # Said by HAProxy when another process takes its place: what is asked here from now on is nobody's.
            self._is_last = CLOSE in head
            _, told, after = head.partition(LENGTH)
            # Without a length it comes in chunks, as some servers' errors do.
            self._missing = int(after.split(b"\r", 1)[0]) if told else CHUNKED
            self._buffer = rest
        is_whole = self._buffer.endswith(LAST) if self._missing == CHUNKED else len(self._buffer) >= self._missing
        if is_whole:
            self._buffer, self._missing, self.is_asking = b"", -1, False
            if self._is_last:
                self.is_open = False
                self._transport.close()
            self._told(self, self._status)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell that nothing comes any more."""
        self.is_open = False
        if self.is_asking:
            self.is_asking = False
            self._told(self, 0)

    def close(self) -> None:
        """End. An answer that is still to come is nobody's loss."""
        self.is_asking = False
        self._transport.close()


async def closed(host: str, port: int, requests: Iterator[bytes], concurrency: int, seconds: float) -> Seen:
    """Ask over some connections, each as soon as it has been answered, until the time or the requests are over."""
    loop, seen, began = asyncio.get_running_loop(), Seen(), {}
    lost: list[Connection] = []
    done: list[float] = []

    def told(connection: Connection, status: int) -> None:
        seen.answers.append(Answer(status, time.perf_counter() - began[connection], began[connection] - start))
        if connection.is_open:
            ask(connection)
        else:
            lost.append(connection)

    def ask(connection: Connection) -> None:
        began[connection] = time.perf_counter()
        request = next(requests, None)
        if request is None:
            done.append(began[connection])
        else:
            connection.ask(request)

    async def connect() -> Connection:
        return (await loop.create_connection(lambda: Connection(told), host, port))[1]

    connections = [await connect() for _ in range(concurrency)]
    start = time.perf_counter()
    for connection in connections:
        ask(connection)
    while time.perf_counter() < start + seconds and len(done) < concurrency:
        await asyncio.sleep(0.05)
        for _ in range(len(lost)):
            lost.pop()
            try:
                connections.append(await connect())
            except OSError:
                break
            ask(connections[-1])
    seen.elapsed = (done[-1] if len(done) == concurrency else time.perf_counter()) - start
    for connection in connections:
        connection.close()
    return seen


async def opened(host: str, port: int, requests: Iterator[bytes], phases: Sequence[tuple[float, float]]) -> Seen:
    """Ask at random moments, whatever is answered: at a rate a second for some seconds, then at another, and so on."""
    loop, seen, due = asyncio.get_running_loop(), Seen(elapsed=sum(seconds for _, seconds in phases)), {}
    connections: set[Connection] = set()
    connecting: set[asyncio.Task[None]] = set()
    idle: list[Connection] = []
    waiting: deque[float] = deque()

    def told(connection: Connection, status: int) -> None:
        seen.answers.append(Answer(status, time.perf_counter() - due[connection], due[connection] - start))
        if connection.is_open:
            go_on(connection)
        else:
            connections.discard(connection)

    def go_on(connection: Connection) -> None:
        if waiting:
            due[connection] = waiting.popleft()
            connection.ask(next(requests))
        else:
            idle.append(connection)

    async def connect() -> None:
        # One that is refused leaves its request to the next.
        with suppress(OSError):
            connection = (await loop.create_connection(lambda: Connection(told), host, port))[1]
            connections.add(connection)
            go_on(connection)

    def ask() -> None:
        while idle:
            # The one that was used last, as clients' pools give it; servers close some that nobody uses.
            last = idle.pop()
            if last.is_open:
                go_on(last)
                return
            connections.discard(last)
        if len(connections) + len(connecting) < CONNECTIONS:
            task = loop.create_task(connect())
            connecting.add(task)
            task.add_done_callback(connecting.discard)

    following = end = start = time.perf_counter()
    for rate, seconds in phases:
        end += seconds
        while following < end:
            now = time.perf_counter()
            while following <= min(now, end):
                waiting.append(following)
                ask()
                following += random.expovariate(rate)
            await asyncio.sleep(max(0.0, following - time.perf_counter()))
    deadline = time.perf_counter() + PATIENCE_SECONDS
    while (waiting or any(one.is_asking for one in connections)) and time.perf_counter() < deadline:
        await asyncio.sleep(0.01)
    unanswered = [*(due[connection] for connection in connections if connection.is_asking), *waiting]
    seen.answers += [Answer(0, time.perf_counter() - since, since - start) for since in unanswered]
    for connection in connections:
        connection.close()
    return seen


def requests_of(url: str, users: list[str], seed: int, body: str | None = None) -> Iterator[bytes]:
    """Requests for users in random order, each of them before one comes again.

    Args:
        url: ``{user}`` stands for a user.
        users: Their keys.
        seed: Of the order.
        body: JSON to `POST`, ``{user}`` within a string of it; by default requests are `GET`.
    """
    order = random.Random(seed).sample(users, len(users))
    return cycle([request_of(url, user, body) for user in order])


def request_of(url: str, user: str, body: str | None = None) -> bytes:
    """The request for a user, as it is sent."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    head = f"{target.replace('{user}', quote(user, safe=''))} HTTP/1.1\r\nhost: {parts.netloc}\r\n"
    if body is None:
        return f"GET {head}\r\n".encode()
    content = body.replace("{user}", json.dumps(user)[1:-1]).encode()
    return f"POST {head}content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content


def main() -> None:
    """Ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="`{user}` stands for a user")
    parser.add_argument("--users", type=Path, required=True, help="a file with a user a line")
    parser.add_argument("--body", help="JSON to POST; `{user}` stands for a user there, too")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rate", type=float, help="requests a second of an open loop; by default it is closed")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    parts = urlsplit(arguments.url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    requests = requests_of(arguments.url, arguments.users.read_text().split(), arguments.seed, arguments.body)
    if arguments.rate is None:
        work = closed(host, port, requests, arguments.concurrency, arguments.seconds)
    else:
        work = opened(host, port, requests, [(arguments.rate, arguments.seconds)])
    print(json.dumps(uvloop.run(work).summary()))


if __name__ == "__main__":
    main()
