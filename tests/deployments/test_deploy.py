"""`serve deploy` of a Release by reference, and of another while it is being asked."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tests.deployments.conftest import ROOT, Head, head
from tests.recipes import recipe_values, write_log
from tests.watching import Silent

from rayrec import pipeline
from rayrec.artifacts import Storage
from rayrec.ports import free_port
from rayrec.recipe_files import parse_recipe

PATIENCE = 60
CLIENTS = 4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def releases(
    tmp_path_factory: pytest.TempPathFactory, ray_cluster: None, migrated_mlflow: Path
) -> tuple[Path, list[str]]:
    """A home with two Releases of one name, and their digests."""
    folder = tmp_path_factory.mktemp("deployed")
    home = folder / "rayrec"
    home.mkdir()
    shutil.copy(migrated_mlflow, home / "mlflow.db")
    values = recipe_values(write_log(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYREC_HOME", str(home))
        digests = []
        for seed in (0, 1):
            recipe = parse_recipe({**values, "training": {**values["training"], "epochs": 1, "seed": seed}})
            digests.append(pipeline.run(recipe, Storage.open(), Silent()).release.digest)
    return folder, digests


class Endpoint:
    """The endpoint of deployments/local.yaml, on a port of its own."""

    def __init__(self, cluster: Head, folder: Path) -> None:
        self._cluster = cluster
        self._file = folder / "deploy.yaml"
        self._config = yaml.safe_load((ROOT / "deployments" / "local.yaml").read_text(encoding="utf-8"))
        self._config["http_options"]["port"] = free_port()
        self.url = f"http://127.0.0.1:{self._config['http_options']['port']}"

    def deploy(self, reference: str) -> None:
        """`serve deploy` of the packaged file with another Release in it."""
        (deployment,) = self._config["applications"][0]["deployments"]
        deployment["user_config"] = {"release": reference}
        self._file.write_text(yaml.safe_dump(self._config), encoding="utf-8")
        done = self._cluster.command(
            "ray.serve.scripts", "deploy", "--address", self._cluster.dashboard, str(self._file)
        )
        assert done.returncode == 0, done.stderr

    def await_ready(self, release: str, refused: str = "") -> None:
        """Wait until `/v1/ready` names the Release as the live one, and says what was refused."""
        deadline = time.monotonic() + PATIENCE
        while (said := self._ready()).get("release") != release or refused not in said.get("refused", ""):
            assert time.monotonic() < deadline, said
            time.sleep(0.1)  # polls a server that has no event to wait for

    def _ready(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = httpx.get(f"{self.url}/v1/ready").raise_for_status().json()
        except httpx.HTTPError as error:
            return {"error": repr(error)}
        return found

    @contextmanager
    def under_load(self) -> Iterator[Counter[str]]:
        """Clients that ask without a pause while the block lasts. Gives what was answered, by Release or error."""
        answers: Counter[str] = Counter()
        ended = threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=self.url, timeout=30) as client:
                while not ended.is_set():
                    try:
                        answer = client.get("/v1/recommend/u3?n=5").raise_for_status().json()
                        answers[answer["release"]] += 1
                    except httpx.HTTPError as error:
                        answers[repr(error)] += 1

        with ThreadPoolExecutor(CLIENTS) as threads:
            asking = [threads.submit(ask) for _ in range(CLIENTS)]
            try:
                yield answers
            finally:
                ended.set()
                for client in asking:
                    client.result()


def test_a_release_is_deployed_by_reference_and_swapped_under_load(releases: tuple[Path, list[str]]) -> None:
    folder, (first, second) = releases
    with head(sys.executable, folder) as cluster:
        endpoint = Endpoint(cluster, folder)
        endpoint.deploy("tiny/1")
        endpoint.await_ready(first)
        with endpoint.under_load() as answers:
            time.sleep(1)
            endpoint.deploy("tiny/2")
            endpoint.await_ready(second)
            time.sleep(1)
        # Errors would be counted under names of their own.
        assert set(answers) == {first, second}, answers
        assert min(answers.values()) > 10

        # One that does not exist leaves the one that is live, and says so.
        with endpoint.under_load() as answers:
            endpoint.deploy("tiny/9")
            endpoint.await_ready(second, refused="'tiny/9' is not registered")
        assert set(answers) == {second}, answers
