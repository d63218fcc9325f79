"""A standing cluster, begun and ended by its own process."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from rayrec.cluster import SETTINGS, end_session
from rayrec.ports import choose_replica_ports, free_port

ROOT = Path(__file__).parents[2]
START_SECONDS = 60


@dataclass(frozen=True)
class Head:
    """A running ``ray start --head``.

    Attributes:
        python: The interpreter it runs on.
        dashboard: Address of its dashboard.
        environment: Of it and of commands that talk to it.
    """

    python: str
    dashboard: str
    environment: dict[str, str]

    def command(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``python -m MODULE ARGUMENTS`` in the root of the repository, to its end."""
        return subprocess.run(
            [self.python, "-m", module, *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


@contextmanager
def head(python: str, home: Path, **variables: str) -> Iterator[Head]:
    """``ray start --head`` by an interpreter, with a home of its own, for as long as the block lasts."""
    port, dashboard = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        environment = {**os.environ, **SETTINGS, "HOME": str(home), "RAYREC_HOME": str(home / "rayrec"), **variables}
        # As an activated environment has it: a job's `python` is found there.
        environment |= {"RAY_TMPDIR": temporary, "PATH": f"{Path(python).parent}:{os.environ['PATH']}"}
        environment |= {"RAY_AUTH_MODE": "disabled"}
        choose_replica_ports(environment)
        command = [python, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--num-cpus=4"]
        command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
        command += [f"--ray-client-server-port={free_port()}", f"--object-store-memory={150 << 20}"]
        log = home / "head.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            url = f"http://127.0.0.1:{dashboard}"
            _await(process, url, log)
            yield Head(python, url, environment)
        finally:
            end_session(process.pid)


def _await(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            httpx.get(f"{url}/api/version").raise_for_status()
        except httpx.HTTPError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.2)  # polls a process that has no event to wait for
        else:
            return
