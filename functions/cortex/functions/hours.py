"""Hours in which a function is kept warm: `warm = "Mon-Fri 07:50-18:00 Europe/Sofia"`. Pure.

A window is open while a clock on the wall of its zone shows a time in it. So in a night in which the clocks change, an
hour that comes twice counts twice, and one that is skipped is not there. A window that ends at or before its begin
ends on the next day, and belongs to the day on which it begins.
"""

import functools
import re
import zoneinfo
from collections.abc import Iterable
from datetime import datetime, time, timedelta
from itertools import pairwise

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.names import did_you_mean
from cortex.functions.spec import Function

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60
EXAMPLE = '"Mon-Fri 07:50-18:00 Europe/Sofia"'
_HOURS = re.compile(r"(\d{1,2}):(\d\d)-(\d{1,2}):(\d\d)")


class BadHours(Exception):
    """A text that is no window; the message says what to write."""


class Window(Struct, frozen=True):
    """Hours of some days of the week."""

    days: frozenset[int]
    """Monday is 0."""
    begin: int
    """Minutes after midnight, as `end`; 1440 is the end of the day."""
    end: int
    zone: str

    def is_open(self, at: float) -> bool:
        """Whether the zone's clock shows a time in the window at a Unix time."""
        local = datetime.fromtimestamp(at, zoneinfo.ZoneInfo(self.zone))
        minute, today = local.hour * 60 + local.minute, local.weekday()
        if self.begin < self.end:
            return today in self.days and self.begin <= minute < self.end
        yesterday = (today - 1) % 7
        return (today in self.days and minute >= self.begin) or (yesterday in self.days and minute < self.end)

    def edges(self, at: float) -> set[float]:
        """Return Unix times from a day before `at` to eight days after it, between which it opens or closes at most
        once. On a day on which the clocks change, every quarter of an hour is one: zones change them at none else."""
        zone = zoneinfo.ZoneInfo(self.zone)
        today = datetime.fromtimestamp(at, zone).date()
        midnights = [datetime.combine(today + timedelta(days=n), time(), zone) for n in range(-1, 10)]
        times: set[float] = set()
        for midnight, following in pairwise(midnights):
            for minute in (self.begin % DAY_MINUTES, self.end % DAY_MINUTES):
                clock = midnight.replace(hour=minute // 60, minute=minute % 60)
                times.update(clock.replace(fold=fold).timestamp() for fold in (0, 1))
            if midnight.utcoffset() != following.utcoffset():
                times.update(range(int(midnight.timestamp()), int(following.timestamp()), 900))
        return times


@functools.lru_cache(maxsize=1000)
def window(text: str) -> Window:
    """Read a window: days (every day without), hours and a time zone. Raises BadHours."""
    *days, hours, zone = ("", "", *text.split())
    if not (match := _HOURS.fullmatch(hours)):
        if _HOURS.fullmatch(zone):
            raise BadHours(f"'{text}' names no time zone: add one, as in {EXAMPLE}")
        raise BadHours(f"'{text}' is no window: write days, hours and a time zone, as in {EXAMPLE}")
    begin_hour, begin_minute, end_hour, end_minute = map(int, match.groups())
    begin, end = begin_hour * 60 + begin_minute, end_hour * 60 + end_minute
    if max(begin_minute, end_minute) > 59 or begin >= DAY_MINUTES or end > DAY_MINUTES:
        raise BadHours(f"'{hours}' has a time that no day has: hours go from 00:00 to 24:00")
    if begin == end:
        raise BadHours(f"'{hours}' has no length: a whole day is 00:00-24:00")
    return Window(_days("".join(days)), begin, end, _zone(zone))


def fault_in(warm: str | Iterable[str]) -> str:
    """Return what is wrong with the value of `warm`, or ""."""
    try:
        for text in [warm] if isinstance(warm, str) else warm:
            if text or text is not warm:
                window(text)
    except BadHours as error:
        return str(error)
    return ""


def texts(function: Function) -> tuple[str, ...]:
    """Return a function's windows as they are written."""
    if isinstance(function.warm, str):
        return (function.warm,) if function.warm else ()
    return function.warm


def is_open(function: Function, at: float) -> bool:
    """Whether one of a function's windows is open at a Unix time."""
    return any(w.is_open(at) for w in map(window, texts(function)))


def next_change(function: Function, at: float) -> float | None:
    """Return the Unix time at which a function's hours begin or end next; None: they never do."""
    windows, now_open = [window(text) for text in texts(function)], is_open(function, at)
    before = at
    for edge in sorted(e for w in windows for e in w.edges(at) if e > at):
        if is_open(function, edge) is not now_open:
            return _first_change(function, before, edge)
        before = edge
    return None


def at_hours(function: Function, at: float) -> Function:
    """Return a function with the minimum that it has at a Unix time: with `warm`, `min` (at least 1) counts only in
    these hours."""
    if not function.warm:
        return function
    return replace(function, min=max(1, function.min) if is_open(function, at) else 0)


def _first_change(function: Function, before: float, after: float) -> float:
    """Return when the hours change between two times, to the second: a clock that is set forward may end them before
    the edge."""
    now_open = is_open(function, before)
    low, high = int(before), int(after)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_open(function, middle) is now_open else (low, middle)
    return float(high)


def _days(text: str) -> frozenset[int]:
    """Read `Mon-Fri`, `Sat,Sun` or nothing, which is every day. Raises BadHours."""
    days: set[int] = set()
    for part in filter(None, text.lower().split(",")):
        first, dash, last = part.partition("-")
        names = (first, last) if dash else (first, first)
        for name in names:
            if name not in DAYS:
                raise BadHours(f"'{name}' is no day: days are {', '.join(d.title() for d in DAYS)}")
        begin, end = map(DAYS.index, names)
        days.update((begin + n) % 7 for n in range((end - begin) % 7 + 1))
    return frozenset(days or range(7))


def _zone(name: str) -> str:
    try:
        zoneinfo.ZoneInfo(name)
    except (ValueError, KeyError, OSError):  # no such zone, a path, a folder of zones
        hint = did_you_mean(name, sorted(zoneinfo.available_timezones()))
        raise BadHours(f"'{name}' is no time zone{hint or f': write one as in {EXAMPLE}'}") from None
    return name
