"""LitServe with batches: one process for HTTP, one worker that computes.

    python -m benchmarks.servers.litserve_server --bundle FOLDER --port PORT

https://lightning.ai/docs/litserve/features/batching. A batch waits for nobody, as by default: with a `batch_timeout` of
1 ms, and with `fast_queue`, it answered fewer.
"""

from __future__ import annotations

from typing import Any

import litserve
from benchmarks.servers.model import MAX_BATCH_SIZE, Model, asked_for


class Recommender(litserve.LitAPI):
    """The model behind LitServe."""

    def __init__(self, folder: str) -> None:
        super().__init__(max_batch_size=MAX_BATCH_SIZE)
        self.folder = folder

    def setup(self, device: str) -> None:
        """In the worker."""
        self.model = Model(self.folder)

    def decode_request(self, request: dict[str, str]) -> str:
        """The user."""
        return request["user"]

    def batch(self, inputs: list[str]) -> list[str]:
        """As they are: LitServe would make an array of them."""
        return inputs

    def predict(self, x: list[str]) -> list[dict[str, Any]]:
        """One pass."""
        return self.model.recommend(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """An answer each."""
        return output


def main() -> None:
    """Serve until a signal."""
    arguments = asked_for(__doc__)
    server = litserve.LitServer(Recommender(arguments.bundle), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=arguments.port, num_api_servers=1, log_level="warning", generate_client_file=False
    )


if __name__ == "__main__":
    main()
