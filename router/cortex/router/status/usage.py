"""The page of usage: what requests used over time, as stacked bars and as numbers. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from msgspec import Struct

from cortex.platform.usage import DAY_S, HOUR_S, By, Row, Sums, group
from cortex.router.status.charts import BOX, round_top

Group = Literal["key", "function", "host"]
GROUPS: tuple[Group, ...] = ("key", "function", "host")
Span = Literal["day", "week", "month", "year"]
SPANS: dict[Span, int] = {"day": DAY_S, "week": 7 * DAY_S, "month": 30 * DAY_S, "year": 365 * DAY_S}
BANDS = 5
"""Groups with a colour of their own; the rest is one band."""
REST = "all others"
MOST_ROWS = 100
BAR = 0.8
"""The share of its place that a bar takes."""


class Bar(Struct, frozen=True):
    """A part of a bar, in a box of 100 × 100, with the number of its band."""

    x: float
    y: float
    width: float
    height: float
    band: int
    text: str


class Band(Struct, frozen=True):
    """One group in the legend of a chart."""

    name: str
    band: int
    total: str


class UsageChart(Struct, frozen=True, kw_only=True):
    """One measure over time."""

    title: str
    top: str
    """The value at the upper edge."""
    total: str
    bars: tuple[Bar, ...]
    bands: tuple[Band, ...]


class UsageRow(Struct, frozen=True):
    """The numbers of a group, or of an hour or day."""

    name: str
    cells: tuple[str, ...]


class UsagePage(Struct, frozen=True, kw_only=True):
    """The content of the page."""

    by: Group
    span: Span
    step: By
    """What a bar stands for: an hour or a day."""
    first: str
    last: str
    charts: tuple[UsageChart, ...]
    columns: tuple[str, ...]
    groups: tuple[UsageRow, ...]
    more: int
    """Groups that are not listed."""
    total: UsageRow
    times: tuple[UsageRow, ...]
    """The hours or days with usage, the last one first."""


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _usd(nano_usd: float) -> str:
    usd = nano_usd / 1e9
    return f"${usd:,.2f}" if usd >= 0.1 or not usd else f"${usd:.4g}"


def _energy(mj: float) -> str:
    watt_hours = mj / 3_600_000
    return f"{watt_hours / 1000:,.2f} kWh" if watt_hours >= 1000 else f"{watt_hours:,.3g} Wh"


MEASURES: tuple[tuple[str, Callable[[Sums], int], Callable[[float], str]], ...] = (
    ("Tokens", lambda sums: sums.tokens_in + sums.tokens_out, _count),
    ("Cost", lambda sums: sums.nano_usd, _usd),
    ("Energy of GPUs", lambda sums: sums.mj, _energy),
)
COLUMNS: tuple[tuple[str, Callable[[Sums], int], Callable[[float], str]], ...] = (
    ("Requests", lambda sums: sums.requests, _count),
    ("In", lambda sums: sums.tokens_in, _count),
    ("Out", lambda sums: sums.tokens_out, _count),
    ("Cached", lambda sums: sums.cached, _count),
    ("Cold starts", lambda sums: sums.cold_starts, _count),
    ("Cost", lambda sums: sums.nano_usd, _usd),
    ("GPU seconds", lambda sums: sums.gpu_ms, lambda ms: _count(ms / 1000)),
    ("Energy", lambda sums: sums.mj, _energy),
)


def usage_page(rows: Sequence[Row], by: Group, span: Span, now: float, names: Mapping[str, str]) -> UsagePage:
    """Return the page for the rows of a span that ends now; `names` are those of keys."""
    step: By = "hour" if SPANS[span] <= 2 * DAY_S else "day"
    step_s = HOUR_S if step == "hour" else DAY_S
    last = int(now // step_s) * step_s
    number = SPANS[span] // step_s
    first = last - (number - 1) * step_s
    rows = [row for row in rows if row.at >= first]
    groups, total = group(rows, by, names), Sums()
    for sums in groups.values():
        total.add(sums)
    steps: list[list[Row]] = [[] for _ in range(number)]
    for row in rows:
        steps[min(number - 1, (row.at - first) // step_s)].append(row)
    bars = [group(inside, by, names) for inside in steps]
    times = [_time(first + n * step_s, step) for n in range(number)]
    return UsagePage(
        by=by,
        span=span,
        step=step,
        first=times[0],
        last=times[-1],
        charts=tuple(
            _chart(title, value, text, groups, bars, times) for title, value, text in MEASURES if value(total)
        ),
        columns=tuple(title for title, _, _ in COLUMNS),
        groups=tuple(_row(name, sums) for name, sums in list(groups.items())[:MOST_ROWS]),
        more=max(0, len(groups) - MOST_ROWS),
        total=_row("total", total),
        times=tuple(_row(time, _sum(bar.values())) for time, bar in zip(times, bars, strict=True) if bar)[::-1],
    )


def _chart(
    title: str,
    value: Callable[[Sums], int],
    text: Callable[[float], str],
    groups: Mapping[str, Sums],
    bars: Sequence[Mapping[str, Sums]],
    times: Sequence[str],
) -> UsageChart:
    """Return one measure as bars: the largest groups below, the rest on top."""
    ranked = sorted((name for name in groups if value(groups[name])), key=lambda n: (-value(groups[n]), n))
    bands = {name: band for band, name in enumerate(ranked[:BANDS])}
    most = max((sum(value(sums) for sums in bar.values()) for bar in bars), default=0)
    top = round_top(most)
    place = BOX / len(bars)
    drawn: list[Bar] = []
    for nth, bar in enumerate(bars):
        heights = {band: 0 for band in range(BANDS + 1)}
        for name, sums in bar.items():
            heights[bands.get(name, BANDS)] += value(sums)
        below = 0
        for band, height in heights.items():
            if not height:
                continue
            below += height
            name = ranked[band] if band < BANDS else REST
            drawn.append(
                Bar(
                    x=round(place * (nth + (1 - BAR) / 2), 3),
                    y=round(BOX - BOX * below / top, 3),
                    width=round(place * BAR, 3),
                    height=round(BOX * height / top, 3),
                    band=band,
                    text=f"{times[nth]}, {name}: {text(height)}",
                )
            )
    legend = [Band(name, band, text(value(groups[name]))) for name, band in bands.items()]
    if rest := sum(value(groups[name]) for name in ranked[BANDS:]):
        legend.append(Band(REST, BANDS, text(rest)))
    total = sum(value(sums) for sums in groups.values())
    return UsageChart(title=title, top=text(top), total=text(total), bars=tuple(drawn), bands=tuple(legend))


def _sum(parts: Iterable[Sums]) -> Sums:
    total = Sums()
    for part in parts:
        total.add(part)
    return total


def _row(name: str, sums: Sums) -> UsageRow:
    return UsageRow(name, tuple(text(value(sums)) if value(sums) else "–" for _, value, text in COLUMNS))


def _time(at: int, step: By) -> str:
    return f"{datetime.fromtimestamp(at, UTC):{'%Y-%m-%d %H:00' if step == 'hour' else '%Y-%m-%d'}}"
