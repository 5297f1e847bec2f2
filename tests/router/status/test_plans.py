"""What an action would do, before it is done."""

from msgspec.structs import replace

from cortex.platform.agent_messages import PlacementPlan, Victim
from cortex.platform.record import HostRecord
from cortex.router.status import plans
from cortex.router.status.hosts import order_of_leaving
from cortex.router.status.snapshot import FleetSnapshot, Index
from tests.router.status.knowns import NOW, known
from tests.support.factories import a_function, a_host, an_instance


def index(told: FleetSnapshot) -> Index:
    return Index(told.fleet)


def named(name: str, record: HostRecord) -> HostRecord:
    return replace(record, name=name, at=NOW)


def test_a_warm_says_where_it_would_go_and_who_would_leave() -> None:
    planned = PlacementPlan(
        host="host-a", devices=("gpu-0",), memory_mb=2048, memory_from="measured",
        evict=(Victim("one", "org/old", 90.0),), retry_at=NOW + 30,
    )  # fmt: skip

    plan = plans.warm(a_function(), planned, {"host-b": "the host is cordoned"}, (), NOW)

    assert plan.possible
    assert plan.losses == ("org/old, idle for 1 min 30 s",)
    assert ("Memory", "2.0 GiB measured") in plan.facts
    assert dict(plan.facts)["Backing off"] == "for 30 s still; warming overrides that"
    assert plan.refused == (("host-b", "the host is cordoned"),)
    assert plan.path == "/admin/functions/org%2Fmodel/warm"


def test_a_warm_says_why_it_is_those_who_leave_and_why_others_stay() -> None:
    here = a_host(
        an_instance("small", function="org/small", ready=1.0),
        an_instance("old", function="org/old", ready=2.0),
        an_instance("kept", function="org/kept", ready=0.5, pinned=True),
        an_instance("busy", function="org/busy", ready=0.6),
    )
    told = known(a_function(), hosts=(named("host-a", here),), in_flight={"busy": 1})
    leaving = order_of_leaving(told.fleet.hosts["host-a"], told, index(told))
    planned = PlacementPlan(host="host-a", devices=("gpu-0",), evict=(Victim("old", "org/old", 90.0),))

    plan = plans.warm(a_function(), planned, {}, leaving, NOW)

    why = "used later than 1 other; those before it do not free enough"
    assert plan.losses == (f"org/old, idle for 1 min 30 s: {why}",)
    assert plan.stay == ("org/kept: pinned", "org/busy: busy")


def test_a_warm_that_no_host_takes_cannot_be_asked_for() -> None:
    plan = plans.warm(a_function(), None, {"host-a": "does not fit by 9000 MiB"}, (), NOW)

    assert not plan.possible
    assert plan.refused == (("host-a", "does not fit by 9000 MiB"),)


def test_a_cool_says_what_becomes_of_requests_and_offers_to_cut_them() -> None:
    told = known(a_function(), hosts=(a_host(an_instance()),), in_flight={"one": 3})

    plan = plans.cool(a_function(), told, index(told))

    assert plan.losses == ("one on host-a: 3 requests in flight, which may finish",)
    assert [o.name for o in plan.options] == ["now"]


def test_cooling_what_is_cold_changes_nothing() -> None:
    told = known(a_function(), hosts=(a_host(),))

    assert not plans.cool(a_function(), told, index(told)).possible


def test_cooling_a_minimum_says_that_it_comes_back() -> None:
    told = known(a_function(min=1), hosts=(a_host(an_instance()),))

    assert "started again" in plans.cool(a_function(min=1), told, index(told)).says


def test_a_drain_says_for_each_function_where_it_would_go() -> None:
    full = named("host-b", a_host(an_instance("big", function="org/big", memory_mb=9500, ready=NOW - 1)))
    roomy = named("host-c", a_host())
    leaves = named("host-a", a_host(an_instance(), an_instance("two", function="org/gone")))
    told = known(a_function(), a_function("org/big"), hosts=(leaves, full, roomy), in_flight={"one": 1})

    plan = plans.drain(leaves, told, index(told))

    assert plan.losses == (
        "org/gone: it is not in the catalogue any more, and goes; idle",
        "org/model: moves to host-c; 1 request in flight, which may finish",
    )


def test_a_drain_says_when_nobody_else_has_room() -> None:
    leaves = named("host-a", a_host(an_instance()))
    told = known(a_function(), hosts=(leaves,))

    assert plans.drain(leaves, told, index(told)).losses == (
        "org/model: no other host has room now, so it goes cold; idle",
    )


def test_a_drain_says_who_would_be_evicted_elsewhere_for_it() -> None:
    leaves = named("host-a", a_host(an_instance("one", memory_mb=9000)))
    other = named("host-b", a_host(an_instance("old", function="org/old", memory_mb=9500, ready=1.0)))
    told = known(a_function(vram_mb=9000), a_function("org/old"), hosts=(leaves, other))

    assert plans.drain(leaves, told, index(told)).losses == (
        "org/model: moves to host-b, where org/old would go; idle",
    )
