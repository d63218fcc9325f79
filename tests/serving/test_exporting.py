"""Handing over to Ray what was counted, and what is done every second."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from ray.serve import metrics

from rayrec.serving.exporting import Exporter
from rayrec.serving.ticking import Ticker

Told = list[tuple[str, float, dict[str, str]]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What Ray's metrics are told, in place of the agent that there is not without a cluster."""
    kept: Told = []

    def record(metric: Any, value: float, tags: dict[str, str] | None = None) -> None:
        kept.append((metric.info["name"], value, dict(tags or {})))

    monkeypatch.setattr(metrics.Counter, "inc", record)
    monkeypatch.setattr(metrics.Gauge, "set", record)
    return kept


def test_counters_are_handed_over_by_what_they_grew(told: Told) -> None:
    registry = CollectorRegistry()
    counter, exporter = Counter("rayrec_things", "Things.", ("kind",), registry=registry), Exporter(registry)
    for more in (2, 0, 3):
        counter.labels("a").inc(more)
        exporter.hand_over()

    assert told == [("rayrec_things", 2.0, {"kind": "a"}), ("rayrec_things", 3.0, {"kind": "a"})]


def test_histograms_are_handed_over_whole_each_time(told: Told) -> None:
    registry = CollectorRegistry()
    histogram, exporter = Histogram("rayrec_s", "S.", buckets=(1, 2), registry=registry), Exporter(registry)
    histogram.observe(1.5)
    exporter.hand_over()
    once = told.copy()
    exporter.hand_over()

    buckets = [("rayrec_s_bucket", value, {"le": le}) for le, value in (("1.0", 0.0), ("2.0", 1.0), ("+Inf", 1.0))]
    assert once == [*buckets, ("rayrec_s_count", 1.0, {}), ("rayrec_s_sum", 1.5, {})]
    assert told == once * 2


def test_a_gauge_that_is_taken_back_is_told_of_no_more(told: Told) -> None:
    registry = CollectorRegistry()
    gauge, exporter = Gauge("rayrec_live", "Live.", ("release",), registry=registry), Exporter(registry)
    gauge.labels("before").set(1)
    exporter.hand_over()
    gauge.clear()
    gauge.labels("after").set(1)
    exporter.hand_over()

    assert told == [("rayrec_live", 1.0, {"release": name}) for name in ("before", "after")]


def test_what_fails_once_is_done_again_and_once_more_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rayrec.serving.ticking.EVERY_SECONDS", 0.01)
    again, calls = threading.Event(), list[int]()

    def work() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            raise ValueError("once")
        again.set()

    ticker = Ticker(work)
    assert again.wait(10)
    ticker.stop()
    ended = len(calls)
    time.sleep(0.05)  # five of its beats

    assert "once" in caplog.text
    assert len(calls) == ended
