"""A replay decides as the fleet does: it gets the requests of a past time, on the hosts and functions of a test."""

from typing import Any

import pytest

from cortex.cli.what_if.fleet import ReplayFleet
from cortex.cli.what_if.past import Measured, Past, Tally, Visit
from cortex.functions.spec import Function
from cortex.platform.record import HostRecord
from tests.support.factories import ENGINES, a_device, a_function

BEGIN, HOUR = 1_800_000_000.0, 3600.0


def a_machine(name: str, *sizes_mb: int) -> HostRecord:
    devices = tuple(a_device(f"{name}-{n}", size) for n, size in enumerate(sizes_mb))
    return HostRecord(name=name, address="", engines=ENGINES, devices=devices)


def would(
    functions: list[Function], hosts: list[HostRecord], visits: list[Visit], *, start_s: float = 10.0, **past: Any
) -> dict[str, Tally]:
    """Replay an hour."""
    measured = {f.id: Measured(start_s=start_s) for f in functions}
    shifted = [Visit(BEGIN + v.at, v.function, v.work_s) for v in visits]
    values = Past(begin=BEGIN, end=BEGIN + HOUR, visits=shifted, measured=measured, **past)
    return ReplayFleet({f.id: f for f in functions}, hosts, frozenset(), values).run()


def test_functions_that_do_not_fit_together_evict_each_other_and_on_two_hosts_they_stay() -> None:
    functions = [a_function(f, vram_mb=9000, idle_after_s=HOUR) for f in ("f1", "f2")]
    visits = [Visit(60.0 + 120.0 * n, f"f{1 + n % 2}", 1.0) for n in range(8)]

    one = would(functions, [a_machine("a", 10_000)], visits)
    two = would(functions, [a_machine("a", 10_000), a_machine("b", 10_000)], visits)

    assert [(one[f].starts, one[f].evictions, one[f].waits) for f in ("f1", "f2")] == [(4, 4, 4), (4, 3, 4)]
    assert [(two[f].starts, two[f].evictions, two[f].waits) for f in ("f1", "f2")] == [(1, 0, 1), (1, 0, 1)]


def test_a_wait_is_the_start_and_a_second_request_joins_it() -> None:
    visits = [Visit(100.0, "f", 1.0), Visit(104.0, "f", 1.0), Visit(200.0, "f", 1.0)]

    tally = would([a_function("f")], [a_machine("a", 10_000)], visits)["f"]

    assert tally.starts == 1
    assert tally.waits == 2
    assert tally.wait_s == pytest.approx(16.0, abs=1.5)
    assert tally.longest_wait_s == pytest.approx(10.0, abs=1.0)


def test_a_request_that_still_waits_when_the_time_ends_is_served_or_given_up() -> None:
    functions = [a_function("f"), a_function("g", vram_mb=50_000)]
    visits = [Visit(HOUR - 1.0, f, 1.0) for f in ("f", "g")]

    result = would(functions, [a_machine("a", 10_000)], visits)

    assert (result["f"].starts, result["f"].waits, result["g"].not_served) == (1, 1, 1)


def test_a_function_in_use_is_closed_for_the_turn_of_another() -> None:
    functions = [
        a_function(f, vram_mb=9000, turn_min_s=15.0, turn_wait_s=60.0, start_timeout_s=600.0) for f in ("f1", "f2")
    ]
    visits = [Visit(10.0 + n, "f1", 1.5) for n in range(300)] + [Visit(100.0, "f2", 1.0)]

    result = would(functions, [a_machine("a", 10_000)], sorted(visits, key=lambda v: v.at))

    assert result["f2"].waits == 1
    assert 5.0 < result["f2"].longest_wait_s < 60.0 + 10.0 + 5.0
    assert result["f1"].evictions == 1


def test_an_idle_function_is_reaped_and_started_again_unless_it_has_a_minimum() -> None:
    visits = [Visit(100.0, "f", 1.0), Visit(1000.0, "f", 1.0)]

    cold = would([a_function("f", idle_after_s=300.0)], [a_machine("a", 10_000)], visits)["f"]
    warm = would([a_function("f", idle_after_s=300.0, min=1)], [a_machine("a", 10_000)], visits, carried=("f",))

    assert (cold.starts, cold.waits, cold.evictions) == (2, 2, 0)
    assert warm.get("f", Tally()).waits == 0


def test_a_function_that_fits_nowhere_or_is_not_declared_is_not_served() -> None:
    visits = [Visit(10.0, "big"), Visit(20.0, "gone"), Visit(30.0, "small")]
    functions = [a_function("big", vram_mb=50_000), a_function("small")]

    result = would(functions, [a_machine("a", 10_000)], visits)

    assert {f: (t.not_served, t.starts) for f, t in result.items()} == {"big": (1, 0), "gone": (1, 0), "small": (0, 1)}


def test_two_devices_and_tensor_parallel_are_placed_as_the_agent_does() -> None:
    wide = a_function("wide", vram_mb=18_000, min_devices=2)

    alone = would([wide], [a_machine("a", 10_000)], [Visit(10.0, "wide")])["wide"]
    pair = would([wide], [a_machine("a", 10_000, 10_000)], [Visit(10.0, "wide")])["wide"]

    assert (alone.starts, alone.not_served) == (0, 1)
    assert (pair.starts, pair.not_served) == (1, 0)
