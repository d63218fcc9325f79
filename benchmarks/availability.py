"""A deployed endpoint under steady load while everything around it changes: does anybody get no answer?

    .venv/bin/python benchmarks/availability.py
    .venv/bin/python benchmarks/availability.py --home ~/.rayrec --name ml1m --clients 4

A cluster is started, and `serve deploy` brings the endpoint up: one to three replicas of .3 CPUs. While some clients
ask and others write events, the champion is moved five times, one is promoted that does not give its golden answers and
one that fails (until the replica has gone back, and so has the champion), more clients come until there are three
replicas, one of these is killed (SIGKILL), all are replaced by those of another configuration (a rolling update), and
the clients leave until one replica is left. With ``--home`` the Releases are a copy of those of a recommender there,
else of a small one that is trained first. Prints a table with a row for each of these times, and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
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
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.state import show
from tests.broken import failing_release, wrong_release
from tests.deployments.conftest import ROOT, Head, head
from tests.recipes import USERS, write_log, write_recipe

from rayrec.artifacts import Storage
from rayrec.inference.release import Release, open_release
from rayrec.ports import free_port
from rayrec.serving.store.store import Store
from rayrec.tracking import Tracker, find_release

PATIENCE = 120
PAUSE_SECONDS = 0.04
SCALING = {
    "min_replicas": 1,
    "max_replicas": 3,
    "target_ongoing_requests": 2,
    "upscale_delay_s": 2,
    "downscale_delay_s": 5,
    "metrics_interval_s": 1,
    "look_back_period_s": 3,
}


@dataclass
class Clients:
    """Who asks, and what they were told.

    Attributes:
        url: Of the endpoint.
        users: Keys of users.
        answers: When each was asked, in seconds of `time.monotonic`, how long it took, and what came.
        acknowledged: Ids of events that were.
        examples: What came with answers other than 200.
    """

    url: str
    users: list[str]
    answers: list[tuple[float, float, str]] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    @contextmanager
    def asking(self, readers: int, writers: int = 0, pause: float = PAUSE_SECONDS) -> Iterator[None]:
        """Let some ask while the block lasts, each so long after it has been answered."""
        ended = threading.Event()

        def repeat(work: Callable[[httpx.Client], str]) -> None:
            with httpx.Client(base_url=self.url, timeout=10) as client:
                while not ended.is_set():
                    began = time.monotonic()
                    try:
                        told = work(client)
                    except httpx.TransportError as error:
                        told = type(error).__name__
                    self.answers.append((began, time.monotonic() - began, told))
                    time.sleep(pause)  # how often a client asks

        with ThreadPoolExecutor(readers + writers) as threads:
            futures = [threads.submit(repeat, work) for work in [self._read] * readers + [self._write] * writers]
            try:
                yield
            finally:
                ended.set()
                for future in futures:
                    future.result()

    def _read(self, client: httpx.Client) -> str:
        answer = client.get(f"/v1/recommend/{random.choice(self.users)}?n=10")
        if answer.status_code != 200:
            self.examples.append(f"{answer.status_code} {answer.text[:300]} {dict(answer.headers)}")
        degraded = answer.status_code == 200 and answer.json()["degraded"]
        return f"{answer.status_code}{' degraded' if degraded else ''}"

    def _write(self, client: httpx.Client) -> str:
        event_id = uuid.uuid4().hex
        event = {"event_id": event_id, "user": random.choice(self.users), "item": "i1"}
        answer = client.post("/v1/events", json=event)
        if answer.status_code == 200:
            self.acknowledged.append(event_id)
        return f"event {answer.status_code}"

    def failed_since(self, moment: float) -> int:
        """How many that were asked after a moment got no answer: they were not under way when it came."""
        return sum(began > moment and not told.endswith(("200", "degraded")) for began, _, told in self.answers)

    def row(self, name: str, began: float, ended: float, **more: Any) -> dict[str, Any]:
        """What they were told from one moment to another."""
        within = [one for one in self.answers if began <= one[0] < ended]
        seconds = sorted(took for _, took, told in within if told.startswith("200"))
        good = {"200", "event 200"}
        return {
            "while": name,
            "s": ended - began,
            "answers": len(within),
            "others than 200": dict(Counter(told for *_, told in within if told not in good)),
            "p50 ms": 1000 * statistics.median(seconds),
            "p99 ms": 1000 * seconds[len(seconds) * 99 // 100],
            **more,
        }


class Deployed:
    """The endpoint of deployments/local.yaml, of one to three replicas.

    Args:
        cluster: Where.
        folder: For its file and its database.
        name: Of the recommender.
    """

    def __init__(self, cluster: Head, folder: Path, name: str) -> None:
        self._cluster = cluster
        self._file = folder / "deploy.yaml"
        self._config = yaml.safe_load((ROOT / "deployments" / "local.yaml").read_text(encoding="utf-8"))
        self._config["http_options"]["port"] = port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.state = f"sqlite:///{folder}/state.db"
        (self._deployment,) = self._config["applications"][0]["deployments"]
        self._deployment["user_config"] = {"release": name, "state": self.state, "cache_answers": 0}
        self._deployment["autoscaling_config"] = SCALING

    def deploy(self, cpus: float) -> None:
        """`serve deploy`, with so many CPUs a replica: others than before are a rolling update."""
        self._deployment["ray_actor_options"] = {"num_cpus": cpus}
        self._file.write_text(yaml.safe_dump(self._config), encoding="utf-8")
        done = self._cluster.command(
            "ray.serve.scripts", "deploy", "--address", self._cluster.dashboard, str(self._file)
        )
        if done.returncode:
            raise SystemExit(done.stderr)

    def release(self) -> str:
        """The digest of the live Release, as one replica has it; nothing while none answers."""
        try:
            return str(httpx.get(f"{self.url}/v1/ready").raise_for_status().json()["release"])
        except httpx.HTTPError:
            return ""

    def refused(self) -> str:
        """Why the champion is not live, as one replica has it; nothing when it is."""
        return str(httpx.get(f"{self.url}/v1/ready").raise_for_status().json().get("refused", ""))

    def replicas(self) -> list[int]:
        """Processes of those that run."""
        found = httpx.get(f"{self._cluster.dashboard}/api/serve/applications/").json()["applications"]["rayrec"]
        replicas = found["deployments"]["endpoint"]["replicas"]
        return [int(replica["pid"]) for replica in replicas if replica["state"] == "RUNNING"]

    def cpus(self) -> float:
        """Of a replica, as deployed last, once no others are left."""
        found = httpx.get(f"{self._cluster.dashboard}/api/serve/applications/").json()["applications"]["rayrec"]
        endpoint = found["deployments"]["endpoint"]
        is_done = endpoint["status"] == "HEALTHY"
        return float(endpoint["deployment_config"]["ray_actor_options"]["num_cpus"]) if is_done else 0.0


def until(holds: Callable[[], bool]) -> None:
    """Wait."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit("it has not come about in time")
        time.sleep(0.1)  # polls other processes


