"""OpenTelemetry spans of requests and of their stages, if that is asked for (`serving.tracing`).

OpenTelemetry's own variables say where they go and which are kept: ``OTEL_EXPORTER_OTLP_ENDPOINT``,
``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME`` and so on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayrec.errors import RecipeError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

NAME = "rayrec"


@dataclass(frozen=True)
class Lap:
    """A stage of an answer.

    Attributes:
        name: Of the stage.
        began: When it began, by `time.perf_counter`.
        ended: When it ended, likewise.
    """

    name: str
    began: float
    ended: float


@dataclass(frozen=True)
class _Tracing:
    """What spans are made by, and where they go."""

    provider: TracerProvider
    tracer: Tracer


_now: _Tracing | None = None
_LAPS: ContextVar[list[Lap] | None] = ContextVar("laps", default=None)


def exporter() -> SpanExporter:
    """Sends spans by OTLP over HTTP to where the environment says.

    Raises:
        RecipeError: It is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise RecipeError(
            "serving.tracing: OpenTelemetry's exporter is not installed. pip install 'rayrec[tracing]' on every node, "
            "or turn tracing off."
        ) from error
    return OTLPSpanExporter()


def switch(wanted: bool, replica: str) -> None:
    """Begin or end to make spans, unless that is so already.

    Args:
        wanted: Whether spans are to be made.
        replica: Which one they are of.

    Raises:
        RecipeError: What sends them is not installed.
    """
    if not wanted:
        end()
    elif not is_on():
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        ours = Resource.create().merge(Resource({"service.name": NAME, "service.instance.id": replica}))
        processor = BatchSpanProcessor(exporter())
        provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
        provider.add_span_processor(processor)
        begin(provider)


def begin(provider: TracerProvider) -> None:
    """Make spans in this process from now on."""
    global _now  # noqa: PLW0603 - as OpenTelemetry's own provider, which Ray may have taken
    _now = _Tracing(provider, provider.get_tracer(NAME))


def end() -> None:
    """Make no more, and send those that wait."""
    global _now
    if _now is not None:
        before, _now = _now, None
        before.provider.shutdown()


def is_on() -> bool:
    """Whether spans are made."""
    return _now is not None


@contextmanager
def request_span(headers: Mapping[str, str]) -> Iterator[Span]:
    """The span of a request while the block lasts, in the trace that the client names (W3C ``traceparent``), if any."""
    from opentelemetry.trace import INVALID_SPAN, SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if _now is None:
        yield INVALID_SPAN
        return
    context = TraceContextTextMapPropagator().extract(headers)
    # What an exception says may name users.
    with _now.tracer.start_as_current_span(
        "request", context, SpanKind.SERVER, record_exception=False, set_status_on_exception=False
    ) as span:
        yield span


def describe(span: Span, name: str, attributes: Mapping[str, str | int], failed: bool) -> None:
    """Say of a span what it was of, once that is known."""
    from opentelemetry.trace import StatusCode

    span.update_name(name)
    span.set_attributes(attributes)
    if failed:
        span.set_status(StatusCode.ERROR)


def note(lap: Lap) -> None:
    """Make a span of a stage, or keep it for `gathered`."""
    if _now is None:
        return
    gathering = _LAPS.get()
    if gathering is None:
        show([lap])
    else:
        gathering.append(lap)


@contextmanager
def gathered() -> Iterator[list[Lap]]:
    """Stages that end in the block, of a batch: spans are made of them for each of its requests."""
    laps: list[Lap] = []
    if _now is None:
        yield laps
        return
    token = _LAPS.set(laps)
    try:
        yield laps
    finally:
        _LAPS.reset(token)


def show(laps: Sequence[Lap]) -> None:
    """Make spans, below that of the request that is answered here."""
    if _now is None:
        return
    from opentelemetry.trace import get_current_span

    if get_current_span().is_recording():
        # Spans have the time of day.
        epoch = time.time_ns() - time.perf_counter_ns()
        for lap in laps:
            span = _now.tracer.start_span(lap.name, start_time=epoch + int(lap.began * 1e9))
            span.end(epoch + int(lap.ended * 1e9))
