"""Distributed tracing: forwards `traceparent`, and exports spans if configured.

Without an endpoint nothing is imported or measured, and a caller's header goes to the worker unchanged. With
`[tracing] endpoint` (and the extra `cortex[tracing]`) each request is a span between the caller's and the worker's. Its
attributes describe how the request was served, never its content.
"""

import re
import time
from collections.abc import Mapping
from typing import Protocol

import structlog

from cortex.platform.settings import Settings
from cortex.router.request_record import Finished, RequestRecord

log = structlog.get_logger()

_PARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?")
PARENT_MOST = 256
"""Maximum bytes of `traceparent`: version 00 has 55, later versions may have more."""
STATE_MOST = 512
"""Maximum bytes of `tracestate`: the minimum that the standard requires to forward."""

Headers = Mapping[bytes, bytes]
"""By name in lower case."""


class Tracing(Protocol):
    """What an exchange needs of tracing."""

    def start(self, request_record: RequestRecord, headers: Headers) -> Mapping[str, str]:
        """Begin a request's trace; return the trace headers for the worker."""
        ...

    def finish(self, finished: Finished) -> None:
        """End the traces of requests."""
        ...

    def close(self) -> None:
        """Send the remaining spans."""
        ...


def trace_headers(headers: Headers) -> dict[str, str]:
    """Return the caller's valid trace headers; empty if there are none."""
    parent = headers.get(b"traceparent")
    if not parent or len(parent) > PARENT_MOST or not _PARENT.fullmatch(parent) or parent.startswith(b"ff"):
        return {}
    forwarded = {"traceparent": parent.decode("ascii")}
    state = headers.get(b"tracestate", b"")
    if state and len(state) <= STATE_MOST and state.isascii() and state.decode().isprintable():
        forwarded["tracestate"] = state.decode()
    return forwarded


class PassThroughTracing:
    """Forwards the caller's trace to the worker and exports nothing."""

    def start(self, request_record: RequestRecord, headers: Headers) -> Mapping[str, str]:
        """Return the caller's trace headers."""
        forwarded = trace_headers(headers)
        if forwarded:
            request_record.trace = forwarded["traceparent"][3:35]
        return forwarded

    def finish(self, finished: Finished) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class OtlpTracing:
    """Records each request as a span; the SDK's thread sends them to a collector in batches."""

    def __init__(self, settings: Settings) -> None:
        """Raises ImportError without the extra `cortex[tracing]`."""
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

    def start(self, request_record: RequestRecord, headers: Headers) -> Mapping[str, str]:
        """Begin a span below the caller's; return the headers that make the worker's span its child."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        parent = self._propagator.extract(trace_headers(headers))
        span = self._tracer.start_span(request_record.dialect, context=parent, kind=SpanKind.SERVER)
        request_record.span, request_record.trace = span, f"{span.get_span_context().trace_id:032x}"
        injected: dict[str, str] = {}
        self._propagator.inject(injected, context=set_span_in_context(span))
        return injected

    def finish(self, finished: Finished) -> None:
        """End the spans of requests."""
        for request_record in finished:
            self._end_span(request_record)

    def _end_span(self, request_record: RequestRecord) -> None:
        """End a span, with how the request was served as attributes."""
        from opentelemetry.trace import Span, StatusCode

        span = request_record.span
        if not isinstance(span, Span) or not span.is_recording():
            return
        span.set_attributes(
            {
                "gen_ai.request.model": request_record.function,
                "gen_ai.usage.input_tokens": request_record.tokens_in,
                "gen_ai.usage.output_tokens": request_record.tokens_out,
                "http.response.status_code": request_record.status,
                "cortex.request": request_record.id,
                "cortex.instance": request_record.instance,
                "cortex.host": request_record.host,
                "cortex.start": request_record.start,
                "cortex.queued_ms": round(request_record.queued_s * 1000),
                "cortex.replays": len(request_record.tries),
            }
        )
        now, now_ns = time.monotonic(), time.time_ns()
        if request_record.first:
            span.add_event("first token", timestamp=now_ns - round((now - request_record.first) * 1e9))
        if request_record.failed:
            span.set_status(StatusCode.ERROR, request_record.fault)
        span.end(now_ns - round((now - request_record.ended) * 1e9) if request_record.ended else now_ns)

    def close(self) -> None:
        """Send the remaining spans."""
        self._provider.shutdown()


def tracing(settings: Settings) -> Tracing:
    """Return the configured tracing. Without the extra, traces are not exported, and requests are served."""
    if not settings.tracing.endpoint:
        return PassThroughTracing()
    try:
        return OtlpTracing(settings)
    except ImportError as error:
        log.error("traces_not_exported", why=str(error), do="install cortex[tracing]")
        return PassThroughTracing()
