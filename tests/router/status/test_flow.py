"""The last hour's requests by minute."""

import pytest

from cortex.router.metrics import latency
from cortex.router.metrics.traffic import Bucket
from cortex.router.status.flow import flow
from cortex.router.status.model import Flow

NOW = 36_003.0  # buckets end at 36000


def counted(*seconds: float) -> latency.Histogram:
    histogram: latency.Histogram = {}
    for one in seconds:
        latency.add(histogram, one)
    return histogram


def test_without_requests_the_flow_is_empty() -> None:
    assert flow([], NOW) == Flow()


def test_requests_are_counted_by_minute_from_the_first_one() -> None:
    hour = [Bucket(at=35_700, requests=3), Bucket(at=35_710, requests=1), Bucket(at=35_990, requests=6, errors=2)]

    shown = flow(hour, NOW)

    assert shown.requests is not None
    assert shown.requests.values[-6:] == (None, 4.0, 0.0, 0.0, 0.0, 6.0)
    assert len(shown.requests.values) == 60
    assert shown.errors is not None
    assert shown.errors.values[-1] == 2.0


def test_an_incomplete_bucket_is_omitted() -> None:
    shown = flow([Bucket(at=35_990, requests=1), Bucket(at=36_000, requests=9)], NOW)

    assert shown.requests is not None
    assert shown.requests.values[-1] == 1.0
    assert shown.rate_per_min == 0.2


def test_the_figures_cover_the_last_five_minutes() -> None:
    hour = [
        Bucket(at=34_000, requests=100, errors=100),
        Bucket(at=35_800, requests=10, errors=5, first_tokens=counted(0.5), tokens_out=600),
    ]

    shown = flow(hour, NOW)

    assert (shown.rate_per_min, shown.errors_per_min) == (2.0, 1.0)
    assert shown.first_token_ms == pytest.approx(500, rel=0.1)
    assert shown.tokens_per_s == 2.0


def test_percentiles_cover_the_hour_and_the_series_each_minute() -> None:
    hour = [Bucket(at=33_000, durations=counted(*[1.0] * 98)), Bucket(at=35_990, durations=counted(8.0, 8.0))]

    shown = flow(hour, NOW)

    assert shown.duration_hour is not None
    assert shown.duration_hour.p50_ms == pytest.approx(1000, rel=0.1)
    assert shown.duration_hour.p99_ms == pytest.approx(8000, rel=0.1)
    median, high = shown.duration
    assert median.values[-1] == pytest.approx(8000, rel=0.1)
    assert median.values[10] == pytest.approx(1000, rel=0.1)
    assert (shown.first_token, shown.first_token_hour) == ((), None)
    assert high.values[30] is None


def test_the_flow_is_constant_within_a_bucket() -> None:
    hour = [Bucket(at=35_800, requests=10)]

    assert flow(hour, NOW) == flow(hour, NOW + 6)
