"""Time series as SVG paths."""

import pytest

from cortex.router.status.charts import chart, round_top
from cortex.router.status.model import Series


def series(*values: float | None) -> Series:
    return Series(values=values, step_s=60.0, ends=0.0)


@pytest.mark.parametrize(
    ("most", "top"), [(0, 1), (0.3, 0.5), (1, 1), (1.2, 2), (4.9, 5), (7, 10), (11, 20), (420, 500), (1000, 1000)]
)
def test_a_scale_has_a_round_upper_limit(most: float, top: float) -> None:
    assert round_top(most) == pytest.approx(top)


def test_a_line_spans_the_box_and_zero_is_at_the_bottom() -> None:
    drawing = chart(series(0, 5, 10))

    assert drawing.lines == ("M0.0,100.0L50.0,50.0L100.0,0.0",)
    assert drawing.area == "M0.0,100.0L0.0,100.0L50.0,50.0L100.0,0.0L100.0,100.0Z"


def test_a_missing_value_interrupts_the_line() -> None:
    drawing = chart(series(1, 1, None, 1, 1))

    assert drawing.lines[0].count("M") == 2


def test_a_single_point_is_a_short_dash() -> None:
    assert chart(series(None, 1, None)).lines == ("M49.6,0.0L50.4,0.0",)


def test_two_lines_share_a_scale() -> None:
    drawing = chart(series(1, 1), series(2, 2))

    assert drawing.lines == ("M0.0,50.0L100.0,50.0", "M0.0,0.0L100.0,0.0")


def test_without_a_value_the_chart_is_empty() -> None:
    assert chart(None, series(None, None)).empty


def test_the_time_before_the_first_value_is_omitted() -> None:
    drawing = chart(series(*[None] * 40, *[1.0] * 20), series(*[None] * 50, *[1.0] * 10))

    assert drawing.minutes == 19
    assert drawing.lines[0].startswith("M0.0,0.0L")


def test_a_new_series_spans_ten_minutes() -> None:
    assert chart(series(*[None] * 59, 1.0)).minutes == 10
