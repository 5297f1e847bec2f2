"""The page of usage as a function of rows."""

import pytest

from cortex.platform.usage import DAY_S, HOUR_S, Place, Row, Sums
from cortex.router.status.render import render
from cortex.router.status.usage import BANDS, GROUPS, REST, SPANS, Group, Span, UsagePage, usage_page
from tests.router.status.test_render import HOSTILE, Reader

NOW = 1_795_814_051.0  # 2026-11-27 21:14:11
TODAY, HOUR = int(NOW // DAY_S) * DAY_S, int(NOW // HOUR_S) * HOUR_S


def row(at: int = HOUR, key: str = "k1", **sums: int) -> Row:
    return Row(at=at, place=Place(key, "org/model", "host-a"), sums=Sums(**{"requests": 1, "tokens_in": 10, **sums}))


def html(page: UsagePage) -> str:
    return render("usage.html", it=page, groups=GROUPS, spans=tuple(SPANS))


def test_a_day_has_a_bar_per_hour_and_a_week_one_per_day() -> None:
    rows = [row(HOUR - 3 * HOUR_S), row(HOUR, tokens_out=30)]

    day, week = usage_page(rows, "key", "day", NOW, {}), usage_page(rows, "key", "week", NOW, {})

    assert (day.first, day.last) == ("2026-11-26 22:00", "2026-11-27 21:00")
    assert [(bar.text, bar.height) for bar in day.charts[0].bars] == [
        ("2026-11-27 18:00, k1: 10", 20.0),
        ("2026-11-27 21:00, k1: 40", 80.0),
    ]
    assert (week.first, week.last) == ("2026-11-21", "2026-11-27")
    assert [bar.text for bar in week.charts[0].bars] == ["2026-11-27, k1: 50"]


def test_the_largest_groups_have_a_band_and_the_others_share_one() -> None:
    rows = [row(key=f"k{n}", tokens_in=100 - n) for n in range(BANDS + 3)]

    (chart,) = usage_page(rows, "key", "day", NOW, {"k0": "team"}).charts

    assert [band.name for band in chart.bands] == ["team (k0)", *(f"k{n}" for n in range(1, BANDS)), REST]
    assert chart.bands[-1].total == str(95 + 94 + 93)
    assert [bar.band for bar in chart.bars] == list(range(BANDS + 1))
    assert min(bar.y for bar in chart.bars) == pytest.approx(100 - 100 * 772 / 1000)
    assert sum(bar.height for bar in chart.bars) == pytest.approx(100 * 772 / 1000, abs=0.01)


def test_cost_and_energy_have_a_chart_where_there_are_any() -> None:
    without = usage_page([row()], "function", "month", NOW, {})
    both = usage_page([row(nano_usd=2 * 10**9, mj=7_200_000)], "function", "month", NOW, {})

    assert [chart.title for chart in without.charts] == ["Tokens"]
    assert [(chart.title, chart.total) for chart in both.charts] == [
        ("Tokens", "10"), ("Cost", "$2.00"), ("Energy of GPUs", "2 Wh"),
    ]  # fmt: skip


def test_rows_before_the_first_bar_are_not_counted() -> None:
    shown = usage_page([row(), row(TODAY - 6 * DAY_S), row(TODAY - 7 * DAY_S)], "host", "week", NOW, {})

    assert shown.total.cells[0] == "2"
    assert [time.name for time in shown.times] == ["2026-11-27", "2026-11-21"]


@pytest.mark.parametrize("by", GROUPS)
@pytest.mark.parametrize("span", SPANS)
def test_every_page_is_escaped_and_has_nothing_inline(by: Group, span: Span) -> None:
    rows = [Row(at=HOUR, place=Place("k1", HOSTILE, HOSTILE), sums=Sums(requests=1, tokens_in=3, nano_usd=5, mj=7))]

    text = html(usage_page(rows, by, span, NOW, {"k1": HOSTILE}))

    reader = Reader(text)
    assert not reader.inline and len(reader.ids) == len(set(reader.ids))
    assert HOSTILE not in text


def test_without_usage_the_page_says_so() -> None:
    assert "No requests in this time." in html(usage_page([], "key", "year", NOW, {}))
