"""Distributed tracing: forwarded headers, and spans exported to a real receiver."""

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from cortex.platform.settings import Settings
from cortex.platform.settings import Tracing as TracingSettings
from cortex.router.request_record import Finished
from cortex.router.tracing import OtlpTracing, PassThroughTracing, trace_headers, tracing
from tests.router.test_request_record import a_finished, a_request_record

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{PARENT}-01".encode()


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (HEADER, True),
        (HEADER + b"-more", True),  # later versions may append fields
        (b"", False),
        (b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01", False),
        (HEADER.upper(), False),
        (b"ff" + HEADER[2:], False),
        (HEADER + b"\r\nx: y", False),
        (HEADER + b"-\xff", False),
        (HEADER + b"-" + "é".encode(), False),
        (HEADER + b"-\x1b", False),
        (HEADER + b"-" + b"x" * 300, False),
        (b"\xff" * 55, False),
    ],
)
def test_only_a_valid_traceparent_is_forwarded(value: bytes, valid: bool) -> None:
    assert trace_headers({b"traceparent": value}) == ({"traceparent": value.decode()} if valid else {})


def test_tracestate_is_forwarded_only_with_traceparent() -> None:
    state = {b"tracestate": b"vendor=1"}

    assert trace_headers({b"traceparent": HEADER, **state}) == {
        "traceparent": HEADER.decode(),
        "tracestate": "vendor=1",
    }
    assert trace_headers(state) == {}
    assert "tracestate" not in trace_headers({b"traceparent": HEADER, b"tracestate": b"a=" + b"x" * 600})


def test_without_an_endpoint_headers_are_forwarded_without_the_sdk() -> None:
    request_record = a_request_record()
    blocked = "import sys; sys.modules['opentelemetry'] = None; import cortex.router.app"

    pass_through = tracing(Settings())
    headers = pass_through.start(request_record, {b"traceparent": HEADER})

    assert isinstance(pass_through, PassThroughTracing)
    assert headers == {"traceparent": HEADER.decode()}
    assert (request_record.trace, request_record.span) == (TRACE, None)
    subprocess.run([sys.executable, "-c", blocked], check=True, timeout=60)


class Collector(http.server.BaseHTTPRequestHandler):
    received: list[ExportTraceServiceRequest]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    received: list[ExportTraceServiceRequest] = []
    handler = type("OneCollector", (Collector,), {"received": received})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


def test_a_request_is_exported_as_a_span_below_the_callers(
    collector: tuple[str, list[ExportTraceServiceRequest]],
) -> None:
    url, received = collector
    exporter = OtlpTracing(Settings(tracing=TracingSettings(endpoint=url, service="router")))
    request_record = a_finished(status=502, fault="worker_error", host="here", cold=True)

    headers = exporter.start(request_record, {b"traceparent": HEADER})
    exporter.finish(Finished([request_record]))
    exporter.close()

    (resource,) = received[0].resource_spans
    (span,) = resource.scope_spans[0].spans
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert headers["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01"
    attributes = {a.key: a.value for a in span.attributes}
    assert attributes["gen_ai.request.model"].string_value == "org/model"
    assert attributes["gen_ai.usage.output_tokens"].int_value == 11
    assert attributes["cortex.start"].string_value == "cold"
    assert span.status.code == 2  # an error
    assert [e.name for e in span.events] == ["first token"]
    assert any(a.value.string_value == "router" for a in resource.resource.attributes)
