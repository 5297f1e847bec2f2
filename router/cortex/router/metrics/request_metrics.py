"""Counters of finished requests, and gauges of this router worker."""

import time
from collections.abc import Callable, Iterable, Sequence

from msgspec.structs import replace

from cortex.platform import metrics
from cortex.platform.in_flight import InFlight
from cortex.platform.meter import Count, Labels, Meter, Snapshot
from cortex.platform.record import DeviceUse
from cortex.platform.usage import Place
from cortex.router.fleet_view import FleetView
from cortex.router.request_record import COUNT_TOKENS, Finished, RequestRecord

NOWHERE = "none"


class RequestMetrics:
    """Counts finished requests; `snapshot()` adds the gauges."""

    def __init__(self, view: FleetView, in_flight: InFlight) -> None:
        self._view, self._in_flight = view, in_flight
        self._meter = Meter()

    def count(self, finished: Finished) -> None:
        """Count finished requests."""
        for requests in finished.alike:
            self._count(requests)

    def _count(self, requests: Sequence[RequestRecord]) -> None:
        """Count requests that are alike:

        (1) without a function (they exceeded their key's limits): not here, as the error is counted where it is sent;
        (2) token counts: only the response, because their times are not those of an answer;
        (3) lines of a batch that will be sent again: only that.
        """
        meter, number, one = self._meter, len(requests), requests[0]
        model, response = one.function, (one.function, one.dialect, str(one.status))
        if not model:  # (1)
            return
        if one.dialect == COUNT_TOKENS:  # (2)
            meter.count(metrics.RESPONSES, response, number)
            return
        if one.will_return:  # (3)
            meter.count(metrics.BATCH_WAITS, (model,), number)
            return
        labels = (model, one.host or NOWHERE)
        meter.count(metrics.REQUESTS, labels, number)
        meter.count(metrics.RESPONSES, response, number)
        meter.observe(metrics.DURATION, labels, *[r.ended - r.began for r in requests])
        meter.observe(metrics.OVERHEAD, ("read",), *[r.read_s for r in requests])
        meter.observe(metrics.OVERHEAD, ("choose",), *[r.choose_s for r in requests if r.choose_s])
        meter.observe(metrics.OVERHEAD, ("translate",), *[r.translate_s for r in requests if r.pieces])
        self._count_streams(labels, [r for r in requests if r.streams])
        tokens_in, tokens_out = sum([r.tokens_in for r in requests]), sum([r.tokens_out for r in requests])
        if tokens_in or tokens_out:
            meter.count(metrics.TOKENS_IN, labels, tokens_in)
            meter.count(metrics.TOKENS_OUT, labels, tokens_out)
            meter.count(metrics.TOKENS_CACHED, labels, sum([r.cached for r in requests]))
        for metric, amount in (
            (metrics.AUDIO_S, sum([r.audio_s for r in requests])),
            (metrics.CHARACTERS, sum([r.characters for r in requests])),
            (metrics.IMAGES, sum([r.images for r in requests])),
            (metrics.ERRORS, number if one.failed else 0),
        ):
            if amount:
                meter.count(metric, labels, amount)
        meter.observe(metrics.QUEUE_WAIT, (model,), *[r.queued_s for r in requests if r.cold])
        for attempt in [t for r in requests for t in r.tries if t.replayed]:
            meter.count(metrics.REPLAYS, (model, attempt.host or NOWHERE))
        rejections = [r for r in requests if not r.pieces and not r.left] if one.fault else []
        if rejections:
            meter.count(metrics.REJECTIONS, (model, one.fault), len(rejections))
        if disconnects := sum([r.left for r in requests]):
            meter.count(metrics.DISCONNECTS, (model,), disconnects)

    def _count_streams(self, labels: Labels, streams: Sequence[RequestRecord]) -> None:
        """Count the times of streams that are alike."""
        if not streams:
            return
        meter = self._meter
        meter.observe(metrics.FIRST_TOKEN, labels, *[r.first - r.began for r in streams if r.first])
        meter.observe(metrics.TOKENS_PER_SECOND, labels, *[rate for r in streams if (rate := r.tokens_per_s)])
        for gaps, gaps_s in [(r.gaps, r.gaps_s) for r in streams if r.gaps is not None]:
            meter.add_buckets(metrics.INTER_TOKEN, labels, gaps, gaps_s)

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
        yield from _by_function(metrics.IN_FLIGHT.name, busy, self._view.place_of)
        for function, number in waiting.items():
            yield Count(metrics.WAITING.name, (function,), number)
        suspects = dict.fromkeys(self._view.suspects(), 1)
        yield from _by_function(metrics.BREAKER.name, suspects, self._view.place_of)


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
