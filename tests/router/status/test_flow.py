"""The last hour by minute."""

from cortex.router.status.flow import flow, rates
from cortex.router.status.model import Flow
from cortex.router.traffic import Bucket

NOW = 36_003.0  # buckets end at 36000


def test_without_a_request_nothing_is_known() -> None:
    assert flow([], NOW) == Flow()


def test_requests_are_counted_by_minute_and_before_the_first_nothing_is_known() -> None:
    hour = [Bucket(at=35_700, requests=3), Bucket(at=35_710, requests=1), Bucket(at=35_990, requests=6, errors=2)]

    shown = flow(hour, NOW)

    assert shown.requests is not None
    assert shown.requests.values[-6:] == (None, 4.0, 0.0, 0.0, 0.0, 6.0)
    assert len(shown.requests.values) == 60
    assert shown.errors is not None
    assert shown.errors.values[-1] == 2.0


def test_a_bucket_that_is_still_filling_is_left_out() -> None:
    shown = flow([Bucket(at=35_990, requests=1), Bucket(at=36_000, requests=9)], NOW)

    assert shown.requests is not None
    assert shown.requests.values[-1] == 1.0
    assert shown.rate_per_min == 0.2


def test_the_figures_are_those_of_the_last_five_minutes() -> None:
    hour = [
        Bucket(at=34_000, requests=100, errors=100),
        Bucket(at=35_800, requests=10, errors=5, firsts=4, first_s=2.0, duration_s=30.0, tokens_out=600),
    ]

    shown = flow(hour, NOW)

    assert (shown.rate_per_min, shown.errors_per_min) == (2.0, 1.0)
    assert (shown.first_token_ms, shown.duration_ms, shown.tokens_per_s) == (500.0, 3000.0, 2.0)


def test_nothing_changes_within_a_bucket() -> None:
    hour = [Bucket(at=35_800, requests=10)]

    assert flow(hour, NOW) == flow(hour, NOW + 6)


def test_a_function_that_only_answered_plainly_has_no_first_token() -> None:
    told = rates({"a": Bucket(requests=2), "b": Bucket(firsts=2, first_s=0.5, timed_tokens=80, timed_s=2.0)})

    assert (told["a"].first_token_ms, told["a"].tokens_per_s) == (None, None)
    assert (told["b"].first_token_ms, told["b"].tokens_per_s) == (250.0, 40.0)
