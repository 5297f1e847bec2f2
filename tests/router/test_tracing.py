"""Traces across machines: what is passed on, and what is exported, to a real receiver."""

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from cortex.platform.settings import Settings
from cortex.platform.settings import Tracing as TracingSettings
from cortex.router.tracing import Exported, PassedOn, carried, tracing
from tests.router.request.test_request_record import a_finished, a_journey

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{PARENT}-01".encode()


@pytest.mark.parametrize(
    ("value", "passed"),
    [
        (HEADER, True),
        (HEADER + b"-more", True),  # a later version may add to it
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
def test_a_trace_is_passed_on_when_it_means_something(value: bytes, passed: bool) -> None:
    assert carried([(b"traceparent", value)]) == ({"traceparent": value.decode()} if passed else {})


def test_the_callers_state_goes_with_its_trace_and_never_alone() -> None:
    state = (b"tracestate", b"vendor=1")

    assert carried([(b"traceparent", HEADER), state]) == {"traceparent": HEADER.decode(), "tracestate": "vendor=1"}
    assert carried([state]) == {}
    assert "tracestate" not in carried([(b"traceparent", HEADER), (b"tracestate", b"a=" + b"x" * 600)])


def test_without_an_endpoint_nothing_is_exported_and_the_sdk_is_not_needed() -> None:
    journey = a_journey()
    blocked = "import sys; sys.modules['opentelemetry'] = None; import cortex.router.app"

    kept = tracing(Settings())
    told = kept.begun(journey, [(b"traceparent", HEADER)])

    assert isinstance(kept, PassedOn)
    assert told == {"traceparent": HEADER.decode()}
    assert (journey.trace, journey.span) == (TRACE, None)
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


def test_a_request_is_a_span_between_the_callers_and_the_workers(
    collector: tuple[str, list[ExportTraceServiceRequest]],
) -> None:
    url, received = collector
    exported = Exported(Settings(tracing=TracingSettings(endpoint=url, service="router")))
    journey = a_finished(status=502, fault="worker_error", host="here", cold=True)

    told = exported.begun(journey, [(b"traceparent", HEADER)])
    exported.over(journey)
    exported.close()

    (resource,) = received[0].resource_spans
    (span,) = resource.scope_spans[0].spans
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert told["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01"
    said = {a.key: a.value for a in span.attributes}
    assert said["gen_ai.request.model"].string_value == "org/model"
    assert said["gen_ai.usage.output_tokens"].int_value == 11
    assert said["cortex.start"].string_value == "cold"
    assert span.status.code == 2  # an error
    assert [e.name for e in span.events] == ["first token"]
    assert any(a.value.string_value == "router" for a in resource.resource.attributes)
