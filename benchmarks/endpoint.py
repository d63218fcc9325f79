"""A real endpoint (`rayrec serve`, Ray, two replicas) and what it does when things die.

    .venv/bin/python benchmarks/endpoint.py kills --times 20
    .venv/bin/python benchmarks/endpoint.py kills --times 20 --postgres
    .venv/bin/python benchmarks/endpoint.py outage --seconds 10
    .venv/bin/python benchmarks/endpoint.py follow --times 20

``kills`` has four clients post events, kills every process of the endpoint at a random moment (the command, Ray's
daemons, the proxy, the replicas), starts it again, and at the end looks for what was acknowledged. ``outage`` stops the
PostgreSQL of an endpoint under load. ``follow`` posts an event and asks until no replica answers from before it. Each
prints one table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.state import database, show
from tests.recipes import ITEMS, USERS, write_log, write_recipe

from rayrec.ports import free_port
from rayrec.serving.store.store import Store

WRITERS, READERS = 4, 4
START_SECONDS = 120


@dataclass
class Endpoint:
    """A `rayrec serve` of its own, with its home and its Ray.

    Attributes:
        folder: Where all of it lies.
        port: It listens on.
        process: The command, while it runs.
    """

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def prepared(cls, folder: Path, state: str) -> Endpoint:
        """Train what is to be served, with its state at a URL."""
        endpoint = cls(folder, free_port())
        serving = {"state": state, "min_replicas": 2, "max_replicas": 2, "replica_cpus": 0.3}
        recipe = write_recipe(folder, write_log(folder), name="served", serving=serving)
        subprocess.run([*endpoint._command("run"), str(recipe)], env=endpoint._environment(), check=True)
        return endpoint

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> float:
        """Start it. Returns the seconds until it was ready."""
        began = time.monotonic()
        command = [*self._command("serve"), "served", "--port", str(self.port)]
        with (self.folder / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self._environment(), stdout=log, stderr=log)
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > began + START_SECONDS:
                raise SystemExit(f"it does not start: {(self.folder / 'serve.log').read_text()[-2000:]}")
            time.sleep(0.1)  # polls another process
        return time.monotonic() - began

    def kill(self) -> int:
        """SIGKILL to every process. Returns how many there were."""
        if self.process is None:
            return 0
        command = psutil.Process(self.process.pid)
        processes = [command, *command.children(recursive=True)]
        for process in processes:
            # Stopped first: nobody is to see the others die, and act on it.
            _signal(process, signal.SIGSTOP)
        for process in processes:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(processes, timeout=30)
        self.process.wait()
        self.process = None
        return len(processes)

    def stop(self) -> None:
        """End it as Ctrl-C would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()
            self.process = None

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/v1/ready", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def _command(self, name: str) -> list[str]:
        return [sys.executable, "-m", "rayrec", name]

    def _environment(self) -> dict[str, str]:
        temporary = self.folder / "r"
        temporary.mkdir(exist_ok=True)
        return {**os.environ, "RAYREC_HOME": str(self.folder / "home"), "RAY_TMPDIR": str(temporary)}


def _signal(process: psutil.Process, number: int) -> None:
    if process.is_running():
        os.kill(process.pid, number)


@dataclass
class Load:
    """Clients that ask for as long as the block lasts.

    Attributes:
        url: Of the endpoint.
        acknowledged: Ids of events that were.
        writes: How many answers each status had; 0 is no answer.
        reads: The same of recommendations, by status and source.
        seconds: How long each recommendation took.
    """

    url: str
    acknowledged: list[str] = field(default_factory=list)
    writes: Counter[int] = field(default_factory=Counter)
    reads: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    @contextmanager
    def running(self, writers: int, readers: int) -> Iterator[None]:
        """Let clients ask, each as soon as it has been answered."""
        ended = threading.Event()
        works = [self._write] * writers + [self._read] * readers
        with ThreadPoolExecutor(len(works)) as threads:
            futures = [threads.submit(self._repeat, work, ended) for work in works]
            try:
                yield
            finally:
                ended.set()
                for future in futures:
                    future.result()

    def _repeat(self, work: Callable[[httpx.Client], None], ended: threading.Event) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not ended.is_set():
                work(client)

    def _write(self, client: httpx.Client) -> None:
        event = {"event_id": uuid.uuid4().hex, "user": f"u{random.randrange(USERS)}", "item": "i1"}
        try:
            answer = client.post("/v1/events", json=event)
        except httpx.TransportError:
            self.writes[0] += 1
            time.sleep(0.05)  # nobody listens
            return
        self.writes[answer.status_code] += 1
        if answer.status_code == 200:
            self.acknowledged.append(event["event_id"])
        else:
            time.sleep(0.05)  # less than Retry-After says: the end of an outage is to be seen

    def _read(self, client: httpx.Client) -> None:
        began = time.perf_counter()
        try:
            answer = client.get(f"/v1/recommend/u{random.randrange(USERS)}?n=5")
        except httpx.TransportError:
            self.reads["no answer"] += 1
            return
        self.seconds.append(time.perf_counter() - began)
        content = answer.json()
        kind = "degraded" if content.get("degraded") else content.get("source", "")
        self.reads[f"{answer.status_code} {kind}".strip()] += 1


