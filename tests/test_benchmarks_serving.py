"""The benchmark of serving: what its load sends and sees, and how rounds become a table."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice

import pytest
from benchmarks.load import Answer, Seen, closed, opened, request_of, requests_of
from benchmarks.serving import phased, summarized

USERS = ["a", 'b"c', "d/e"]


@asynccontextmanager
async def echo(refused: str = "", silent: str = "") -> AsyncIterator[tuple[str, int, list[str]]]:
    """A server that answers 429 to requests with one text and nothing to those with another; and what it was sent."""
    seen: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := (await reader.readuntil(b"\r\n\r\n")).decode():
            lengths = [line for line in head.split("\r\n") if line.startswith("content-length: ")]
            body = (await reader.readexactly(int(lengths[0].split(": ")[1]))).decode() if lengths else ""
            seen.append(head.split("\r\n")[0] + body)
            if silent and silent in seen[-1]:
                continue
            status = "429 Too Many" if refused and refused in seen[-1] else "200 OK"
            # In two parts: an answer may come in several.
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{".encode())
            await writer.drain()
            writer.write(b"}")

    async def answer_until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer_until_closed, "127.0.0.1", 0)
    async with server:
        yield "127.0.0.1", server.sockets[0].getsockname()[1], seen


def test_a_user_stands_in_the_path_or_in_the_body() -> None:
    asked = request_of("http://h:1/recommend/{user}?n=10", "d/e").decode()
    assert asked == "GET /recommend/d%2Fe?n=10 HTTP/1.1\r\nhost: h:1\r\n\r\n"

    head, _, body = request_of("http://h:1/predict", 'b"c', '{"user": "{user}"}').decode().partition("\r\n\r\n")
    assert head.startswith("POST /predict HTTP/1.1\r\n")
    assert f"content-length: {len(body)}" in head
    assert json.loads(body) == {"user": 'b"c'}


def test_a_closed_loop_asks_for_each_user_once_and_ends() -> None:
    async def load() -> tuple[Seen, list[str]]:
        async with echo(refused="d%2Fe") as (host, port, sent):
            requests = requests_of(f"http://{host}/r/{{user}}", USERS, seed=0)
            return await closed(host, port, islice(requests, 3), concurrency=2, seconds=30), sent

    seen, sent = asyncio.run(load())

    assert sorted(sent) == ["GET /r/a HTTP/1.1", "GET /r/b%22c HTTP/1.1", "GET /r/d%2Fe HTTP/1.1"]
    assert seen.statuses() == {"200": 2, "429": 1}
    assert 0 < seen.elapsed < 5
    assert seen.summary()["requests_per_s"] == pytest.approx(3 / seen.elapsed)


def test_an_open_loop_keeps_its_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.load.CONNECTIONS", 16)
    random.seed(0)

    async def load() -> Seen:
        async with echo() as (host, port, _):
            requests = requests_of(f"http://{host}/r", USERS, 0, '{"user": "{user}"}')
            return await opened(host, port, requests, [(100, 0.5), (400, 0.5)])

    seen = asyncio.run(load())

    assert seen.statuses().keys() == {"200"}
    assert len(seen.within(0, 0.5).answers) == pytest.approx(50, rel=0.5)
    assert len(seen.within(0.5, 1).answers) == pytest.approx(200, rel=0.5)


def test_an_open_loop_counts_what_is_never_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.load.CONNECTIONS", 2)
    monkeypatch.setattr("benchmarks.load.PATIENCE_SECONDS", 0.1)
    random.seed(0)

    async def load() -> tuple[Seen, int]:
        async with echo(silent="/r/a") as (host, port, sent):
            return await opened(host, port, requests_of("http://h/r/{user}", ["a"], 0), [(100, 0.2)]), len(sent)

    seen, sent = asyncio.run(load())

    assert sent == 2
    assert [answer.status for answer in seen.answers] == [0] * len(seen.answers)
    assert len(seen.answers) > sent


def test_rounds_become_medians_and_ratios() -> None:
    def row(server: str, name: str, rate: float, **statuses: int) -> dict[str, object]:
        return {"server": server, "load": name, "requests_per_s": rate, "statuses": statuses}

    rows = [
        *(row("uvicorn", "16", rate, **{"200": 1}) for rate in (90.0, 100.0, 500.0)),
        *(row("rayrec", "16", rate, **{"200": 1, "429": n}) for n, rate in enumerate((200.0, 10.0, 220.0))),
        row("rayrec", "open", 70.0),
    ]

    one, other, opened = summarized(rows)

    assert one["requests_per_s"] == 100
    assert (other["requests_per_s"], other["x uvicorn"], other["not 200"]) == (200, 2, {"429": 3})
    assert "x uvicorn" not in opened


def test_an_overload_is_told_by_its_phases() -> None:
    answers = [Answer(200, 0.01, n / 10) for n in range(20)]
    answers += [Answer(429 if n % 2 else 200, 0.5, 2 + n / 10) for n in range(20)]
    answers += [Answer(200, 0.5 if n < 5 else 0.01, 4 + n / 10) for n in range(30)]

    before, during, after = phased(Seen(answers, 7), [(10, 2), (50, 2), (10, 3)])

    assert (before["p99_ms"], before["p99 doubled for s"]) == (pytest.approx(10), 0)
    assert (during["accepted_per_s"], during["statuses"]) == (5, {"200": 10, "429": 10})
    assert (during["p99_ms"], during["p99 doubled for s"]) == (pytest.approx(500), 2)
    assert (after["accepted_per_s"], after["p99 doubled for s"]) == (10, 1)
