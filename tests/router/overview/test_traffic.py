"""Traffic as the API and the page have it."""

import pytest

from cortex.router.metrics import latency
from cortex.router.metrics.traffic import Bucket
from cortex.router.overview.traffic import traffic_answer, traffic_total


def counted(*seconds: float) -> latency.Histogram:
    histogram: latency.Histogram = {}
    for one in seconds:
        latency.add(histogram, one)
    return histogram


def test_a_function_without_streams_has_no_first_token_time() -> None:
    plain = traffic_total(Bucket(requests=2))

    assert (plain.first_s, plain.percentiles.first, plain.tokens_per_s) == (None, None, None)


def test_a_function_with_streams_has_its_median_and_its_rate() -> None:
    streams = traffic_total(Bucket(first_tokens=counted(0.25), timed_tokens=80, timed_s=2.0))

    assert streams.percentiles.first is not None
    assert streams.percentiles.first.p50_s == pytest.approx(0.25, rel=0.1)
    assert streams.tokens_per_s == 40.0


def test_the_hour_is_summed_over_its_buckets() -> None:
    hour = [Bucket(at=100, requests=3, duration_s=6.0), Bucket(at=110, requests=1, errors=1, duration_s=2.0)]

    answer = traffic_answer(hour, {"f": hour[1]}, 120.0)

    assert (answer.last_hour.requests, answer.last_hour.errors, answer.last_hour.mean_s) == (4, 1, 2.0)
    assert [b.at for b in answer.hour] == [100, 110]
    assert answer.functions["f"].requests == 1
