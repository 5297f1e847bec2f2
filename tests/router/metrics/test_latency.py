"""Latency histograms: percentiles are accurate, merging is exact, and size is bounded."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.router.metrics.latency import LEAST_S, MOST_S, Histogram, add, merge, percentile, percentiles


def counted(seconds: list[float]) -> Histogram:
    histogram: Histogram = {}
    for one in seconds:
        add(histogram, one)
    return histogram


@given(st.lists(st.floats(LEAST_S, MOST_S), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_percentile_is_within_five_percent(seconds: list[float], quantile: float) -> None:
    nth = max(1, -(-len(seconds) * round(quantile * 100) // 100))
    exact = sorted(seconds)[nth - 1]

    assert percentile(counted(seconds), quantile) == pytest.approx(exact, rel=0.0501)


@given(st.lists(st.lists(st.floats(0, 10), max_size=20), max_size=4))
def test_merged_histograms_equal_one_histogram_of_all_times(parts: list[list[float]]) -> None:
    assert merge(counted(p) for p in parts) == counted([s for p in parts for s in p])


def test_a_histogram_of_many_times_stays_small() -> None:
    source = random.Random(1)

    histogram = counted([source.lognormvariate(0, 6) for _ in range(20_000)] + [0.0, -1.0, 1e9])

    assert len(histogram) <= 160
    assert sum(histogram.values()) == 20_003


def test_an_empty_histogram_has_no_percentile() -> None:
    assert percentile({}, 0.5) is None
    assert percentiles({}) is None
