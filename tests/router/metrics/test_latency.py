"""Times as counts in steps: percentiles are nearly exact, add up, and take no more room the more is counted."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.router.metrics.latency import LEAST_S, MOST_S, Spread, note, percentile, percentiles, together


def counted(seconds: list[float]) -> Spread:
    spread: Spread = {}
    for one in seconds:
        note(spread, one)
    return spread


@given(st.lists(st.floats(LEAST_S, MOST_S), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_percentile_is_a_twentieth_off_at_most(seconds: list[float], share: float) -> None:
    nth = max(1, -(-len(seconds) * round(share * 100) // 100))
    exact = sorted(seconds)[nth - 1]

    assert percentile(counted(seconds), share) == pytest.approx(exact, rel=0.0501)


@given(st.lists(st.lists(st.floats(0, 10), max_size=20), max_size=4))
def test_spreads_add_up_to_that_of_all_times_together(parts: list[list[float]]) -> None:
    assert together(counted(p) for p in parts) == counted([s for p in parts for s in p])


def test_no_number_of_times_makes_it_large() -> None:
    source = random.Random(1)

    spread = counted([source.lognormvariate(0, 6) for _ in range(20_000)] + [0.0, -1.0, 1e9])

    assert len(spread) <= 160
    assert sum(spread.values()) == 20_003


def test_of_nothing_there_is_no_percentile() -> None:
    assert percentile({}, 0.5) is None
    assert percentiles({}) is None
