"""What is counted, timed, logged and traced of requests, without Serve."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from ray._common.formatters import JSONFormatter

from rayrec.errors import RecipeError
from rayrec.inference.release import Release
from rayrec.recipe_serving import Funnel
from rayrec.serving import logs, tracing
from rayrec.serving.app import build_app
from rayrec.serving.batching import Batcher
from rayrec.serving.cache import AnswerCache, Remembering
from rayrec.serving.engine import Engine
from rayrec.serving.funnel.funnel import Funnel as Arranging
from rayrec.serving.metrics import REGISTRY, show_live
from rayrec.serving.queries import Answer, Query
from rayrec.serving.state import Impression
from rayrec.serving.store.database import UnavailableError
from rayrec.serving.store.store import Store

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Batching:
    """A backend that answers as a replica does."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self.engine = engine
        self.store = store
        self.refused: str | None = None
        self.tells_request_id = False
        self.deadline = 60.0
        batcher = Batcher(engine.answer, max_batch_size=4, max_queued=64, deadline=60)
        self._cache = AnswerCache(batcher.submit, store.catalog, Remembering(100, 30, True))

    def engine_of(self, user: str | None) -> Engine:
        return self.engine

    async def answer(self, engine: Engine, query: Query) -> Answer:
        return await self._cache.answer(query)


@pytest.fixture(scope="module")
def engine(release: Release, filled: Store) -> Engine:
    return Engine.load(release.storage, release.digest, known=filled.histories_of, catalog=filled.catalog)


@pytest.fixture
def client(engine: Engine, filled: Store) -> Iterator[TestClient]:
    with TestClient(build_app(Batching(engine, filled)), raise_server_exceptions=False) as client:
        yield client


class Growth:
    """By how much what is measured has grown since."""

    def __init__(self) -> None:
        self._before = self._read()

    def of(self, name: str, **labels: str) -> float:
        key = name, frozenset(labels.items())
        return self._read().get(key, 0.0) - self._before.get(key, 0.0)

    @staticmethod
    def _read() -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        samples = (sample for metric in REGISTRY.collect() for sample in metric.samples)
        return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def test_requests_are_counted_and_timed_by_route_method_and_status(client: TestClient) -> None:
    growth, route = Growth(), "/v1/recommend/{user}"
    for user in ("u1", "u2", "a/b"):
        client.get(f"/v1/recommend/{user}")
    client.get("/v1/recommend/u1?n=0")

    assert growth.of("rayrec_requests_total", route=route, method="GET", status="2xx") == 3
    assert growth.of("rayrec_requests_total", route=route, method="GET", status="4xx") == 1
    assert growth.of("rayrec_request_duration_seconds_count", route=route) == 4


def test_whatever_clients_send_there_are_no_more_labels(client: TestClient) -> None:
    growth = Growth()
    client.get("/nothing/of-mine-here")
    client.request("MINE", "/nothing/else")
    client.get("/v1/recommend/of-mine", headers={"x-request-id": "of-mine"})

    said = {value for metric in REGISTRY.collect() for sample in metric.samples for value in sample.labels.values()}
    assert not [value for value in said if "mine" in value.lower()]
    assert growth.of("rayrec_requests_total", route="other", method="GET", status="4xx") == 1
    assert growth.of("rayrec_requests_total", route="other", method="other", status="4xx") == 1


