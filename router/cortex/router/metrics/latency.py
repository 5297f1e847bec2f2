"""Latency histograms with geometric buckets, which can be merged over processes. Pure.

Buckets grow by 10 %. A percentile reports its bucket's midpoint, so the error is at most 5 %. From a millisecond to an
hour there are 159 buckets, and empty ones are not stored, so a histogram is small and bounded.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable

LEAST_S, MOST_S, STEP = 0.001, 3600.0, 1.1
_LOG = math.log(STEP)
_EDGES = [LEAST_S * STEP**n for n in range(math.ceil(math.log(MOST_S / LEAST_S) / _LOG))]
"""The upper edges of all buckets but the last one, which has no end."""
QUANTILES = {"p50_s": 0.5, "p95_s": 0.95, "p99_s": 0.99}

Histogram = dict[int, int]
"""Counts by bucket; the upper edge of bucket n is `LEAST_S * STEP ** n`."""


def add(histogram: Histogram, *durations: float) -> None:
    """Count durations, in seconds."""
    for seconds in durations:
        bucket = bisect_left(_EDGES, seconds)
        histogram[bucket] = histogram.get(bucket, 0) + 1


def merge(histograms: Iterable[Histogram]) -> Histogram:
    """Return the sum of histograms."""
    total: Histogram = {}
    for histogram in histograms:
        for bucket, count in histogram.items():
            total[bucket] = total.get(bucket, 0) + count
    return total


def percentile(histogram: Histogram, quantile: float) -> float | None:
    """Return a quantile in seconds; None for an empty histogram."""
    rank = quantile * sum(histogram.values())
    cumulative = 0
    for bucket, count in sorted(histogram.items()):
        cumulative += count
        if cumulative >= rank:
            return LEAST_S * math.exp(_LOG * (bucket - 0.5))
    return None


def percentiles(histogram: Histogram) -> dict[str, float] | None:
    """Return p50, p95 and p99 in seconds; None for an empty histogram."""
    values = {name: percentile(histogram, quantile) for name, quantile in QUANTILES.items()}
    return {name: round(s, 4) for name, s in values.items() if s is not None} or None
