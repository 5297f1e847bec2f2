"""Times as counts in geometric steps: those of several processes add up, and percentiles stay true. Pure.

A step is a tenth, and its middle is what is said: a percentile is a twentieth off at most. From a millisecond to an
hour there are 159 steps, and only those that were met are kept: a spread is small, and cannot grow without end.
"""

import math
from collections.abc import Iterable

LEAST_S, MOST_S, STEP = 0.001, 3600.0, 1.1
_LOG = math.log(STEP)
SHARES = {"p50_s": 0.5, "p95_s": 0.95, "p99_s": 0.99}

Spread = dict[int, int]
"""How many times fell on each step; a step n ends at `LEAST_S * STEP ** n`."""


def note(spread: Spread, seconds: float) -> None:
    """Count a time."""
    step = math.ceil(math.log(min(seconds, MOST_S) / LEAST_S) / _LOG) if seconds > LEAST_S else 0
    spread[step] = spread.get(step, 0) + 1


def together(spreads: Iterable[Spread]) -> Spread:
    """Add up spreads."""
    total: Spread = {}
    for spread in spreads:
        for step, count in spread.items():
            total[step] = total.get(step, 0) + count
    return total


def percentile(spread: Spread, share: float) -> float | None:
    """Return the time, in seconds, that `share` of those counted stayed below; None when there is none."""
    rank = share * sum(spread.values())
    seen = 0
    for step, count in sorted(spread.items()):
        seen += count
        if seen >= rank:
            return LEAST_S * math.exp(_LOG * (step - 0.5))
    return None


def percentiles(spread: Spread) -> dict[str, float] | None:
    """Return p50, p95 and p99, in seconds; None when nothing was counted."""
    found = {name: percentile(spread, share) for name, share in SHARES.items()}
    return {name: round(s, 4) for name, s in found.items() if s is not None} or None