def test_a_fault_is_counted_and_logged_with_its_request_id(
    client: TestClient, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("broken")

    monkeypatch.setattr(engine, "user_query", broken)
    growth = Growth()
    client.get("/v1/recommend/u1", headers={"x-request-id": "the-one"})

    line = JSONFormatter().format(caplog.records[-1])
    assert growth.of("rayrec_requests_total", route="/v1/recommend/{user}", method="GET", status="5xx") == 1
    assert "\n" not in line
    assert json.loads(line)["request_id"] == "the-one"


def test_each_stage_of_an_answer_is_timed(client: TestClient, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    growth = Growth()
    client.get("/v1/recommend/u3")
    plain = {stage: growth.of("rayrec_stage_duration_seconds_count", stage=stage) for stage in ("ask", "wait", "score")}
    policy = Funnel(merge="ranks")
    arranging = Arranging(policy, engine.scorer, engine.popular, engine.catalog, tuple, "salt")
    monkeypatch.setattr(engine, "_funnel", arranging)
    client.get("/v1/recommend/u4")

    assert plain == {"ask": 1, "wait": 1, "score": 1}
    assert growth.of("rayrec_stage_duration_seconds_count", stage="score") == 2
    assert growth.of("rayrec_stage_duration_seconds_count", stage="arrange") == 1
    assert 0 < growth.of("rayrec_stage_duration_seconds_sum", stage="score") < 60


def test_batches_and_what_they_leave_waiting_are_measured() -> None:
    waiting: list[float] = []

    def compute(requests: Sequence[int]) -> Sequence[int]:
        waiting.append(REGISTRY.get_sample_value("rayrec_queue_length_requests") or 0.0)
        return requests

    async def ask() -> None:
        batcher = Batcher(compute, max_batch_size=4, max_queued=100, deadline=60)
        await asyncio.gather(*(batcher.submit(number) for number in range(10)))

    growth = Growth()
    asyncio.run(ask())

    assert growth.of("rayrec_batch_size_requests_count") == len(waiting) == 3
    assert growth.of("rayrec_batch_size_requests_sum") == 10
    assert waiting == [6, 2, 0]


def test_answers_given_again_are_told_from_those_computed(client: TestClient) -> None:
    growth = Growth()
    for _ in range(3):
        client.get("/v1/recommend/u5?n=7")

    assert growth.of("rayrec_cache_requests_total", outcome="miss") == 1
    assert growth.of("rayrec_cache_requests_total", outcome="hit") == 2


def test_popular_items_in_place_of_the_models_are_counted_by_their_reason(
    client: TestClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    growth = Growth()
    client.get("/v1/recommend/u1")
    client.get("/v1/recommend/nobody")
    client.post("/v1/session/recommend", json={"items": ["no such thing"]})
    counted = [growth.of("rayrec_fallbacks_total", reason=reason) for reason in ("unknown_user", "unknown_items")]

    def away(*_: Any, **__: Any) -> None:
        raise UnavailableError("away")

    monkeypatch.setattr(engine, "user_query", away)
    client.get("/v1/recommend/u1")

    assert counted == [1, 1]
    assert growth.of("rayrec_fallbacks_total", reason="degraded") == 1


def test_events_that_are_kept_are_counted_once(client: TestClient) -> None:
    growth = Growth()
    event = {"user": "u1", "item": "i1", "event_id": "counted-once"}
    for _ in range(2):
        client.post("/v1/events", json=event)

    assert growth.of("rayrec_events_written_total") == 1


def test_impressions_that_are_not_kept_are_counted(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("broken")

    # What tests before this one were answered is written first.
    filled.impressions.flush()
    growth = Growth()
    with monkeypatch.context() as patch, suppress(ValueError):
        patch.setattr(filled.database, "write", broken)
        for number in range(3):
            filled.impressions.log(Impression(str(number), None, 1, "release", "model", 1, ["i1"], [1.0], [1.0]))
        filled.impressions.flush()

    assert growth.of("rayrec_impressions_lost_total") == 3


def test_only_the_release_that_is_live_is_shown(release: Release) -> None:
    for _ in range(2):
        show_live({"main": release})

    shown = [sample for metric in REGISTRY.collect() for sample in metric.samples if sample.name.endswith("_info")]
    assert [(sample.labels["release"], sample.value) for sample in shown] == [(release.digest, 1)]


@pytest.fixture
def access_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logs.log_access(True)
    yield caplog
    logs.log_access(False)


def test_a_line_for_a_request_says_how_it_went_and_not_about_whom(
    client: TestClient, engine: Engine, access_log: pytest.LogCaptureFixture
) -> None:
    client.get("/v1/recommend/u7?n=2", headers={"x-request-id": "mine", "x-api-key": "a-secret"})

    (record,) = [record for record in access_log.records if record.name == "rayrec.serving.access"]
    line = JSONFormatter().format(record)
    told = json.loads(line)
    known = {name: told[name] for name in ("request_id", "route", "method", "status", "release", "source")}
    assert known == {
        "request_id": "mine",
        "route": "/v1/recommend/{user}",
        "method": "GET",
        "status": 200,
        "release": engine.release.digest,
        "source": "model",
    }
    assert 0 < told["milliseconds"] < 60_000
    assert "u7" not in line
    assert "a-secret" not in line


def test_by_default_there_is_no_line_for_a_request(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        logs.log_access(False)
        client.get("/v1/recommend/u7")

    assert not [record for record in caplog.records if record.name == "rayrec.serving.access"]


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Where spans are kept while they are made."""
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracing.begin(provider)
    yield kept
    tracing.end()


def by_name(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def test_a_request_is_a_span_of_the_clients_trace_and_its_stages_are_within_it(
    client: TestClient, engine: Engine, spans: InMemorySpanExporter, access_log: pytest.LogCaptureFixture
) -> None:
    client.get("/v1/recommend/u8", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})

    found = by_name(spans)
    request = found.pop("GET /v1/recommend/{user}")
    assert request.context is not None
    assert request.parent is not None
    assert (request.context.trace_id, request.parent.span_id) == (int(TRACE, 16), int(PARENT, 16))
    assert {*found} == {"ask", "wait", "score"}
    for span in found.values():
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
        assert (request.start_time or 0) <= (span.start_time or 0) <= (span.end_time or 0) <= (request.end_time or 0)
    said = dict(request.attributes or {})
    assert said["http.route"] == "/v1/recommend/{user}"
    assert said["http.response.status_code"] == 200
    assert said["rayrec.release"] == engine.release.digest
    assert not [value for value in said.values() if "u8" in str(value)]
    assert vars(access_log.records[-1])["trace_id"] == TRACE


def test_each_request_of_a_batch_has_the_spans_of_its_passes(spans: InMemorySpanExporter) -> None:
    async def ask(batcher: Batcher[int, int], number: int) -> None:
        with tracing.request_span({}) as span:
            await batcher.submit(number)
            tracing.describe(span, f"request {number}", {}, failed=False)

    def compute(requests: Sequence[int]) -> Sequence[int]:
        tracing.note(tracing.Lap("score", 1.0, 2.0))
        return requests

    async def together() -> None:
        batcher = Batcher(compute, max_batch_size=4, max_queued=100, deadline=60)
        await asyncio.gather(*(ask(batcher, number) for number in range(3)))

    asyncio.run(together())

    kept = spans.get_finished_spans()
    requests = {span.context.span_id for span in kept if span.name.startswith("request") and span.context}
    scores = [span.parent.span_id for span in kept if span.name == "score" and span.parent]
    assert len(requests) == 3
    assert sorted(scores) == sorted(requests)


def test_a_trace_that_the_client_does_not_keep_is_not_kept_here(
    client: TestClient, spans: InMemorySpanExporter
) -> None:
    client.get("/v1/recommend/u8", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})

    assert not spans.get_finished_spans()


def test_a_fault_marks_its_span_without_what_it_says(
    client: TestClient, engine: Engine, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("u1 of all users")

    monkeypatch.setattr(engine, "user_query", broken)
    client.get("/v1/recommend/u1")

    request = by_name(spans)["GET /v1/recommend/{user}"]
    assert request.status.status_code.name == "ERROR"
    assert "u1" not in request.to_json()


def test_without_the_exporter_tracing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(RecipeError, match=r"rayrec\[tracing\]"):
        tracing.switch(True, "replica")
    assert not tracing.is_on()
