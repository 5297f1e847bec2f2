"""Time series as SVG paths in a box of 100 × 100, which the page scales. Pure."""

from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from cortex.router.status.model import Series

BOX = 100.0
LEAST_POINTS = 11
_STEPS = (1, 2, 5, 10)


class Chart(Struct, frozen=True, kw_only=True):
    """One or two lines with a common scale."""

    top: float
    """The value at the upper edge."""
    lines: tuple[str, ...]
    area: str
    """The area below the first line."""
    minutes: int
    empty: bool


def chart(*series: Series | None) -> Chart:
    """Return the lines on one scale with a round upper limit."""
    visible = _trim([s for s in series if s is not None])
    most = max((v for s in visible for v in s.values if v is not None), default=0.0)
    top = round_top(most)
    lines = tuple(" ".join(_line(run) for run in _runs(s, top)) for s in visible)
    area = " ".join(_area(run) for run in _runs(visible[0], top)) if visible else ""
    first = visible[0] if visible else None
    minutes = round(first.step_s * max(1, len(first.values) - 1) / 60) if first else 60
    return Chart(top=top, lines=lines, area=area, minutes=minutes, empty=not any(lines))


def _trim(series: Sequence[Series]) -> list[Series]:
    """Remove the time before the first value, but keep at least `LEAST_POINTS` points."""
    indices = [n for s in series for n, v in enumerate(s.values) if v is not None]
    longest = max((len(s.values) for s in series), default=0)
    begin = max(0, min(min(indices), longest - LEAST_POINTS)) if indices else 0
    return [replace(s, values=s.values[begin:]) for s in series]


def round_top(most: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is at least `most`."""
    if most <= 0:
        return 1.0
    power = 1.0
    while power < most:
        power *= 10
    while power / 10 >= most:
        power /= 10
    return min(step * power / 10 for step in _STEPS if step * power / 10 >= most * 0.999999)


def _runs(series: Series, top: float) -> Iterator[list[tuple[float, float]]]:
    """Yield the points of each stretch without a gap."""
    last = max(1, len(series.values) - 1)
    run: list[tuple[float, float]] = []
    for nth, value in enumerate(series.values):
        if value is None:
            if run:
                yield run
            run = []
        else:
            run.append((BOX * nth / last, BOX - BOX * value / top))
    if run:
        yield run


def _line(run: Sequence[tuple[float, float]]) -> str:
    if len(run) == 1:  # a lone point is drawn as a short dash
        x, y = run[0]
        return f"M{_at((max(0, x - 0.4), y))}L{_at((min(BOX, x + 0.4), y))}"
    return "M" + "L".join(_at(p) for p in run)


def _area(run: Sequence[tuple[float, float]]) -> str:
    return f"M{_at((run[0][0], BOX))}L{'L'.join(_points(run))}L{_at((run[-1][0], BOX))}Z"


def _points(run: Iterable[tuple[float, float]]) -> Iterator[str]:
    return (_at(p) for p in run)


def _at(point: tuple[float, float]) -> str:
    return f"{point[0]:.1f},{point[1]:.1f}"
