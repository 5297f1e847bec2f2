"""Makes a failing scenario smaller: leaves out faults and requests as long as the same invariant fails."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from msgspec.structs import replace

from tests.simulation.run import Result
from tests.simulation.scenario import Scenario

T = TypeVar("T")

MOST_RUNS = 120


def shrink(scenario: Scenario, fails: Callable[[Scenario], Result | None]) -> tuple[Scenario, int]:
    """Return a smaller scenario that still fails, and how many runs it took. `fails` returns the result of a run that
    fails in the same way, else None."""
    runs = 0

    def still_fails(smaller: Scenario) -> bool:
        nonlocal runs
        runs += 1
        return fails(smaller) is not None

    for field in ("faults", "requests", "faults"):
        remainder: Sequence[Any] = getattr(scenario, field)
        size = max(1, len(remainder) // 2)
        while size and runs < MOST_RUNS:
            start = 0
            while start < len(remainder) and runs < MOST_RUNS:
                fewer = (*remainder[:start], *remainder[start + size :])
                smaller = replace(scenario, **{field: fewer})
                if still_fails(smaller):
                    scenario, remainder = smaller, fewer
                else:
                    start += size
            size //= 2
    return scenario, runs
