"""The plans of operator actions, as facts."""

from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.platform.agent_messages import PlacementPlan, Victim
from cortex.platform.record import HostRecord
from cortex.router.overview import plans
from cortex.router.overview.snapshot import FleetSnapshot, Index
from cortex.router.plan_types import AffectedInstance, Effect, Move, Outcome
from tests.router.overview.snapshots import NOW, a_snapshot
from tests.support.factories import a_function, a_host, an_instance


def index(snapshot: FleetSnapshot) -> Index:
    return Index(snapshot)


def named(name: str, record: HostRecord) -> HostRecord:
    return replace(record, name=name, at=NOW)


def test_the_plan_of_a_warm_has_the_host_and_the_evictions() -> None:
    snapshot = a_snapshot(a_function())
    placement = PlacementPlan(
        host="host-a", devices=("gpu-0",), memory_mb=2048, memory_from="measured",
        evict=(Victim("one", "org/old", 90.0),), retry_at=NOW + 30,
    )  # fmt: skip

    plan = plans.warm(a_function(), placement, {"host-b": "the host is cordoned"}, snapshot, index(snapshot))

    assert plan.effect is Effect.CHANGE
    assert plan.start is not None
    assert (plan.start.host, plan.start.memory_mb, plan.start.retry_at) == ("host-a", 2048, NOW + 30)
    assert [(e.instance, e.idle_s, e.rank) for e in plan.evictions] == [("one", 90.0, 0)]
    assert plan.refusals == {"host-b": "the host is cordoned"}


def test_the_plan_of_a_warm_has_the_rank_of_each_eviction_and_the_protected_instances() -> None:
    here = a_host(
        an_instance("small", function="org/small", ready=1.0),
        an_instance("old", function="org/old", ready=2.0),
        an_instance("pinned", function="org/pinned", ready=0.5, pinned=True),
        an_instance("busy", function="org/busy", ready=0.6),
    )
    snapshot = a_snapshot(a_function(), hosts=(named("host-a", here),), in_flight={"busy": 1})
    placement = PlacementPlan(host="host-a", devices=("gpu-0",), evict=(Victim("old", "org/old", 90.0),))

    plan = plans.warm(a_function(), placement, {}, snapshot, index(snapshot))

    assert [(e.instance, e.rank) for e in plan.evictions] == [("old", 2)]
    assert [(c.function, c.protection) for c in plan.stays] == [("org/pinned", "pinned"), ("org/busy", "busy")]


def test_an_instance_that_the_agent_would_evict_does_not_stay_although_the_router_knows_no_use_of_it() -> None:
    here = a_host(
        an_instance("served", function="org/served", ready=NOW - 15),
        an_instance("pinned", function="org/pinned", ready=0.5, pinned=True),
    )
    snapshot = a_snapshot(a_function(), hosts=(named("host-a", here),))
    placement = PlacementPlan(host="host-a", devices=("gpu-0",), evict=(Victim("served", "org/served", 10.0),))

    plan = plans.warm(a_function(), placement, {}, snapshot, index(snapshot))

    assert [(e.function, e.idle_s, e.rank) for e in plan.evictions] == [("org/served", 10.0, 0)]
    assert [(c.function, c.protection) for c in plan.stays] == [("org/pinned", "pinned")]


def test_a_warm_that_no_host_can_run_is_impossible() -> None:
    snapshot = a_snapshot(a_function())

    plan = plans.warm(a_function(), None, {"host-a": "does not fit by 9000 MiB"}, snapshot, index(snapshot))

    assert (plan.effect, plan.start) == (Effect.IMPOSSIBLE, None)
    assert plan.refusals == {"host-a": "does not fit by 9000 MiB"}


def test_a_warm_of_a_ready_function_changes_nothing() -> None:
    snapshot = a_snapshot(a_function())

    plan = plans.warm(a_function(), PlacementPlan(host="host-a", there="one"), {}, snapshot, index(snapshot))

    assert plan.effect is Effect.NOTHING
    assert plan.start is not None
    assert plan.start.instance == "one"


def test_the_plan_of_a_cool_has_the_instances_with_their_requests() -> None:
    leaving = an_instance("two", state=State.DRAINING)
    snapshot = a_snapshot(a_function(), hosts=(a_host(an_instance(), leaving),), in_flight={"one": 3})

    plan = plans.cool(a_function(), snapshot, index(snapshot))

    one = AffectedInstance(instance="one", function="org/model", host="host-a", state="ready", in_flight=3)
    assert (plan.effect, plan.instances, plan.restarts) == (Effect.CHANGE, (one,), 0)


