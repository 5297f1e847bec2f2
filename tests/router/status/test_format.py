"""Text for sizes, durations and counts."""

import pytest

from cortex.router.status.format import ago, clock, mib, millis, rate, some, span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (1.74, "1.7 s"),
        (12.4, "12 s"),
        (62, "1 min 2 s"),
        (600, "10 min"),
        (3700, "1 h 1 min"),
        (9e5, "10 d"),
    ],
)
def test_a_duration_has_its_significant_digits(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (5.9, "5 s"), (64, "1 min 04 s"), (660, "11 min"), (7260, "2 h 01 min")]
)
def test_a_running_duration_has_whole_seconds(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "now"), (9, "9 s ago"), (119, "1 min ago"), (700, "11 min ago")])
def test_an_age_is_in_minutes_after_the_first(seconds: float, text: str) -> None:
    assert ago(seconds) == text


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (mib(500), "500 MiB"), (mib(5.72), "5.7 MiB"), (mib(0.57), "584 KiB"), (mib(0), "0 MiB"),
        (mib(24 * 1024), "24.0 GiB"), (mib(400 * 1024), "400 GiB"),
        (millis(None), "–"), (millis(83.4), "83 ms"), (millis(1530), "1.5 s"),
        (rate(None), "–"), (rate(3.26), "3.3"), (rate(41.7), "42"),
        (some(1, "host"), "1 host"), (some(1500, "request"), "1\u202f500 requests"),
    ],
)  # fmt: skip
def test_sizes_rates_and_counts(result: str, text: str) -> None:
    assert result == text
