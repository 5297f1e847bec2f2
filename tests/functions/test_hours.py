"""Windows in which a function has a minimum: days, midnight, and nights in which the clocks change."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.functions.hours import DAYS, at_hours, fault_in, is_open, next_change
from cortex.functions.spec import Function
from tests.support.factories import a_function

OFFICE = a_function(warm="Mon-Fri 07:50-18:00 Europe/Sofia")
NIGHT = a_function(warm="Fri 22:00-02:00 Europe/Sofia")


def at(text: str, *, zone: str = "Europe/Sofia", fold: int = 0) -> float:
    """Return the Unix time of a clock's reading."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def changes(function: Function, begin: float, end: float) -> list[tuple[str, str]]:
    """Return when a function's hours change between two times, by the clock of Sofia, with the distance from UTC."""
    matches, now = [], begin
    while (change := next_change(function, now)) is not None and change < end:
        local = datetime.fromtimestamp(change, ZoneInfo("Europe/Sofia"))
        matches.append((f"{local:%a %H:%M:%S}", f"{local:%z}"))
        now = change
    return matches


@pytest.mark.parametrize(
    ("function", "time", "opens"),
    [
        (OFFICE, "2026-11-27 07:49:59", False),
        (OFFICE, "2026-11-27 07:50:00", True),
        (OFFICE, "2026-11-27 17:59:59", True),
        (OFFICE, "2026-11-27 18:00:00", False),
        (OFFICE, "2026-11-28 12:00:00", False),
        (NIGHT, "2026-11-27 21:59:59", False),
        (NIGHT, "2026-11-27 22:00:00", True),
        (NIGHT, "2026-11-28 01:59:59", True),
        (NIGHT, "2026-11-28 02:00:00", False),
        (NIGHT, "2026-11-27 01:00:00", False),
        (a_function(warm="00:00-24:00 Europe/Sofia"), "2026-11-28 23:59:59", True),
        (a_function(warm="Sat-Mon 10:00-11:00 Europe/Sofia"), "2026-11-29 10:30:00", True),
        (a_function(warm="Sat-Mon 10:00-11:00 Europe/Sofia"), "2026-12-01 10:30:00", False),
        (a_function(warm="Mon,Fri 10:00-11:00 Europe/Sofia"), "2026-11-27 10:30:00", True),
        (a_function(warm=("Mon 10:00-11:00 UTC", "Fri 10:00-11:00 Europe/Sofia")), "2026-11-27 10:30:00", True),
    ],
)
def test_a_window_is_open_on_its_days_from_its_begin_to_its_end(function: Function, time: str, opens: bool) -> None:
    assert is_open(function, at(time)) is opens


def test_hours_follow_the_clock_on_the_wall_over_both_changes_of_daylight_saving_time() -> None:
    spring, autumn = at("2026-03-27 12:00"), at("2026-10-23 12:00")

    assert changes(OFFICE, spring, spring + 3.5 * 86_400) == [
        ("Fri 18:00:00", "+0200"),
        ("Mon 07:50:00", "+0300"),
        ("Mon 18:00:00", "+0300"),
    ]
    assert changes(OFFICE, autumn, autumn + 3.5 * 86_400) == [
        ("Fri 18:00:00", "+0300"),
        ("Mon 07:50:00", "+0200"),
        ("Mon 18:00:00", "+0200"),
    ]


def test_an_hour_that_is_skipped_is_not_there_and_one_that_comes_twice_counts_twice() -> None:
    function = a_function(warm="Sun 02:30-03:30 Europe/Sofia")
    spring, autumn = at("2026-03-28 12:00"), at("2026-10-24 12:00")

    assert changes(function, spring, spring + 86_400) == [("Sun 02:30:00", "+0200"), ("Sun 04:00:00", "+0300")]
    assert changes(function, autumn, autumn + 86_400) == [
        ("Sun 02:30:00", "+0300"),
        ("Sun 03:30:00", "+0300"),
        ("Sun 03:00:00", "+0200"),
        ("Sun 03:30:00", "+0200"),
    ]


@given(
    days=st.lists(st.sampled_from(DAYS), max_size=3, unique=True),
    begin=st.integers(0, 1439),
    length=st.integers(1, 1439),
    zone=st.sampled_from(["UTC", "Europe/Sofia", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    hours=st.integers(0, 24 * 366),
)
def test_between_now_and_the_next_change_nothing_changes(
    days: list[str], begin: int, length: int, zone: str, hours: int
) -> None:
    end = (begin + length) % 1440
    text = f"{','.join(days)} {begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02} {zone}"
    function, now = a_function(warm=text), at("2026-01-01 00:00", zone="UTC") + hours * 3600

    change = next_change(function, now)

    assert change is not None
    assert now < change <= now + timedelta(days=8).total_seconds()
    assert is_open(function, change) is not is_open(function, now)
    assert {is_open(function, now + (change - 1 - now) * part / 50) for part in range(51)} == {is_open(function, now)}


def test_a_window_that_is_open_all_week_never_changes() -> None:
    assert next_change(a_function(warm="00:00-24:00 UTC"), 0.0) is None


@pytest.mark.parametrize(
    ("least", "time", "effective"),
    [(0, "2026-11-27 12:00", 1), (2, "2026-11-27 12:00", 2), (2, "2026-11-27 19:00", 0)],
)
def test_the_minimum_counts_in_its_hours_only(least: int, time: str, effective: int) -> None:
    assert at_hours(a_function(min=least, max=3, warm=OFFICE.warm), at(time)).min == effective
    assert at_hours(a_function(min=least, max=3), at(time)).min == least


@pytest.mark.parametrize(
    ("warm", "message"),
    [
        ("Mon-Fri 07:50-18:00", "names no time zone: add one, as in"),
        ("always", "is no window: write days, hours and a time zone, as in"),
        ("Mon 08:00-08:00 UTC", "has no length: a whole day is 00:00-24:00"),
        ("Mon 08:00-25:00 UTC", "hours go from 00:00 to 24:00"),
        ("Mon 08:60-09:00 UTC", "hours go from 00:00 to 24:00"),
        ("Funday 08:00-09:00 UTC", "'funday' is no day: days are Mon, Tue"),
        ("Mon 08:00-09:00 Europe/Sofa", "'Europe/Sofa' is no time zone; did you mean 'Europe/Sofia'?"),
        ("Mon 08:00-09:00 ../../etc/passwd", "is no time zone"),
        ("Mon 08:00-09:00 Europe", "is no time zone"),
        (("Mon 08:00-09:00 UTC", ""), "is no window"),
    ],
)
def test_a_text_that_is_no_window_has_an_error_with_its_fix(warm: str | tuple[str, ...], message: str) -> None:
    assert message in fault_in(warm)
