"""The servers that benchmarks/serving.py compares: how each is started, asked, understood and ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import yaml

from rayrec.ports import free_port
from rayrec.recipe_files import load_recipe

ROOT = Path(__file__).parents[2]
START_SECONDS, STOP_SECONDS = 180, 60
NAME = "served"
ENDPOINT = "/v1/recommend/{user}"
MODEL = {"name": "sasrec", "dim": 64, "blocks": 2, "heads": 1, "max_length": 200}
TRAINING = {"epochs": 1, "batch_size": 128, "workers": 0, "threads": 1}
"""Speed does not depend on how good a model is."""
UNCACHED = {"cache_answers": 0, "coalesce": False}
FUNNEL = {
    "sources": {"model": 200, "similar": 50, "popular": 20, "trending": 20, "latest": 20},
    "diversity": "mmr",
    "category_cap": 3,
}
SERVING: Mapping[str, dict[str, Any]] = {
    "rayrec": {**UNCACHED, "funnel": FUNNEL},
    "rayrec-2": {**UNCACHED, "funnel": FUNNEL, "min_replicas": 2, "max_replicas": 2, "replica_cpus": 0.3},
    "rayrec-plain": UNCACHED,
    "rayrec-cached": {},
    "rayrec-single": {**UNCACHED, "max_batch_size": 1, "max_queued_requests": 128},
}
"""The recipe's `serving` of each endpoint, one replica each: the whole funnel; the same by two replicas; the order of
the model, which is what the peers answer; the same as by default, with answers remembered; and without batches."""


@dataclass(frozen=True)
class Contender:
    """A server.

    Attributes:
        name: As it is shown.
        command: Starts it on a port.
        path: Of its URL; ``{user}`` stands for a user.
        body: What is posted; None where it is asked by GET.
        answer: Finds the answer to one user in the JSON that comes back.
        environment: Variables beside those of this process; None takes one away.
        package: What its interpreter must be able to import.
    """

    name: str
    command: Callable[[int], list[str]]
    path: str = "/recommend/{user}"
    body: str | None = None
    answer: Callable[[Any], Any] = lambda content: content
    environment: Mapping[str, str | None] = field(default_factory=dict)
    package: str = "rayrec"

    def is_installed(self) -> bool:
        """Whether its interpreter has its package."""
        interpreter = self.command(0)[0]
        found = subprocess.run([interpreter, "-c", f"import {self.package}"], capture_output=True, check=False)
        return found.returncode == 0

    def items(self, url: str, user: str) -> list[str]:
        """The keys of what it recommends to a user.

        Raises:
            httpx.HTTPError: It does not answer, or not with 200.
        """
        place = url + self.path.replace("{user}", user)
        if self.body is None:
            response = httpx.get(place, timeout=30)
        else:
            content = self.body.replace("{user}", user)
            response = httpx.post(place, content=content, headers={"content-type": "application/json"}, timeout=30)
        return [item["item"] for item in self.answer(response.raise_for_status().json())["items"]]


class Server:
    """A contender that runs.

    Args:
        contender: What to start.
        user: Asked for until it answers.
        log: Where its output goes.
    """

    def __init__(self, contender: Contender, user: str, log: Path) -> None:
        self.contender = contender
        self.port = free_port()
        self._log = log
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")])}
        for name, value in contender.environment.items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        began = time.monotonic()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                contender.command(self.port), env=environment, stdout=output, stderr=output, cwd=ROOT
            )
        try:
            while not self._answers(user):
                if self._process.poll() is not None or time.monotonic() > began + START_SECONDS:
                    raise SystemExit(f"{contender.name} does not start: {log.read_text()[-2000:]}")
                time.sleep(0.1)  # polls another process
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - began

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End it as Ctrl-C would, and what it has left behind after a minute."""
        if self._process.poll() is not None:
            return
        command = psutil.Process(self._process.pid)
        processes = [command, *command.children(recursive=True)]
        self._process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(processes, timeout=STOP_SECONDS)
        for process in left:
            process.kill()
        self._process.wait()

    def _answers(self, user: str) -> bool:
        try:
            return bool(self.contender.items(self.url, user))
        except httpx.HTTPError:
            return False


