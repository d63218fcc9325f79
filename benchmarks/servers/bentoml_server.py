"""BentoML with adaptive batching, one worker.

    python -m benchmarks.servers.bentoml_server --bundle FOLDER --port PORT

https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html
"""

from __future__ import annotations

import os
import sys
from typing import Any

import bentoml
from benchmarks.servers.model import MAX_BATCH_SIZE, Model, asked_for

FOLDER = "BENCHMARK_BUNDLE"
"""The variable by which BentoML's worker learns what to serve: services take no arguments."""


@bentoml.service(
    workers=1, traffic={"timeout": 30, "concurrency": MAX_BATCH_SIZE}, logging={"access": {"enabled": False}}
)
class Recommender:
    """The service."""

    def __init__(self) -> None:
        self.model = Model(os.environ[FOLDER])

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=10_000)
    def recommend(self, users: list[str]) -> list[dict[str, Any]]:
        """One pass."""
        return self.model.recommend(users)


def main() -> None:
    """Become `bentoml serve`."""
    arguments = asked_for(__doc__)
    os.environ.update({FOLDER: arguments.bundle, "BENTOML_DO_NOT_TRACK": "True"})
    served = "benchmarks.servers.bentoml_server:Recommender"
    command = ["-m", "bentoml", "serve", served, "--host", "127.0.0.1", "--port", str(arguments.port), "--quiet"]
    # In place of this process: it gets the signal that ends it.
    os.execv(sys.executable, [sys.executable, *command])  # noqa: S606


if __name__ == "__main__":
    main()