def swaps(endpoint: Deployed, name: str, times: int) -> None:
    """Move the champion between two Releases, and wait until the replica has followed."""
    tracker = Tracker(name)
    versions = [release.version for release in tracker.releases()][-2:]
    present = find_release(name).version
    for turn in range(times):
        wanted = versions[(versions.index(present) + 1 + turn) % 2]
        digest = tracker.promote(wanted).digest
        until(lambda digest=digest: endpoint.release() == digest)  # type: ignore[misc]


def promote_broken(endpoint: Deployed, name: str, release: Release) -> None:
    """Make a Release champion that must not stay it, wait until the replica says so, and go back."""
    tracker = Tracker(name)
    champion = find_release(name)
    source = tracker.client.get_model_version(name, str(champion.version))
    tags = {**source.tags, "rayrec.release": release.digest}
    made = tracker.client.create_model_version(name, source.source, source.run_id, tags)
    tracker.promote(int(made.version))
    until(lambda: bool(endpoint.refused()))
    tracker.rollback()
    tracker.delete(int(made.version))
    until(lambda: not endpoint.refused())


def measured(endpoint: Deployed, clients: Clients, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each of the times."""

    def timed(name: str, work: Callable[[], object], **more: Any) -> dict[str, Any]:
        began = time.monotonic()
        work()
        ended = time.monotonic()
        return clients.row(name, began, ended, replicas=len(endpoint.replicas()), **more)

    killed: list[float] = []

    def kill() -> None:
        before = endpoint.replicas()
        os.kill(before[0], signal.SIGKILL)
        killed.append(time.monotonic())
        psutil.wait_procs([psutil.Process(before[0])], timeout=10) if psutil.pid_exists(before[0]) else None
        until(lambda: len(set(endpoint.replicas()) - {before[0]}) == len(before))

    def roll() -> None:
        before = {*endpoint.replicas()}
        endpoint.deploy(0.31)
        until(lambda: not before & {*endpoint.replicas()} and endpoint.cpus() == 0.31)

    with clients.asking(arguments.clients, 2):
        yield timed("steady", lambda: time.sleep(arguments.seconds))
        yield timed("champion moved 5 times", lambda: swaps(endpoint, arguments.name, 5))
        found = find_release(arguments.name)
        release = open_release(Storage.open(found.storage), found.digest)
        for kind, make in (("gives other scores", wrong_release), ("fails", failing_release)):
            broken = make(release, arguments.folder / kind)
            promoted = partial(promote_broken, endpoint, arguments.name, broken)
            yield timed(f"champion that {kind}", promoted)
        with clients.asking(arguments.more, 0, 0):
            yield timed("1 to 3 replicas", lambda: until(lambda: len(endpoint.replicas()) == 3))
            row = timed("replica killed", kill)
            yield {**row, "asked after it, and failed": clients.failed_since(killed[0])}
            yield timed("rolling update", roll)
        yield timed("3 to 1 replicas", lambda: until(lambda: len(endpoint.replicas()) == 1))
        yield timed("steady again", lambda: time.sleep(arguments.seconds))


def prepare(folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Have two Releases of the recommender in the folder's home. Returns users."""
    home = folder / "rayrec"
    os.environ["RAYREC_HOME"] = str(home)
    if arguments.home is not None:
        shutil.copytree(arguments.home, home, ignore=shutil.ignore_patterns("state"))
    else:
        arguments.name = "served"
        for seed in (0, 1):
            recipe = write_recipe(folder, write_log(folder), name="served", training={"epochs": 1, "seed": seed})
            subprocess.run([sys.executable, "-m", "rayrec", "run", str(recipe)], check=True)
    return [f"u{number}" for number in range(USERS)]


def kept(url: str) -> set[str]:
    """The ids of all events."""
    with closing(Store(url)) as store:
        after, found = 0, set()
        while page := store.events.page(after, 10_000):
            after = page[-1][0]
            found |= {event.event_id for _, event in page}
    return found


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="a RAYREC_HOME with two Releases of NAME")
    parser.add_argument("--name", default="served")
    parser.add_argument("--users", type=Path, help="a file with a user a line")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--more", type=int, default=12, help="clients that come for a while, and do not pause")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--json", type=Path, default=Path("build/availability.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        folder = arguments.folder = Path(temporary)
        users = prepare(folder, arguments)
        users = arguments.users.read_text().split() if arguments.users else users
        with head(sys.executable, folder) as cluster:
            endpoint = Deployed(cluster, folder, arguments.name)
            endpoint.deploy(0.3)
            until(lambda: bool(endpoint.release()))
            clients = Clients(endpoint.url, users)
            rows = [*measured(endpoint, clients, arguments)]
        found = kept(endpoint.state)
        lost = len({*clients.acknowledged} - found)
    show("availability", rows)
    print(f"{len(clients.acknowledged)} events acknowledged, {lost} lost")
    whole = {"rows": rows, "examples": clients.examples[:20], "acknowledged": len(clients.acknowledged), "lost": lost}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(whole, indent=1))


if __name__ == "__main__":
    main()
