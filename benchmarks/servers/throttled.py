"""rayrec's endpoint with a scorer that takes its time, to see what it does under more load than it can bear.

    python -m benchmarks.servers.throttled --storage URI --release DIGEST --port PORT --pass-seconds 0.02

All but the scorer's runtime is as `rayrec serve` starts it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from ray import serve

from rayrec.artifacts import Storage
from rayrec.cluster import connected
from rayrec.inference.inputs import Inputs
from rayrec.inference.release import open_release
from rayrec.inference.runtime import Runtime
from rayrec.recipe_serving import Serving
from rayrec.serving import deployment
from rayrec.serving.server import serving, until_signal


@dataclass(frozen=True)
class Slow:
    """A runtime each of whose passes lasts at least so many seconds, without work, as if a GPU did it.

    Attributes:
        runtime: What computes.
        seconds: How long.
    """

    runtime: Runtime
    seconds: float
    # Histories of any lengths in one pass: parts would be a pass each.
    alike: float = 0.0

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """See `Runtime`."""
        began = time.perf_counter()
        scores = self.runtime(inputs)
        time.sleep(max(0.0, began + self.seconds - time.perf_counter()))
        return scores


def throttled(seconds: float) -> Any:
    """The endpoint's deployment with a slow scorer."""
    # Serve's decorator replaces the class, which type checkers do not see.
    endpoint = cast("Any", deployment.Endpoint).func_or_class

    class Throttled(endpoint):
        """A replica whose scorer is slow."""

        async def reconfigure(self, config: dict[str, Any]) -> None:
            await super().reconfigure(config)
            engine = self._rollout.lineup.main.engine
            engine.scorer = replace(engine.scorer, runtime=Slow(engine.scorer.runtime, seconds))

    return serve.deployment(name="endpoint")(Throttled)


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", required=True)
    parser.add_argument("--release", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pass-seconds", type=float, default=0.02)
    parser.add_argument("--max-batch-size", type=int, default=4)
    arguments = parser.parse_args()
    storage = Storage.open(arguments.storage)
    settings = Serving(**open_release(storage, arguments.release).content["serving"])
    changed = {"port": arguments.port, "max_batch_size": arguments.max_batch_size}
    # What `build_application` makes an application of: there is no setting for this, and there shall be none.
    deployment.Endpoint = throttled(arguments.pass_seconds)
    with connected(), until_signal() as wait, serving(storage, arguments.release, settings.model_copy(update=changed)):
        wait()


if __name__ == "__main__":
    main()
