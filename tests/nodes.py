"""A cluster of three nodes on this machine, a driver to run on it, and ways to kill parts of both by their handles."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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

    def __enter__(self) -> Nodes:
        from ray.cluster_utils import Cluster

        with _environment(self._shared):
            self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **self._own()})
        for _ in range(2):
            self.add()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in [*self.cluster.worker_nodes, self.cluster.head_node]:
            self.cluster.remove_node(node, allow_graceful=False)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def add(self) -> None:
        """One more node."""
        with _environment(self._shared):
            self.cluster.add_node(num_cpus=1, **self._own())

    @property
    def homes(self) -> list[Path]:
        """The home of every node there has been, and of the driver."""
        return sorted(self._folder.glob("home-*"))

    def _own(self) -> dict[str, Any]:
        """Arguments of a node."""
        self._count += 1
        return {"env_vars": self._with_home(f"node-{self._count}"), "include_dashboard": False}

    def _with_home(self, name: str) -> dict[str, str]:
        home = self._folder / f"home-{name}"
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        return {**self._shared, "HOME": str(home), "RAYREC_HOME": str(home / "rayrec"), "TMPDIR": str(home / "tmp")}

    def driver(self, *arguments: str) -> Driver:
        """``rayrec ARGUMENTS``, begun on this cluster."""
        environment = {**os.environ, **self._with_home("driver"), "RAY_ADDRESS": self.cluster.address}
        return Driver(arguments, environment, self._folder)

    def training_workers(self) -> dict[int, Any]:
        """Processes that train now, with the node each one is on."""
        found = {}
        for node in self.cluster.worker_nodes:
            for raylet in node.all_processes["raylet"]:
                for child in psutil.Process(raylet.process.pid).children():
                    if TRAIN_WORKER in " ".join(child.cmdline()):
                        found[child.pid] = node
        return found

    def kill_worker(self) -> None:
        """SIGKILL one that trains."""
        os.kill(random.choice(sorted(self.training_workers())), signal.SIGKILL)

    def kill_node(self) -> None:
        """SIGKILL everything on a node that trains, and let a new one join."""
        workers = self.training_workers()
        victim = workers[random.choice(sorted(workers))]
        gone = [child for p in victim.all_processes["raylet"] for child in psutil.Process(p.process.pid).children()]
        self.cluster.remove_node(victim, allow_graceful=False)
        for child in gone:
            # A machine takes all its processes with it.
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self.add()


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


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables of this process for as long as the block lasts: processes started in it inherit them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
