"""The last hour's requests by minute. Pure.

Minutes end where buckets end, so that no incomplete bucket is shown.
"""

from collections.abc import Sequence

from cortex.router.metrics.latency import Histogram, merge, percentile
from cortex.router.metrics.traffic import BUCKET_S, LATELY, Bucket
from cortex.router.status.model import Flow, Latency, Series

MINUTES = 60
LATELY_S = LATELY * BUCKET_S


def flow(hour: Sequence[Bucket], now: float) -> Flow:
    """Return the hour as series and the last minutes as figures; empty before the first request."""
    if not hour:
        return Flow()
    ends = int(now) // BUCKET_S * BUCKET_S
    minutes: list[list[Bucket]] = [[] for _ in range(MINUTES)]
    for bucket in hour:
        nth = MINUTES - 1 - (ends - bucket.at - 1) // 60
        if bucket.at < ends and nth >= 0:
            minutes[nth].append(bucket)
    first = next((n for n, buckets in enumerate(minutes) if buckets), MINUTES)
    lately = [b for b in hour if ends - LATELY_S <= b.at < ends]
    requests = sum(b.requests for b in lately)
    return Flow(
        minutes=LATELY_S // 60,
        rate_per_min=requests * 60 / LATELY_S,
        errors_per_min=sum(b.errors for b in lately) * 60 / LATELY_S,
        first_token_ms=_ms(merge(b.first_tokens for b in lately), 0.5),
        tokens_per_s=sum(b.tokens_out for b in lately) / LATELY_S,
        first_token_hour=_latency(merge(b.first_tokens for b in hour if b.at < ends)),
        duration_hour=_latency(merge(b.durations for b in hour if b.at < ends)),
        requests=_series([float(sum(b.requests for b in m)) for m in minutes], first, ends),
        errors=_series([float(sum(b.errors for b in m)) for m in minutes], first, ends),
        first_token=_percentiles([merge(b.first_tokens for b in m) for m in minutes], first, ends),
        duration=_percentiles([merge(b.durations for b in m) for m in minutes], first, ends),
    )


def _series(values: Sequence[float | None], first: int, ends: float) -> Series:
    measured = [None if n < first else v for n, v in enumerate(values)]
    return Series(values=tuple(measured), step_s=60.0, ends=ends)


def _percentiles(histograms: Sequence[Histogram], first: int, ends: float) -> tuple[Series, ...]:
    """Return p50 and p95 by minute; empty without data."""
    if not any(histograms):
        return ()
    return tuple(_series([_ms(s, quantile) for s in histograms], first, ends) for quantile in (0.5, 0.95))


def _latency(histogram: Histogram) -> Latency | None:
    p50, p95, p99 = (_ms(histogram, quantile) for quantile in (0.5, 0.95, 0.99))
    if p50 is None or p95 is None or p99 is None:
        return None
    return Latency(p50_ms=p50, p95_ms=p95, p99_ms=p99)


def _ms(histogram: Histogram, quantile: float) -> float | None:
    seconds = percentile(histogram, quantile)
    return None if seconds is None else round(1000 * seconds, 1)
