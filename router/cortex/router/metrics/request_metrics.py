"""What a journey that is over adds to the metrics, and how a router worker stands at this moment."""

import time
from collections.abc import Callable, Iterable

from cortex.platform import metrics
from cortex.platform.in_flight import InFlight
from cortex.platform.meter import Count, Meter, Snapshot
from cortex.router.fleet_view import FleetView
from cortex.router.request.request_record import COUNT_TOKENS, RequestRecord

NOWHERE = "none"


class RequestMetrics:
    """Counts journeys; `snapshot()` adds how things stand."""

    def __init__(self, view: FleetView, flights: InFlight) -> None:
        self._view, self._flights = view, flights
        self._meter = Meter()

    def note(self, journey: RequestRecord) -> None:
        """Count a journey that is over.

        (1) One that was over its key's limits had no function yet: the refusal is counted.
        (2) Of one that only counted tokens, the response is counted; its times are no answer's.
        """
        meter, model = self._meter, journey.function
        if not model:  # (1)
            self.refused(journey.fault)
            return
        if journey.dialect == COUNT_TOKENS:  # (2)
            meter.count(metrics.RESPONSES, (model, journey.dialect, str(journey.status)))
            return
        both = (model, journey.host or NOWHERE)
        meter.count(metrics.REQUESTS, both)
        meter.count(metrics.RESPONSES, (model, journey.dialect, str(journey.status)))
        meter.observe(metrics.DURATION, both, journey.ended - journey.began)
        meter.observe(metrics.OVERHEAD, ("read",), journey.read_s)
        if journey.choose_s:
            meter.observe(metrics.OVERHEAD, ("choose",), journey.choose_s)
        if journey.pieces:
            meter.observe(metrics.OVERHEAD, ("translate",), journey.translate_s)
        if journey.first and journey.streams:
            meter.observe(metrics.FIRST_TOKEN, both, journey.first - journey.began)
        if journey.gaps is not None:
            meter.observed(metrics.INTER_TOKEN, both, journey.gaps, journey.gaps_s)
        if journey.streams and (rate := journey.tokens_per_s):
            meter.observe(metrics.TOKENS_PER_SECOND, both, rate)
        if journey.tokens_in or journey.tokens_out:
            meter.count(metrics.TOKENS_IN, both, journey.tokens_in)
            meter.count(metrics.TOKENS_OUT, both, journey.tokens_out)
            meter.count(metrics.TOKENS_CACHED, both, journey.cached)
        if journey.cold:
            meter.observe(metrics.QUEUE_WAIT, (model,), journey.queued_s)
        if journey.failed:
            meter.count(metrics.ERRORS, both)
        for broke in (t for t in journey.tries if t.replayed):
            meter.count(metrics.REPLAYS, (model, broke.host or NOWHERE))
        if journey.fault and not journey.pieces and not journey.left:
            meter.count(metrics.REJECTIONS, (model, journey.fault))
        if journey.left:
            meter.count(metrics.DISCONNECTS, (model,))

    def refused(self, reason: str) -> None:
        """Count a request that never got as far as a function."""
        self._meter.count(metrics.REFUSED, (reason,))

    def fault(self, work: str) -> None:
        """Count an exception that background work survived."""
        self._meter.count(metrics.ROUTER_FAULTS, (work,))

    def snapshot(self) -> Snapshot:
        """Return what was counted so far, and how things stand."""
        found = self._meter.snapshot(self._standing())
        # Coarse, so that a process with nothing to do says nothing new every second.
        cpu = Count(metrics.CPU.name, (), round(time.process_time(), 1))
        return Snapshot(counts=(*found.counts, cpu), spreads=found.spreads, gauges=found.gauges, dropped=found.dropped)

    def _standing(self) -> Iterable[Count]:
        yield Count(metrics.PROCESSES.name, (), 1)
        yield Count(metrics.AWAY.name, (), float(self._view.away))
        busy, waiting = self._flights.counts()
        yield from _by_function(metrics.IN_FLIGHT.name, busy, self._view.placed)
        for function, number in waiting.items():
            yield Count(metrics.WAITING.name, (function,), number)
        suspects = dict.fromkeys(self._view.suspects(), 1)
        yield from _by_function(metrics.BREAKER.name, suspects, self._view.placed)


def _by_function(
    name: str, by_instance: dict[str, int], placed: Callable[[str], tuple[str, str] | None]
) -> Iterable[Count]:
    """Put numbers per instance together by function and host. An instance the record knows no more is left out."""
    found: dict[tuple[str, str], int] = {}
    for instance, number in by_instance.items():
        if where := placed(instance):
            found[where] = found.get(where, 0) + number
    for labels, number in found.items():
        yield Count(name, labels, number)
