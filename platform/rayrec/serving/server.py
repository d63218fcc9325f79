"""Starting and ending the endpoint."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray import serve
from ray.serve.schema import LoggingConfig

from rayrec.artifacts import Storage
from rayrec.errors import ClusterError
from rayrec.inference.release import open_release
from rayrec.recipe import Serving
from rayrec.serving.deployment import APP_NAME, build_application


@contextmanager
def serving(storage: Storage, release: str, settings: Serving) -> Iterator[str]:
    """The endpoint for as long as the block lasts, on the connected cluster. Gives its address.

    Raises:
        ModelError: The Release is damaged.
        ClusterError: The endpoint does not become healthy; the cause is in the message.
    """
    pinned = open_release(storage, release)
    for role in pinned.content["models"]:
        # Checked here as well: a replica that cannot load would be started again and again.
        pinned.bundle(role)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(http_options={"host": settings.host, "port": settings.port}, logging_config=quiet)
    try:
        try:
            serve.run(build_application(storage, release, settings), name=APP_NAME, logging_config=quiet)
        except RuntimeError as error:
            raise ClusterError(f"the endpoint did not start: {_cause(error)}") from error
        yield f"http://{settings.host}:{settings.port}"
    finally:
        # Replicas finish what they are answering, then end.
        serve.shutdown()


def free_port() -> int:
    """A port of localhost that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_signal() -> None:
    """Return when the process is asked to end."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    asked.wait()


def _cause(error: Exception) -> str:
    """What the replica said, without the traceback around it."""
    message = serve.status().applications[APP_NAME].message
    lines = [line.strip() for line in f"{error}\n{message}".splitlines() if line.strip()]
    told = [line for line in lines if "rayrec.errors." in line or "Error:" in line]
    return (told or lines)[-1]
