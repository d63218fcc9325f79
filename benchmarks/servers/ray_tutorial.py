"""Ray Serve as its guides have it (HTTP with FastAPI, dynamic request batching): one deployment, one replica.

    python -m benchmarks.servers.ray_tutorial --bundle FOLDER --port PORT

The guides: https://docs.ray.io/en/latest/serve/http-guide.html and
https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html. Ray Serve's default proxy answers. Changed from
the defaults, each for more answers: batches of up to 64 instead of 10, which wait for nobody instead of 10 ms, as many
requests in the replica as make two of them instead of 5, and no line in a log for each request.
"""

from __future__ import annotations

import signal
from typing import Any

import ray
from benchmarks.servers.model import MAX_BATCH_SIZE, Model, asked_for
from fastapi import FastAPI
from ray import serve
from ray.serve.schema import LoggingConfig

app = FastAPI()


@serve.deployment(max_ongoing_requests=2 * MAX_BATCH_SIZE)
@serve.ingress(app)
class Recommender:
    """The deployment."""

    def __init__(self, folder: str) -> None:
        self.model = Model(folder)

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=0)
    async def predict(self, users: list[str]) -> list[dict[str, Any]]:
        """One pass."""
        return self.model.recommend(users)

    @app.get("/recommend/{user}")
    async def recommend(self, user: str) -> dict[str, Any]:
        """The route."""
        return await self.predict(user)


def main() -> None:
    """Serve until a signal."""
    arguments = asked_for(__doc__)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"port": arguments.port}, logging_config=quiet)
    serve.run(Recommender.bind(arguments.bundle), logging_config=quiet)
    signal.sigwait(signals)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