def test_a_cool_of_a_cold_function_changes_nothing() -> None:
    snapshot = a_snapshot(a_function(min=1), hosts=(a_host(),))

    plan = plans.cool(a_function(min=1), snapshot, index(snapshot))

    assert (plan.effect, plan.instances, plan.restarts) == (Effect.NOTHING, (), 0)


def test_a_cool_of_a_function_with_a_minimum_restarts_it() -> None:
    snapshot = a_snapshot(a_function(min=1), hosts=(a_host(an_instance()),))

    assert plans.cool(a_function(min=1), snapshot, index(snapshot)).restarts == 1


def test_a_pin_of_a_pinned_function_changes_nothing_and_an_unpin_does() -> None:
    snapshot = a_snapshot(a_function(pinned=True), hosts=(a_host(an_instance(pinned=True)),))
    pin = plans.pin(a_function(pinned=True), snapshot, index(snapshot))
    unpin = plans.unpin(a_function(pinned=True), snapshot, index(snapshot))

    assert (pin.effect, unpin.effect, unpin.idle_after_s) == (Effect.NOTHING, Effect.CHANGE, 300.0)
    assert [i.instance for i in pin.instances] == ["one"]


def test_the_plan_of_a_cordon_has_the_instances_that_keep_serving() -> None:
    snapshot = a_snapshot(hosts=(a_host(an_instance()),))
    cordoned = a_snapshot(hosts=(a_host(),), cordoned=("host-a",))

    plan = plans.cordon("host-a", snapshot, index(snapshot))

    assert (plan.effect, [i.instance for i in plan.instances]) == (Effect.CHANGE, ["one"])
    assert plans.cordon("host-a", cordoned, index(cordoned)).effect is Effect.NOTHING
    assert [plans.uncordon("host-a", s).effect for s in (snapshot, cordoned)] == [Effect.NOTHING, Effect.CHANGE]


def test_the_plan_of_a_drain_has_each_functions_destination() -> None:
    full = named("host-b", a_host(an_instance("big", function="org/big", memory_mb=9500, ready=NOW - 1)))
    roomy = named("host-c", a_host())
    coming = an_instance("three", function="org/coming", state=State.STARTING)
    leaves = named("host-a", a_host(an_instance(), an_instance("two", function="org/gone"), coming))
    snapshot = a_snapshot(a_function(), a_function("org/big"), hosts=(leaves, full, roomy), in_flight={"one": 1})

    plan = plans.drain(leaves, snapshot, index(snapshot))

    assert plan.moves == (
        Move(function="org/gone", outcome=Outcome.STOPS),
        Move(function="org/model", outcome=Outcome.MOVES, to="host-c", in_flight=1),
        Move(function="org/coming", outcome=Outcome.CANCELLED),
    )
    assert [i.instance for i in plan.instances] == ["one", "two", "three"]


def test_a_drain_without_room_elsewhere_lets_functions_go_cold() -> None:
    leaves = named("host-a", a_host(an_instance()))
    snapshot = a_snapshot(a_function(), hosts=(leaves,))

    assert plans.drain(leaves, snapshot, index(snapshot)).moves == (Move(function="org/model", outcome=Outcome.COLD),)


def test_the_plan_of_a_drain_has_the_evictions_on_other_hosts() -> None:
    leaves = named("host-a", a_host(an_instance("one", memory_mb=9000)))
    other = named("host-b", a_host(an_instance("old", function="org/old", memory_mb=9500, ready=1.0)))
    snapshot = a_snapshot(a_function(vram_mb=9000), a_function("org/old"), hosts=(leaves, other))

    assert plans.drain(leaves, snapshot, index(snapshot)).moves == (
        Move(function="org/model", outcome=Outcome.MOVES, to="host-b", evicts=("org/old",)),
    )


def test_a_drain_of_an_empty_cordoned_host_changes_nothing() -> None:
    snapshot = a_snapshot(hosts=(named("host-a", a_host()),), cordoned=("host-a",))

    plan = plans.drain(snapshot.fleet.hosts["host-a"], snapshot, index(snapshot))

    assert (plan.effect, plan.moves) == (Effect.NOTHING, ())
