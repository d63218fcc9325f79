"""The log of a replica: one, written by Ray Serve as text or as JSON, whoever says something."""

from __future__ import annotations

import logging

from rayrec.serving.watching import ACCESS

SERVE = logging.getLogger("ray.serve")
OURS = logging.getLogger("rayrec")


class _ToServe(logging.Handler):
    """Hands records on to Ray Serve's logger."""

    def __init__(self, replica: str) -> None:
        super().__init__()
        self._replica = replica

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        record.replica = self._replica
        SERVE.handle(record)


def join_serve(replica: str) -> None:
    """Have what rayrec logs in this process stand in the log of its replica."""
    OURS.addHandler(_ToServe(replica))
    OURS.propagate = False


def log_access(wanted: bool) -> None:
    """Log a line for each request, or none."""
    ACCESS.setLevel(logging.INFO if wanted else logging.WARNING)


def flush() -> None:
    """Have the log written: where Serve is fast (`RAY_SERVE_THROUGHPUT_OPTIMIZED`) it keeps back a thousand lines."""
    for handler in SERVE.handlers:
        handler.flush()
