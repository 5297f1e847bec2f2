"""What a router counts of its requests."""

from typing import Any, cast

from cortex.platform import metrics
from cortex.platform.in_flight import InFlight
from cortex.platform.registry import Registry
from cortex.router.fleet_view import FleetView
from cortex.router.metrics.request_metrics import RequestMetrics
from cortex.router.request_record import Finished, RequestRecord


def counts(function: str, fault: str) -> dict[str, float]:
    """Return the counters of requests after one that was rejected."""
    counted = RequestMetrics(FleetView(cast(Registry, None), "router-1"), InFlight("router-1"))
    record = RequestRecord("req_1", function, function, "chat", streams=False, read_s=0.0)
    record.rejected(429, fault, "over its limits")
    record.ended = record.began
    counted.count(Finished([record]))
    names = {m.name for m in (metrics.REQUESTS, metrics.REJECTIONS, metrics.REFUSED, metrics.BATCH_WAITS)}
    values: Any = counted.snapshot().counts
    return {c.name: c.value for c in values if c.name in names}


def test_a_rejected_request_is_counted_with_its_function() -> None:
    assert counts("org/model", "rate_limited") == {metrics.REQUESTS.name: 1, metrics.REJECTIONS.name: 1}


def test_a_line_of_a_batch_that_waits_is_no_request() -> None:
    assert counts("org/model", "batch_waits") == {metrics.BATCH_WAITS.name: 1}


def test_a_request_over_its_keys_limits_is_left_to_the_handler_that_sends_the_error() -> None:
    assert counts("", "rate_limited") == {}
