"""Counters of finished requests, and gauges of this router worker."""

import time
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from cortex.platform import metrics
from cortex.platform.in_flight import InFlight
from cortex.platform.meter import Count, Meter, Snapshot
from cortex.platform.record import DeviceUse
from cortex.platform.usage import Place
from cortex.router.fleet_view import FleetView
from cortex.router.request_record import COUNT_TOKENS, RequestRecord

NOWHERE = "none"


class RequestMetrics:
    """Counts finished requests; `snapshot()` adds the gauges."""

    def __init__(self, view: FleetView, in_flight: InFlight) -> None:
        self._view, self._in_flight = view, in_flight
        self._meter = Meter()

    def count(self, request_record: RequestRecord) -> None:
        """Count a finished request:

        (1) without a function (it exceeded its key's limits): not here, as its error is counted where it is sent;
        (2) for a token count: only the response, because its times are not those of an answer;
        (3) for a line of a batch that will be sent again: only that.
        """
        meter, model = self._meter, request_record.function
        if not model:  # (1)
            return
        if request_record.dialect == COUNT_TOKENS:  # (2)
            meter.count(metrics.RESPONSES, (model, request_record.dialect, str(request_record.status)))
            return
        if request_record.will_return:  # (3)
            meter.count(metrics.BATCH_WAITS, (model,))
            return
        labels = (model, request_record.host or NOWHERE)
        meter.count(metrics.REQUESTS, labels)
        meter.count(metrics.RESPONSES, (model, request_record.dialect, str(request_record.status)))
        meter.observe(metrics.DURATION, labels, request_record.ended - request_record.began)
        meter.observe(metrics.OVERHEAD, ("read",), request_record.read_s)
        if request_record.choose_s:
            meter.observe(metrics.OVERHEAD, ("choose",), request_record.choose_s)
        if request_record.pieces:
            meter.observe(metrics.OVERHEAD, ("translate",), request_record.translate_s)
        if request_record.first and request_record.streams:
            meter.observe(metrics.FIRST_TOKEN, labels, request_record.first - request_record.began)
        if request_record.gaps is not None:
            meter.observed(metrics.INTER_TOKEN, labels, request_record.gaps, request_record.gaps_s)
        if request_record.streams and (rate := request_record.tokens_per_s):
            meter.observe(metrics.TOKENS_PER_SECOND, labels, rate)
        if request_record.tokens_in or request_record.tokens_out:
            meter.count(metrics.TOKENS_IN, labels, request_record.tokens_in)
            meter.count(metrics.TOKENS_OUT, labels, request_record.tokens_out)
            meter.count(metrics.TOKENS_CACHED, labels, request_record.cached)
        if request_record.audio_s:
            meter.count(metrics.AUDIO_S, labels, request_record.audio_s)
        if request_record.characters:
            meter.count(metrics.CHARACTERS, labels, request_record.characters)
        if request_record.images:
            meter.count(metrics.IMAGES, labels, request_record.images)
        if request_record.cold:
            meter.observe(metrics.QUEUE_WAIT, (model,), request_record.queued_s)
        if request_record.failed:
            meter.count(metrics.ERRORS, labels)
        for attempt in request_record.tries:
            if attempt.replayed:
                meter.count(metrics.REPLAYS, (model, attempt.host or NOWHERE))
        if request_record.fault and not request_record.pieces and not request_record.left:
            meter.count(metrics.REJECTIONS, (model, request_record.fault))
        if request_record.left:
            meter.count(metrics.DISCONNECTS, (model,))

    def count_device_use(self, place: Place, use: DeviceUse) -> None:
        """Count what requests used of GPUs."""
        labels = (place.function or NOWHERE, place.host or NOWHERE)
        self._meter.count(metrics.GPU_S, labels, use.gpu_ms / 1000)
        if use.mj:
            self._meter.count(metrics.ENERGY, labels, use.mj / 1000)

    def count_cost(self, place: Place, nano_usd: int) -> None:
        """Count what a request costs."""
        self._meter.count(metrics.COST, (place.function or NOWHERE, place.host or NOWHERE), nano_usd / 1e9)

    def count_rejection(self, reason: str) -> None:
        """Count a request rejected before its function was resolved."""
        self._meter.count(metrics.REFUSED, (reason,))

    def count_fault(self, work: str) -> None:
        """Count an exception that a background task raised and survived."""
        self._meter.count(metrics.ROUTER_FAULTS, (work,))

    def snapshot(self) -> Snapshot:
        """Return the counters and the gauges."""
        snapshot = self._meter.snapshot(self._gauges())
        # Rounded, so that the snapshot of an idle process does not change every second.
        cpu = Count(metrics.CPU.name, (), round(time.process_time(), 1))
        return replace(snapshot, counts=(*snapshot.counts, cpu))

    def _gauges(self) -> Iterable[Count]:
        yield Count(metrics.PROCESSES.name, (), 1)
        yield Count(metrics.AWAY.name, (), float(self._view.away))
        busy, waiting = self._in_flight.counts()
        yield from _by_function(metrics.IN_FLIGHT.name, busy, self._view.placed)
        for function, number in waiting.items():
            yield Count(metrics.WAITING.name, (function,), number)
        suspects = dict.fromkeys(self._view.suspects(), 1)
        yield from _by_function(metrics.BREAKER.name, suspects, self._view.placed)


def _by_function(
    name: str, by_instance: dict[str, int], placed: Callable[[str], tuple[str, str] | None]
) -> Iterable[Count]:
    """Sum counts per instance by function and host. Instances missing from the record are left out."""
    totals: dict[tuple[str, str], int] = {}
    for instance, number in by_instance.items():
        if labels := placed(instance):
            totals[labels] = totals.get(labels, 0) + number
    for labels, number in totals.items():
        yield Count(name, labels, number)
