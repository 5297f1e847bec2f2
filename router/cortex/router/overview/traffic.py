"""Traffic of all router workers: the last hour, and the last minutes by function. Pure."""

from collections.abc import Mapping, Sequence

from msgspec.structs import asdict

from cortex.router.api_types import LatencyPercentiles, Percentiles, TrafficAnswer, TrafficBucket, TrafficTotal
from cortex.router.metrics.latency import Histogram, percentiles
from cortex.router.metrics.traffic import BUCKET_S, Bucket, total


def traffic_answer(hour: Sequence[Bucket], lately: Mapping[str, Bucket], now: float) -> TrafficAnswer:
    """Return the last hour in total and by bucket, and the last minutes by function."""
    return TrafficAnswer(
        now=round(now, 3),
        bucket_s=BUCKET_S,
        last_hour=traffic_total(total(hour)),
        hour=tuple(_bucket(bucket) for bucket in hour),
        functions={f: traffic_total(b) for f, b in lately.items()},
    )


def traffic_total(bucket: Bucket) -> TrafficTotal:
    """Return a sum of buckets with its percentiles."""
    latencies = LatencyPercentiles(duration=_percentiles(bucket.durations), first=_percentiles(bucket.first_tokens))
    return TrafficTotal(**asdict(_bucket(bucket)), percentiles=latencies)


def _bucket(bucket: Bucket) -> TrafficBucket:
    return TrafficBucket(
        at=bucket.at,
        requests=bucket.requests,
        errors=bucket.errors,
        cold=bucket.cold,
        mean_s=_mean(bucket.duration_s, bucket.requests),
        longest_s=round(bucket.longest_s, 3),
        first_s=_mean(bucket.first_s, bucket.firsts),
        tokens_in=bucket.tokens_in,
        tokens_out=bucket.tokens_out,
        tokens_per_s=_mean(bucket.timed_tokens, bucket.timed_s),
    )


def _percentiles(histogram: Histogram) -> Percentiles | None:
    values = percentiles(histogram)
    return Percentiles(**values) if values else None


def _mean(total: float, number: float) -> float | None:
    return round(total / number, 4) if number else None
