"""The plans of operator actions."""

from msgspec.structs import replace

from cortex.platform.agent_messages import PlacementPlan, Victim
from cortex.platform.record import HostRecord
from cortex.router.overview.snapshot import FleetSnapshot, Index
from cortex.router.status import plans
from cortex.router.status.hosts import eviction_order
from tests.router.overview.snapshots import NOW, a_snapshot
from tests.support.factories import a_function, a_host, an_instance


def index(snapshot: FleetSnapshot) -> Index:
    return Index(snapshot.fleet)


def named(name: str, record: HostRecord) -> HostRecord:
    return replace(record, name=name, at=NOW)


def test_the_plan_of_a_warm_has_the_host_and_the_evictions() -> None:
    planned = PlacementPlan(
        host="host-a", devices=("gpu-0",), memory_mb=2048, memory_from="measured",
        evict=(Victim("one", "org/old", 90.0),), retry_at=NOW + 30,
    )  # fmt: skip

    plan = plans.warm(a_function(), planned, {"host-b": "the host is cordoned"}, (), NOW)

    assert plan.possible
    assert plan.losses == ("org/old, idle for 1 min 30 s",)
    assert ("Memory", "2.0 GiB measured") in plan.facts
    assert dict(plan.facts)["Back-off"] == "another 30 s; warming ignores it"
    assert plan.refused == (("host-b", "the host is cordoned"),)
    assert plan.path == "/admin/functions/org%2Fmodel/warm"


def test_the_plan_of_a_warm_has_the_reasons_for_and_against_each_eviction() -> None:
    here = a_host(
        an_instance("small", function="org/small", ready=1.0),
        an_instance("old", function="org/old", ready=2.0),
        an_instance("kept", function="org/kept", ready=0.5, pinned=True),
        an_instance("busy", function="org/busy", ready=0.6),
    )
    snapshot = a_snapshot(a_function(), hosts=(named("host-a", here),), in_flight={"busy": 1})
    leaving = eviction_order(snapshot.fleet.hosts["host-a"], snapshot, index(snapshot))
    planned = PlacementPlan(host="host-a", devices=("gpu-0",), evict=(Victim("old", "org/old", 90.0),))

    plan = plans.warm(a_function(), planned, {}, leaving, NOW)

    why = "used later than 1 other; earlier ones do not free enough memory"
    assert plan.losses == (f"org/old, idle for 1 min 30 s: {why}",)
    assert plan.stay == ("org/kept: pinned", "org/busy: busy")


def test_a_warm_that_no_host_can_run_is_not_possible() -> None:
    plan = plans.warm(a_function(), None, {"host-a": "does not fit by 9000 MiB"}, (), NOW)

    assert not plan.possible
    assert plan.refused == (("host-a", "does not fit by 9000 MiB"),)


def test_the_plan_of_a_cool_lists_requests_and_offers_to_cut_them() -> None:
    snapshot = a_snapshot(a_function(), hosts=(a_host(an_instance()),), in_flight={"one": 3})

    plan = plans.cool(a_function(), snapshot, index(snapshot))

    assert plan.losses == ("one on host-a: 3 requests in flight, which may finish",)
    assert [o.name for o in plan.options] == ["now"]


def test_cooling_a_cold_function_is_not_possible() -> None:
    snapshot = a_snapshot(a_function(), hosts=(a_host(),))

    assert not plans.cool(a_function(), snapshot, index(snapshot)).possible


def test_cooling_a_function_with_a_minimum_announces_the_restart() -> None:
    snapshot = a_snapshot(a_function(min=1), hosts=(a_host(an_instance()),))

    assert "started again" in plans.cool(a_function(min=1), snapshot, index(snapshot)).says


def test_the_plan_of_a_drain_has_each_functions_destination() -> None:
    full = named("host-b", a_host(an_instance("big", function="org/big", memory_mb=9500, ready=NOW - 1)))
    roomy = named("host-c", a_host())
    leaves = named("host-a", a_host(an_instance(), an_instance("two", function="org/gone")))
    snapshot = a_snapshot(a_function(), a_function("org/big"), hosts=(leaves, full, roomy), in_flight={"one": 1})

    plan = plans.drain(leaves, snapshot, index(snapshot))

    assert plan.losses == (
        "org/gone: not in the catalogue any more, so it stops; idle",
        "org/model: moves to host-c; 1 request in flight, which may finish",
    )


def test_a_drain_without_room_elsewhere_lets_functions_go_cold() -> None:
    leaves = named("host-a", a_host(an_instance()))
    snapshot = a_snapshot(a_function(), hosts=(leaves,))

    assert plans.drain(leaves, snapshot, index(snapshot)).losses == (
        "org/model: no other host has room, so it goes cold; idle",
    )


def test_the_plan_of_a_drain_has_the_evictions_on_other_hosts() -> None:
    leaves = named("host-a", a_host(an_instance("one", memory_mb=9000)))
    other = named("host-b", a_host(an_instance("old", function="org/old", memory_mb=9500, ready=1.0)))
    snapshot = a_snapshot(a_function(vram_mb=9000), a_function("org/old"), hosts=(leaves, other))

    assert plans.drain(leaves, snapshot, index(snapshot)).losses == (
        "org/model: moves to host-b, where org/old would be evicted; idle",
    )
