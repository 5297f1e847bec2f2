"""Metrics: the counters of one process, their sum over processes, and their Prometheus text.

A `Meter` consists of plain dictionaries, and the warm path only adds to them. `snapshot()` returns a value that can be
sent as JSON, `add_up()` sums the snapshots of several processes, and `text()` formats the result. When a process ends,
its gauges disappear and its counts stay.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping

from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from cortex.platform.metrics import TABLE, Metric

MOST_SERIES = 20_000
"""Per process. Labels are bounded, so this is a safeguard: series over it are dropped and counted."""

Labels = tuple[str, ...]


class Count(Struct, frozen=True):
    """The value of one series of a counter or gauge."""

    name: str
    labels: Labels
    value: float


class HistogramSeries(Struct, frozen=True):
    """One series of a histogram: the number in each bucket, the last one for values over all bounds, and the sum."""

    name: str
    labels: Labels
    counts: tuple[int, ...]
    sum: float


class Snapshot(Struct, frozen=True, kw_only=True):
    """All counters and gauges of a process."""

    counts: tuple[Count, ...] = ()
    spreads: tuple[HistogramSeries, ...] = ()
    gauges: tuple[Count, ...] = ()
    dropped: int = 0


class Meter:
    """Counters and histograms of one process."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Labels], float] = {}
        self._spreads: dict[tuple[str, Labels], tuple[list[int], list[float]]] = {}
        self._dropped = 0

    def count(self, metric: Metric, labels: Labels, by: float = 1) -> None:
        """Add to a counter."""
        key = (metric.name, labels)
        value = self._counts.get(key)
        if value is None:
            if self._full():
                return
            value = 0.0
        self._counts[key] = value + by

    def observe(self, metric: Metric, labels: Labels, *values: float) -> None:
        """Add values to their buckets."""
        spread = self._spread(metric, labels) if values else None
        if spread is not None:
            counts, buckets = spread[0], metric.buckets
            for value in values:
                counts[bisect_left(buckets, value)] += 1
            spread[1][0] += sum(values)

    def add_buckets(self, metric: Metric, labels: Labels, counts: Iterable[int], total: float) -> None:
        """Add values that are already in buckets."""
        spread = self._spread(metric, labels)
        if spread is not None:
            for at, number in enumerate(counts):
                spread[0][at] += number
            spread[1][0] += total

    def snapshot(self, gauges: Iterable[Count] = ()) -> Snapshot:
        """Return all counters, and the current gauges."""
        return Snapshot(
            counts=tuple(Count(name, labels, value) for (name, labels), value in self._counts.items()),
            spreads=tuple(
                HistogramSeries(name, labels, tuple(c), s[0]) for (name, labels), (c, s) in self._spreads.items()
            ),
            gauges=tuple(gauges),
            dropped=self._dropped,
        )

    def _spread(self, metric: Metric, labels: Labels) -> tuple[list[int], list[float]] | None:
        key = (metric.name, labels)
        spread = self._spreads.get(key)
        if spread is None:
            if self._full():
                return None
            spread = self._spreads[key] = ([0] * (len(metric.buckets) + 1), [0.0])
        return spread

    def _full(self) -> bool:
        if len(self._counts) + len(self._spreads) < MOST_SERIES:
            return False
        self._dropped += 1
        return True


def add_up(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Return the sum of several processes' counts and gauges."""
    counts: dict[tuple[str, Labels], float] = {}
    gauges: dict[tuple[str, Labels], float] = {}
    spreads: dict[tuple[str, Labels], HistogramSeries] = {}
    dropped = 0
    for snapshot in snapshots:
        dropped += snapshot.dropped
        for totals, series in ((counts, snapshot.counts), (gauges, snapshot.gauges)):
            for item in series:
                key = (item.name, item.labels)
                totals[key] = totals.get(key, 0.0) + item.value
        for spread in snapshot.spreads:
            key = (spread.name, spread.labels)
            total = spreads.get(key)
            if total is not None and len(total.counts) == len(spread.counts):
                both = tuple(a + b for a, b in zip(total.counts, spread.counts, strict=True))
                spread = HistogramSeries(spread.name, spread.labels, both, total.sum + spread.sum)
            spreads[key] = spread
    return Snapshot(
        counts=tuple(Count(n, ls, v) for (n, ls), v in counts.items()),
        gauges=tuple(Count(n, ls, v) for (n, ls), v in gauges.items()),
        spreads=tuple(spreads.values()),
        dropped=dropped,
    )


def text(snapshot: Snapshot) -> bytes:
    """Return a snapshot in Prometheus format, without series that are not in the table or have other labels."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_SnapshotCollector(snapshot))
    return generate_latest(registry)


class _SnapshotCollector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Family]:
        values: dict[str, list[Count]] = {}
        for item in (*self._snapshot.counts, *self._snapshot.gauges):
            values.setdefault(item.name, []).append(item)
        spreads: dict[str, list[HistogramSeries]] = {}
        for spread in self._snapshot.spreads:
            spreads.setdefault(spread.name, []).append(spread)
        for metric in TABLE:
            family = _family(metric, values, spreads)
            if family.samples:
                yield family


def _family(metric: Metric, values: Mapping[str, list[Count]], spreads: Mapping[str, list[HistogramSeries]]) -> Family:
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for spread in spreads.get(metric.name, ()):
            if len(spread.labels) == len(metric.labels) and len(spread.counts) == len(metric.buckets) + 1:
                histogram.add_metric(spread.labels, _cumulative(metric, spread), spread.sum)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for item in values.get(metric.name, ()):
        if len(item.labels) == len(metric.labels):
            family.add_metric(item.labels, item.value)
    return family


def _cumulative(metric: Metric, spread: HistogramSeries) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, number in zip((*(repr(float(b)) for b in metric.buckets), "+Inf"), spread.counts, strict=True):
        total += number
        buckets.append((bound, float(total)))
    return buckets
