"""What the machine does while a stage runs: MLflow's system metrics."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rayrec.tracking import TrackedRun, tracking_uri

END_SECONDS = 2


@contextmanager
def system_metrics(run: TrackedRun) -> Iterator[None]:
    """Log CPU, memory, disk, network and GPUs of this machine into a run, every ten seconds while the block lasts."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    # Each start and end is announced there, in the middle of what the command says.
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    monitor = SystemMetricsMonitor(run.id, tracking_uri=tracking_uri())
    monitor.start()
    try:
        yield
    finally:
        # It may be in the middle of asking a server that is gone, again and again: nothing that is worth a wait.
        ending = threading.Thread(target=monitor.finish, daemon=True)
        ending.start()
        ending.join(END_SECONDS)
