"""A clock that advances evenly when the wall clock is set."""

import time

import pytest

from cortex.platform import clock
from cortex.platform.clock import Clock


def test_a_new_clock_starts_at_the_wall_clocks_time() -> None:
    assert Clock().now() == pytest.approx(time.time(), abs=1)


@pytest.mark.parametrize("step_s", [-86400.0, -1.0, 1.0, 86400.0])
def test_a_step_of_the_wall_clock_does_not_change_the_time(monkeypatch: pytest.MonkeyPatch, step_s: float) -> None:
    steady, wall = Clock(), time.time
    before = steady.now(), clock.now()

    monkeypatch.setattr(time, "time", lambda: wall() + step_s)

    assert steady.now() - before[0] == pytest.approx(0, abs=0.5)
    assert clock.now() - before[1] == pytest.approx(0, abs=0.5)


def test_a_clock_with_anothers_origin_continues_its_time() -> None:
    first = Clock(origin=1000.0)
    second = Clock(first.origin)

    before, after = first.now(), second.now()

    assert 0 <= after - before < 1
