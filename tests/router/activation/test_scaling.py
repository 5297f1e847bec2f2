"""Which functions want one more instance, case by case."""

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function
from cortex.platform.fleet import Fleet, SilentHost
from cortex.platform.record import DrainReason, HostRecord, Instance, Tier
from cortex.router.activation.scaling import PATIENCE_S, Cause, Scaling, Want
from tests.support.factories import a_fleet, a_function, a_host, a_report, an_instance

GROWS = a_function(max=2, target_concurrency=4)
ONE_MORE = [Want("org/model", Cause.LOAD)]
REHEARSING = an_instance("a", reason=DrainReason.REHEARSAL, parks_to=Tier.SLEEP)
FULL = an_instance("a-f", state=State.STARTING, replaces="a")
PROMISED = [Want("org/model", Cause.MINIMUM)]


def fleet(*instances: Instance, busy: dict[str, int] | None = None) -> Fleet:
    host = a_host(*instances)
    report = a_report(in_flight=busy or {})
    return Fleet(hosts={host.name: host}, routers={report.id: report}, at=0.0)


def wanted_in_the_end(function: Function, view: Fleet) -> list[Want]:
    """Ask twice, so that whatever has to last has lasted."""
    scaling = Scaling()
    scaling.wanted([function], view, 100.0)
    return scaling.wanted([function], view, 100.0 + PATIENCE_S)


@pytest.mark.parametrize(
    ("function", "view", "wanted"),
    [
        (GROWS, fleet(an_instance("a"), busy={"a": 5}), ONE_MORE),
        (GROWS, fleet(an_instance("a"), busy={"a": 4}), []),
        (GROWS, fleet(an_instance("a"), an_instance("b", state=State.STARTING), busy={"a": 50}), []),
        (GROWS, fleet(an_instance("a"), an_instance("b"), busy={"a": 50}), []),
        (GROWS, fleet(an_instance("a"), an_instance("b", state=State.STOPPING), busy={"a": 5}), ONE_MORE),
        (GROWS, fleet(an_instance("a"), FULL, busy={"a": 5}), ONE_MORE),
        (GROWS, fleet(an_instance("a", state=State.STOPPING), FULL, busy={"a": 5}), []),
        (a_function(min=2, max=3), fleet(an_instance("a"), replace(FULL, state=State.READY)), PROMISED),
        (GROWS, fleet(), []),
        (a_function(min=1), fleet(), PROMISED),
        (a_function(min=2, max=3), fleet(an_instance("a")), PROMISED),
        (a_function(min=2, max=3), fleet(an_instance("a"), an_instance("b")), []),
        (a_function(min=2, max=3), fleet(an_instance("a", state=State.FETCHING)), []),
        (a_function(min=1), fleet(replace(REHEARSING, state=State.DRAINING)), []),
        (a_function(min=1), fleet(replace(REHEARSING, state=State.PARKING)), []),
        (a_function(min=1), fleet(replace(REHEARSING, state=State.SLEEPING)), PROMISED),
        (a_function(min=1), fleet(an_instance("a", state=State.PARKING, reason=DrainReason.IDLE)), PROMISED),
        (a_function(min=2, max=3), fleet(an_instance("a", state=State.PARKING)), []),
    ],
    ids=[
        "over the target", "at the target", "one is coming", "at the maximum", "one is leaving",
        "one is coming to replace another", "one is coming in place of one that is gone",
        "below its minimum with a full start beside", "cold",
        "cold, with a minimum", "below its minimum", "at its minimum", "the minimum is coming",
        "it rehearses: draining", "it rehearses: parking", "it stayed asleep", "it is being parked",
        "it returns as soon as it is parked",
    ],
)  # fmt: skip
def test_one_more_is_wanted(function: Function, view: Fleet, wanted: list[Want]) -> None:
    assert wanted_in_the_end(function, view) == wanted


def test_a_burst_that_is_over_soon_starts_nothing() -> None:
    scaling = Scaling()
    over, calm = fleet(an_instance("a"), busy={"a": 5}), fleet(an_instance("a"), busy={"a": 1})

    request = [scaling.wanted([GROWS], view, at) for view, at in ((over, 0.0), (calm, 2.0), (over, 4.0), (over, 6.0))]

    assert request == [[], [], [], []]
    assert scaling.wanted([GROWS], over, 4.0 + PATIENCE_S) == ONE_MORE


def test_a_fleet_that_is_not_there_wants_nothing_but_minimums() -> None:
    assert Scaling().wanted([GROWS, a_function("org/kept", min=1)], a_fleet(), 0.0) == [Want("org/kept", Cause.MINIMUM)]


@pytest.mark.parametrize("function", [GROWS, a_function(min=1)], ids=["under load", "a minimum"])
def test_an_instance_of_a_silent_host_counts_as_one_that_is_there(function: Function) -> None:
    silent = {"gone": SilentHost(record=replace(a_host(an_instance("b")), name="gone"), since=0.0)}
    view = fleet(*([an_instance("a")] if function is GROWS else []), busy={"a": 50})

    assert wanted_in_the_end(function, replace(view, silent=silent)) == []


BASELINE = a_function(baseline=True)
FULL = an_instance("full", function="org/large", memory_mb=9500)


@pytest.mark.parametrize(
    ("view", "waiting", "wanted"),
    [
        (fleet(), {}, [Want("org/model", Cause.BASELINE)]),
        (fleet(an_instance("a")), {}, []),
        (fleet(replace(REHEARSING, state=State.PARKING)), {}, []),
        (fleet(FULL), {}, []),
        (fleet(replace(FULL, state=State.STOPPING)), {}, []),
        (fleet(), {"org/other": 1}, []),
        (fleet(), {"org/model": 1}, [Want("org/model", Cause.BASELINE)]),
        (replace(fleet(), cordoned=frozenset({"host-a"})), {}, []),
        (a_fleet(), {}, []),
    ],
    ids=[
        "free room", "it is there", "it rehearses", "no room", "the room is being freed", "a request waits for another",
        "a request waits for it", "cordoned", "no host",
    ],
)  # fmt: skip
def test_a_baseline_is_wanted_in_room_that_nothing_else_wants(
    view: Fleet, waiting: dict[str, int], wanted: list[Want]
) -> None:
    request = replace(view, routers={"router-1": a_report(waiting=waiting)})

    assert Scaling().wanted([BASELINE], request, 100.0) == wanted


def test_baselines_come_back_one_at_a_time() -> None:
    both = [BASELINE, a_function("org/second", baseline=True)]

    assert Scaling().wanted(both, fleet(), 100.0) == [Want("org/model", Cause.BASELINE)]
    assert Scaling().wanted(both, fleet(an_instance("a")), 100.0) == [Want("org/second", Cause.BASELINE)]


def test_a_sweep_goes_through_the_fleet_once_however_many_functions_are_declared() -> None:
    class Counted(Fleet, frozen=True):
        def records(self) -> Iterator[HostRecord]:
            passes.append(1)
            return super().records()

    passes: list[int] = []
    many = [a_function(f"f{n}", min=1) for n in range(50)]
    host = a_host(an_instance("a", function="f0"))

    wants = Scaling().wanted(many, Counted(hosts={host.name: host}), 1.0)

    assert [w.function for w in wants] == [f.id for f in many[1:]]
    assert len(passes) == 1
