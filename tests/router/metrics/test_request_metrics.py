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
    record.reject(429, fault, "over its limits")
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


def finished(number: int) -> RequestRecord:
    """Return one of several requests, some of them alike."""
    record = RequestRecord(f"req_{number}", f"f{number % 2}", "m", "chat", streams=number % 3 == 0, read_s=0.25)
    record.host, record.instance, record.status = "here", "i-1", 200 if number % 5 else 502
    record.fault, record.left = "" if number % 5 else "worker_error", number == 7
    record.cold, record.queued_s, record.choose_s = number % 4 == 0, 1.5, 0.5 * (number % 2)
    record.tokens_in, record.tokens_out, record.cached, record.images = number, 2 * number, min(number, 1), number % 2
    for at in range(number % 4):
        record.piece(record.began + 0.25 * at)
    record.ended = record.began + 2.0
    return record


def test_requests_that_finish_together_count_as_much_as_one_by_one() -> None:
    view, in_flight = FleetView(cast(Registry, None), "router-1"), InFlight("router-1")
    together, apart = RequestMetrics(view, in_flight), RequestMetrics(view, in_flight)
    records = [finished(number) for number in range(24)]

    together.count(Finished(records))
    for record in records:
        apart.count(Finished([record]))

    def values(metrics: RequestMetrics) -> tuple[object, object]:
        snapshot = metrics.snapshot()
        counts = {(c.name, c.labels): c.value for c in snapshot.counts if c.labels}
        return counts, {(s.name, s.labels): (s.counts, round(s.sum, 3)) for s in snapshot.spreads}

    assert values(together) == values(apart)
