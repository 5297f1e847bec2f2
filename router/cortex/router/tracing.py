"""Traces across machines: `traceparent` is honoured and passed on, and spans are exported when that is asked for.

Without an endpoint nothing is imported and nothing measured: a caller's header goes to the worker as it came. With
`[tracing] endpoint` (and the extra `cortex[tracing]`) each request is a span of its own between the caller's and the
worker's, with how it was served as attributes. Never what it says.
"""

import re
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

import structlog

from cortex.platform.settings import Settings
from cortex.router.request.request_record import RequestRecord

if TYPE_CHECKING:
    pass

log = structlog.get_logger()

_PARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?")
PARENT_MOST = 256
"""Bytes of a `traceparent`; that of the standard's first version has 55, later ones may add to it."""
STATE_MOST = 512
"""Bytes of `tracestate` that are passed on; the standard asks for as many."""

Headers = Iterable[tuple[bytes, bytes]]


class Tracing(Protocol):
    """What an exchange asks of tracing."""

    def begun(self, journey: RequestRecord, headers: Headers) -> Mapping[str, str]:
        """Return the headers that tell the worker which trace its work belongs to."""
        ...

    def over(self, journey: RequestRecord) -> None:
        """The request has come to its end."""
        ...

    def close(self) -> None:
        """Send what has not been sent."""
        ...


def carried(headers: Headers) -> dict[str, str]:
    """Return the caller's trace, to be passed on; nothing when it sent none, or none that means anything."""
    parent = state = b""
    for name, value in headers:
        if name == b"traceparent" and len(value) <= PARENT_MOST:
            parent = value
        elif name == b"tracestate" and len(value) <= STATE_MOST:
            state = value
    if not parent or not _PARENT.fullmatch(parent) or parent.startswith(b"ff"):
        return {}
    found = {"traceparent": parent.decode("ascii")}
    if state and state.isascii() and state.decode().isprintable():
        found["tracestate"] = state.decode()
    return found


class PassedOn:
    """No export: the caller's trace goes on to the worker, and that is all."""

    def begun(self, journey: RequestRecord, headers: Headers) -> Mapping[str, str]:
        """Return what the caller sent."""
        found = carried(headers)
        if found:
            journey.trace = found["traceparent"][3:35]
        return found

    def over(self, journey: RequestRecord) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is kept."""


class Exported:
    """Each request is a span, sent to a collector in batches by a thread of the SDK's."""

    def __init__(self, settings: Settings) -> None:
        """Raises ImportError when the extra is not installed."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        sampler = ParentBased(TraceIdRatioBased(settings.tracing.sample))
        resource = Resource.create({"service.name": settings.tracing.service})
        self._provider: TracerProvider = TracerProvider(resource=resource, sampler=sampler)
        endpoint = settings.tracing.endpoint.rstrip("/") + "/v1/traces"
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("cortex")
        self._propagator = TraceContextTextMapPropagator()

    def begun(self, journey: RequestRecord, headers: Headers) -> Mapping[str, str]:
        """Begin a span under the caller's, and return what makes the worker's a child of it."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        above = self._propagator.extract(carried(headers))
        span = self._tracer.start_span(journey.dialect, context=above, kind=SpanKind.SERVER)
        journey.span, journey.trace = span, f"{span.get_span_context().trace_id:032x}"
        told: dict[str, str] = {}
        self._propagator.inject(told, context=set_span_in_context(span))
        return told

    def over(self, journey: RequestRecord) -> None:
        """End the span, saying how the request was served."""
        from opentelemetry.trace import Span, StatusCode

        span = journey.span
        if not isinstance(span, Span) or not span.is_recording():
            return
        span.set_attributes(
            {
                "gen_ai.request.model": journey.function,
                "gen_ai.usage.input_tokens": journey.tokens_in,
                "gen_ai.usage.output_tokens": journey.tokens_out,
                "http.response.status_code": journey.status,
                "cortex.request": journey.id,
                "cortex.instance": journey.instance,
                "cortex.host": journey.host,
                "cortex.start": "cold" if journey.cold else "hot",
                "cortex.queued_ms": round(journey.queued_s * 1000),
                "cortex.replays": len(journey.tries),
            }
        )
        if journey.first:
            ago_ns = round((time.monotonic() - journey.first) * 1e9)
            span.add_event("first token", timestamp=time.time_ns() - ago_ns)
        if journey.failed:
            span.set_status(StatusCode.ERROR, journey.fault)
        span.end()

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()


def tracing(settings: Settings) -> Tracing:
    """Return what the settings ask for; a missing extra costs the traces, not the requests."""
    if not settings.tracing.endpoint:
        return PassedOn()
    try:
        return Exported(settings)
    except ImportError as error:
        log.error("traces_not_exported", why=str(error), do="install cortex[tracing]")
        return PassedOn()