def contenders(
    home: Path, releases: Mapping[str, dict[str, Any]], peers_python: str, temporary: Path
) -> list[Contender]:
    """All of them.

    Args:
        home: Where `prepare` put everything.
        releases: What it returned.
        peers_python: An interpreter that has servers/requirements.txt.
        temporary: A folder with a short name, for Ray.
    """
    own = _environment(home, temporary)
    # Ray as whoever follows its guides has it.
    plain_ray = {**own, **{name: None for name in os.environ if name.startswith("RAY_SERVE_")}}

    def peer(python: str, module: str) -> Callable[[int], list[str]]:
        script = [python, "-m", f"benchmarks.servers.{module}", "--bundle", str(home / "peers"), "--port"]
        return lambda port: [*script, str(port)]

    def rayrec(reference: str) -> Callable[[int], list[str]]:
        return lambda port: [sys.executable, "-m", "rayrec", "serve", reference, "--port", str(port)]

    return [
        Contender("uvicorn", peer(sys.executable, "uvicorn_server")),
        Contender("uvicorn-threads", peer(sys.executable, "uvicorn_server"), "/threads/recommend/{user}"),
        *(
            Contender(name, rayrec(f"{NAME}/{release['version']}"), ENDPOINT, environment=own)
            for name, release in releases.items()
        ),
        Contender("ray-tutorial", peer(sys.executable, "ray_tutorial"), environment=plain_ray),
        Contender(
            "litserve", peer(peers_python, "litserve_server"), "/predict", '{"user": "{user}"}', package="litserve"
        ),
        Contender(
            "bentoml",
            peer(peers_python, "bentoml_server"),
            "/recommend",
            '{"users": ["{user}"]}',
            lambda content: content[0],
            package="bentoml",
        ),
        Contender(
            "mlflow",
            peer(sys.executable, "mlflow_server"),
            "/invocations",
            '{"inputs": ["{user}"]}',
            lambda content: content["predictions"][0],
        ),
    ]


def throttled(home: Path, release: Mapping[str, Any], temporary: Path) -> Contender:
    """An endpoint with a slow scorer. Arguments as of `contenders`, with one Release."""
    script = [sys.executable, "-m", "benchmarks.servers.throttled"]
    command = [*script, "--storage", release["storage"], "--release", release["digest"], "--port"]
    environment = _environment(home, temporary)
    return Contender("throttled", lambda port: [*command, str(port)], ENDPOINT, environment=environment)


def _environment(home: Path, temporary: Path) -> dict[str, str | None]:
    return {"RAYREC_HOME": str(home), "RAY_TMPDIR": str(temporary), "RAY_ADDRESS": None}


def prepare(home: Path, dataset: str, data: Path | None) -> dict[str, dict[str, Any]]:
    """Train what is served, once, and register a Release for each endpoint.

    Args:
        home: Where everything goes. What is there already is not done again.
        dataset: A packaged recipe, for its data.
        data: A folder with ``ratings.parquet`` and ``movies.parquet`` of MovieLens 1M, in place of those.

    Returns:
        What `rayrec run --json` says of each Release, by endpoint.
    """
    values = {"name": NAME, "data": _data(dataset, data), "model": MODEL, "training": TRAINING}
    home.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "RAYREC_HOME": str(home), "PYTHONPATH": str(ROOT / "platform")}
    releases = {}
    for name, serving in SERVING.items():
        recipe = home / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump({**values, "serving": {"max_replicas": 1, **serving}}))
        command = [sys.executable, "-m", "rayrec", "run", str(recipe), "--json"]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        releases[name] = json.loads(done.stdout)["release"]
    return releases


def _data(dataset: str, folder: Path | None) -> dict[str, Any]:
    """The recipe's `data`."""
    if folder is None:
        return load_recipe(dataset).model_dump(mode="json", exclude_unset=True)["data"]
    columns = {"item": "item_id", "title": "title", "categories": "genres"}
    events = {"user": "user_id", "item": "item_id", "timestamp": "timestamp"}
    return {
        "sources": [{"path": str(folder.absolute() / "ratings.parquet"), "columns": events}],
        "items": {
            "path": str(folder.absolute() / "movies.parquet"),
            "columns": columns,
            "category_separator": "|",
        },
        "view": {"min_item_events": 5},
    }