def kept(url: str) -> list[str]:
    """The ids of all events, in order."""
    with closing(Store(url)) as store:
        after, found = 0, []
        while page := store.events.page(after, 10_000):
            after = page[-1][0]
            found += [event.event_id for _, event in page]
    return found


def kills(arguments: argparse.Namespace, folder: Path, url: str) -> list[dict[str, Any]]:
    """Kill everything at random moments, and look for what was acknowledged."""
    endpoint = Endpoint.prepared(folder, url)
    load, processes, starts = Load(endpoint.url), [], []
    for _ in range(arguments.times):
        starts.append(endpoint.start())
        with load.running(WRITERS, 0):
            time.sleep(random.uniform(0.2, 2))
            processes.append(endpoint.kill())
    found = kept(url)
    return [
        {
            "database": "PostgreSQL" if arguments.postgres else "SQLite",
            "kills": arguments.times,
            "processes each": statistics.median(processes),
            "acknowledged": len(load.acknowledged),
            "lost": len({*load.acknowledged} - {*found}),
            "twice": len(found) - len({*found}),
            "seconds to start": statistics.median(starts),
        }
    ]


def outage(arguments: argparse.Namespace, folder: Path, url: str) -> list[dict[str, Any]]:
    """Stop the database under load, and start it again."""
    endpoint = Endpoint.prepared(folder, url)
    endpoint.start()
    rows = []
    try:
        loads = {name: Load(endpoint.url) for name in ("before", "database gone", "after")}
        with loads["before"].running(1, READERS):
            time.sleep(arguments.seconds / 2)
        arguments.server.stop()
        with loads["database gone"].running(1, READERS):
            time.sleep(arguments.seconds)
        arguments.server.start()
        began = time.monotonic()
        with loads["after"].running(1, READERS):
            while not loads["after"].acknowledged:
                time.sleep(0.01)  # polls the clients
            recovered = time.monotonic() - began
            time.sleep(arguments.seconds / 2)
    finally:
        endpoint.stop()
    found = {*kept(url)}
    for name, load in loads.items():
        ordered = sorted(load.seconds)
        rows.append(
            {
                "when": name,
                "reads": dict(load.reads),
                "median ms": 1000 * statistics.median(ordered),
                "p99 ms": 1000 * ordered[len(ordered) * 99 // 100],
                "writes": {str(status): number for status, number in load.writes.items()},
                "lost": len({*load.acknowledged} - found),
                "first write after s": recovered if name == "after" else None,
            }
        )
    return rows


def follow(arguments: argparse.Namespace, folder: Path, url: str) -> list[dict[str, Any]]:
    """Post an event, and ask until no replica answers from before it."""
    endpoint = Endpoint.prepared(folder, url)
    endpoint.start()
    late, mixed = [], 0
    try:
        for n in range(arguments.times):
            user = f"u{n % USERS}"
            for _ in range(20):
                # Every replica has the history in memory by now.
                before = _items(endpoint.url, user)
            event = {"user": user, "item": before[0]}
            httpx.post(f"{endpoint.url}/v1/events", json=event).raise_for_status()
            began, last = time.perf_counter(), 0.0
            while time.perf_counter() < began + 2:
                asked = time.perf_counter() - began
                if before[0] in _items(endpoint.url, user):
                    last = asked
            late.append(last)
            mixed += last > 0
    finally:
        endpoint.stop()
    return [
        {
            "events": len(late),
            "seen late by a replica": mixed,
            "median s": statistics.median(late),
            "longest s": max(late),
        }
    ]


def _items(url: str, user: str) -> list[str]:
    # A connection each: the proxy chooses a replica for each.
    answer = httpx.get(f"{url}/v1/recommend/{user}?n={ITEMS}").raise_for_status().json()
    return [item["item"] for item in answer["items"]]


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "outage", "follow"])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("build/endpoint.json"))
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    work = {"kills": kills, "outage": outage, "follow": follow}[arguments.what]
    postgres = arguments.postgres or arguments.what == "outage"
    with (
        # Sockets live below it, and their paths must be short.
        tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        database(Path(folder), postgres) as (url, arguments.server),
    ):
        rows = work(arguments, Path(folder), url)
    show(arguments.what, rows)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
