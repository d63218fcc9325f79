"""A cluster of three nodes on this machine, a driver to run on it, and ways to kill parts of both by their handles."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from rayrec.cluster import SETTINGS

PATIENCE = 120
TRAIN_WORKER = "RayTrainWorker"


class Nodes:
    """A head that runs no work and two nodes with one CPU each, each with a home and a place for temporary files of
    its own: what they share is what they are told to share.

    A process of its own holds them: clients of a head that is gone end the process they are in.

    Args:
        folder: Where the nodes' homes go.
        shared: Environment variables of all nodes and of drivers, such as credentials.
    """

    def __init__(self, folder: Path, **shared: str) -> None:
        self._folder = folder
        # Sockets live below it, and their paths must be short.
        self._temporary = tempfile.mkdtemp(prefix="rr-", dir="/tmp")
        self._shared = {**SETTINGS, "RAY_TMPDIR": self._temporary, "PYTHONPATH": _source(), **shared}
        # The Ray of the test session has a token of its own, which these nodes would not know.
        self._shared |= {"RAY_AUTH_MODE": "disabled"}
        self._count = 0
        self._raylets: dict[int, int] = {}
        self._driver: Driver | None = None

    def __enter__(self) -> Nodes:
        context = multiprocessing.get_context("spawn")
        self._calls, theirs = context.Pipe()
        self._holder = context.Process(target=_hold, args=(theirs, self._shared), daemon=True)
        self._holder.start()
        self.address: str = self._ask("start", 0, self._home("node-0"))
        for _ in range(2):
            self.add()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for node in [*self._raylets, 0]:
                self._ask("kill", node)
        finally:
            self._calls.send(("end",))
            self._holder.join()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def add(self) -> None:
        """One more node."""
        self._count += 1
        self._raylets[self._count] = self._ask("start", self._count, self._home(f"node-{self._count}"))

    @property
    def homes(self) -> list[Path]:
        """The home of every node there has been, and of the driver."""
        return sorted(self._folder.glob("home-*"))

    def driver(self, *arguments: str) -> Driver:
        """``rayrec ARGUMENTS``, begun on this cluster."""
        if self._driver is not None:
            # One that a failed test left would take what this one needs.
            self._driver.kill()
        environment = {**os.environ, **self._shared, **self._home("driver"), "RAY_ADDRESS": self.address}
        self._driver = Driver(arguments, environment, self._folder)
        return self._driver

    def training_workers(self) -> dict[int, int]:
        """Process ids of those that train now, with the node each one is on."""
        return {
            child.pid: node
            for node, raylet in self._raylets.items()
            for child in psutil.Process(raylet).children()
            if TRAIN_WORKER in " ".join(child.cmdline())
        }

    def kill_worker(self) -> None:
        """SIGKILL one that trains."""
        os.kill(random.choice(sorted(self.training_workers())), signal.SIGKILL)

    def stop_worker(self) -> int:
        """SIGSTOP one that trains. Returns its process id."""
        worker = random.choice(sorted(self.training_workers()))
        os.kill(worker, signal.SIGSTOP)
        return worker

    def kill_node(self) -> None:
        """SIGKILL everything on a node that trains, and let a new one join."""
        node = random.choice(sorted(self.training_workers().values()))
        del self._raylets[node]
        self._ask("kill", node)
        self.add()

    def kill_any_node(self) -> None:
        """SIGKILL everything on one of the nodes, and let a new one join."""
        node = random.choice(sorted(self._raylets))
        del self._raylets[node]
        self._ask("kill", node)
        self.add()

    def reclaim_node(self, seconds: int) -> None:
        """Announce that a node that trains is taken away in so many seconds, do so, and let a new one join."""
        node = random.choice(sorted(self.training_workers().values()))
        self._ask("drain", node, seconds)
        time.sleep(seconds)  # the notice
        del self._raylets[node]
        self._ask("kill", node)
        self.add()

    def kill_head(self) -> None:
        """SIGKILL everything on the head, where drivers are."""
        self._ask("kill", 0)

    def _home(self, name: str) -> dict[str, str]:
        home = self._folder / f"home-{name}"
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        return {"HOME": str(home), "RAYREC_HOME": str(home / "rayrec"), "TMPDIR": str(home / "tmp")}

    def _ask(self, *call: Any) -> Any:
        self._calls.send(call)
        answer = self._calls.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def _hold(calls: Connection, shared: dict[str, str]) -> None:
    """Start and kill nodes as asked, until told to end."""
    os.environ.update(shared)
    from ray.cluster_utils import Cluster

    cluster, nodes = Cluster(), {}
    while (call := calls.recv())[0] != "end":
        verb, number, *environment = call
        try:
            if verb == "drain":
                calls.send(_drain(cluster.address, nodes[number].node_id, *environment))
            elif verb == "kill":
                if number in nodes:
                    _kill(cluster, nodes.pop(number))
                calls.send(None)
            else:
                own = {"env_vars": {**shared, **environment[0]}, "include_dashboard": False}
                nodes[number] = cluster.add_node(num_cpus=1 if number else 0, **own)
                raylet = nodes[number].all_processes["raylet"][0].process.pid
                calls.send(raylet if number else cluster.address)
        except Exception as error:
            calls.send(error)


def _drain(address: str, node: str, seconds: int) -> None:
    """What Ray's autoscaler does when a provider announces that it takes a machine away."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

    deadline = int((time.time() + seconds) * 1000)
    accepted, reason = GcsClient(address=address).drain_node(node, DRAIN_NODE_REASON_PREEMPTION, "test", deadline)
    if not accepted:
        raise RuntimeError(reason)


def _kill(cluster: Any, node: Any) -> None:
    """A machine takes all its processes with it."""
    processes: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        processes = psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True)
    cluster.remove_node(node, allow_graceful=False)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


class Driver:
    """A command under way."""

    def __init__(self, arguments: tuple[str, ...], environment: dict[str, str], folder: Path) -> None:
        self._log = Path(tempfile.mkstemp(prefix="driver-", suffix=".log", dir=folder)[1])
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rayrec", *arguments],
                env=environment,
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace")

    @property
    def epochs(self) -> list[int]:
        """Epochs it has told of."""
        return [int(number) for number in re.findall(r"^  epoch +(\d+)", self.output, re.MULTILINE)]

    def await_epoch(self, epoch: int) -> None:
        """Wait until it has told of an epoch."""
        deadline = time.monotonic() + PATIENCE
        while not any(told >= epoch for told in self.epochs):
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.02)  # polls a file

    def await_restart(self, number: int) -> None:
        """Wait until it has told, for the ``number``-th time, that workers were lost."""
        deadline = time.monotonic() + PATIENCE
        while (told := self.output.count("workers were lost")) < number:
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.02)  # polls a file
        assert told == number, self.output

    def await_trials(self, number: int) -> None:
        """Wait until it has told of so many trials' ends."""
        deadline = time.monotonic() + PATIENCE
        while len(self.trials) < number:
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.02)  # polls a file

    @property
    def trials(self) -> list[int]:
        """Trials whose end it has told of."""
        return [int(number) for number in re.findall(r"^  trial +(\d+)  done", self.output, re.MULTILINE)]

    def finish(self) -> int:
        """Wait for its end. Returns its exit code."""
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """SIGKILL it."""
        self.process.kill()
        self.process.wait()


def _source() -> str:
    """Where rayrec is imported from, for processes that start elsewhere."""
    import rayrec

    return str(Path(rayrec.__file__).parents[1])
