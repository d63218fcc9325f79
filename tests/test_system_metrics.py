"""System metrics of a stage: they arrive, and nobody waits for them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from rayrec import system_metrics
from rayrec.tracking import Tracker


def test_a_run_has_what_the_machine_did(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    tracker = Tracker("movies")
    run = tracker.begin("train")
    with system_metrics.system_metrics(run):
        deadline = time.monotonic() + 20
        while "system/cpu_utilization_percentage" not in tracker.client.get_run(run.id).data.metrics:
            assert time.monotonic() < deadline, "no metrics came"
            time.sleep(0.1)  # polls a database


def test_a_server_that_is_gone_is_not_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(system_metrics, "END_SECONDS", 0.1)
    monkeypatch.setattr(SystemMetricsMonitor, "finish", lambda _: answered.wait(20))
    began = time.monotonic()
    with system_metrics.system_metrics(Tracker("movies").begin("train")):
        pass
    assert time.monotonic() - began < 10
    answered.set()
