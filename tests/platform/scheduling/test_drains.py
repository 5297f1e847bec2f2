"""Drains: eviction, reaping, `cool`, and the handshake with the routers."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function
from cortex.platform.agent_messages import Accepted, Rejected
from cortex.platform.fleet import Fleet
from cortex.platform.record import DrainReason, FailureKind, used_instance
from cortex.platform.scheduling.effects import CancelFetch, Reclaim, Spawn, Stop
from cortex.platform.scheduling.events import HostRead, StartWithdrawn
from cortex.platform.scheduling.placement import When
from cortex.platform.scheduling.scheduler import REPORTS_BACK_S
from tests.support.factories import a_device, a_fleet, a_host, a_report, an_instance
from tests.support.scheduling import (
    HERE,
    ON_CPU,
    OTHER,
    SMALL,
    TWO_GPUS,
    F,
    G,
    SchedulerDriver,
    a_scheduler,
    bring_up,
    clear_away,
    decisions,
    instance_of,
    look,
    new_effects,
    start,
    states,
)

# Eviction and the drain handshake


def evicting() -> SchedulerDriver:
    """At 100, `one` of F drains (epoch 1) so that `two` of G fits."""
    scheduler = a_scheduler()
    bring_up(scheduler)
    assert scheduler.ensure(G, HERE, "two", 100.0) == Accepted("two", State.PLACING)
    scheduler.take_effects()
    return scheduler


def test_an_eviction_begins_by_asking_the_routers_to_look_again() -> None:
    scheduler = evicting()

    victim = instance_of(scheduler)
    assert (victim.state, victim.why, victim.epoch, victim.deadline) == (
        State.DRAINING,
        "evicted for g",
        1,
        160.0,
    )
    assert scheduler.record().epoch == 1
    assert instance_of(scheduler, "two").waits_for == ("one",)


def test_an_eviction_is_logged() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)

    scheduler.ensure(G, HERE, "two", 100.0)

    assert decisions(scheduler) == [("evicted", "one", "for g"), ("placed", "two", "on gpu-0")]


@pytest.mark.parametrize(
    "fleet",
    [
        a_fleet(a_report(seen=0)),
        a_fleet(a_report("a", seen=1), a_report("b", seen=0)),
        a_fleet(a_report("a", seen=1), replace(a_report("b"), seen={"host-b": 9})),
        a_fleet(a_report(seen=1, in_flight={"one": 1})),
        a_fleet(a_report("a", seen=1), a_report("b", seen=1, in_flight={"one": 1})),
    ],
)
def test_a_victim_drains_until_every_router_has_released_it(fleet: Fleet) -> None:
    scheduler = evicting()

    scheduler.reported(fleet, 101.0)

    assert new_effects(scheduler) == []
    assert states(scheduler) == {"one": State.DRAINING, "two": State.PLACING}


@pytest.mark.parametrize(
    "fleet",
    [
        a_fleet(a_report(seen=1)),
        a_fleet(a_report("a", seen=1), a_report("b", seen=5)),
        a_fleet(a_report(seen=1, in_flight={"one": 0, "another": 3})),
        a_fleet(),
    ],
)
def test_a_victim_is_stopped_when_every_live_router_has_released_it(fleet: Fleet) -> None:
    scheduler = evicting()

    scheduler.reported(fleet, 101.0)

    assert look(scheduler, 101.0) == [Stop(instance_of(scheduler), 5.0)]
    assert states(scheduler) == {"one": State.STOPPING, "two": State.PLACING}


def test_a_start_waits_until_the_memory_is_back() -> None:
    scheduler = evicting()
    scheduler.reported(a_fleet(a_report(seen=1)), 101.0)
    look(scheduler, 101.0)

    scheduler.exited("one", "exited with 0", (), 102.0)
    before = new_effects(scheduler)
    scheduler.reclaimed("one", 103.0)

    assert [type(effect) for effect in before] == [Reclaim]
    assert new_effects(scheduler) == [Spawn(instance_of(scheduler, "two"), G, HERE)]
    assert states(scheduler) == {"two": State.STARTING}


def test_the_drain_of_a_victim_that_stays_busy_is_cancelled_after_the_grace_period() -> None:
    scheduler = evicting()

    scheduler.reported(a_fleet(a_report(seen=1, in_flight={"one": 2})), 159.9)
    before = states(scheduler)
    scheduler.reported(a_fleet(a_report(seen=1, in_flight={"one": 2})), 160.0)

    assert before == {"one": State.DRAINING, "two": State.PLACING}
    assert instance_of(scheduler).state is State.READY
    assert (instance_of(scheduler).epoch, instance_of(scheduler).why, instance_of(scheduler).deadline) == (2, "", 0.0)
    assert ("drain_cancelled", "one", "still 2 requests in flight after the grace period") in decisions(scheduler)


def test_a_start_whose_victim_stays_is_placed_again_and_rejected() -> None:
    scheduler = evicting()

    scheduler.reported(a_fleet(a_report(seen=1, in_flight={"one": 2})), 160.0)

    (failure,) = scheduler.record().failures
    assert states(scheduler) == {"one": State.READY}
    assert (failure.function, failure.kind) == ("g", FailureKind.ROOM)


def test_a_start_whose_victim_stays_may_evict_another() -> None:
    scheduler = a_scheduler(TWO_GPUS)
    bring_up(scheduler, F, "one", 0.0)
    bring_up(scheduler, replace(F, id="h"), "three", 0.0)
    scheduler.reported(a_fleet(a_report(), used={used_instance("three"): 50.0}), 99.0)
    scheduler.ensure(G, HERE, "two", 100.0)

    scheduler.reported(a_fleet(a_report(seen=1, in_flight={"one": 1})), 160.0)

    assert states(scheduler) == {"one": State.READY, "three": State.DRAINING, "two": State.PLACING}
    assert (instance_of(scheduler, "two").devices, instance_of(scheduler, "two").waits_for) == (("gpu-1",), ("three",))


def test_the_drain_of_a_victim_is_not_cancelled_while_a_start_waits_for_its_room() -> None:
    scheduler = evicting()

    answer = scheduler.ensure(F, HERE, "three", 101.0)

    assert isinstance(answer, Rejected)
    assert states(scheduler) == {"one": State.DRAINING, "two": State.PLACING}


def test_a_busy_instance_is_never_evicted() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.reported(a_fleet(a_report(in_flight={"one": 1})), 100.0)

    assert isinstance(scheduler.ensure(G, HERE, "two", 100.0), Rejected)
    assert states(scheduler) == {"one": State.READY}


def test_a_just_loaded_instance_is_not_evicted_before_its_first_request() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, now=100.0)

    assert isinstance(scheduler.ensure(G, HERE, "two", 129.9), Rejected)
    assert scheduler.ensure(G, HERE, "two", 130.0) == Accepted("two", State.PLACING)


# Reaping


def test_an_idle_instance_is_reaped() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)

    scheduler.reconcile(299.9)
    before = states(scheduler)
    scheduler.reconcile(300.0)

    assert before == {"one": State.READY}
    assert (instance_of(scheduler).state, instance_of(scheduler).why) == (State.DRAINING, "idle")


def test_idling_begins_at_the_last_use() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)

    scheduler.reported(a_fleet(a_report(), used={used_instance("one"): 100.0}), 399.9)
    before = states(scheduler)
    scheduler.reconcile(400.0)

    assert before == {"one": State.READY}
    assert states(scheduler) == {"one": State.DRAINING}


@pytest.mark.parametrize(
    ("function", "fleet"),
    [
        (F, a_fleet(a_report(in_flight={"one": 1}))),
        (F, a_fleet(a_report(waiting={"f": 1}))),
        (F, None),
        (replace(F, pinned_on=("host-a",)), a_fleet(a_report())),
        (replace(F, min=1), a_fleet(a_report())),
        (replace(F, idle_after_s=9000.0), a_fleet(a_report())),
    ],
    ids=["busy", "waited for", "usage unknown", "pinned", "its function's minimum", "patient"],
)
def test_an_instance_is_not_reaped_that_is(function: Function, fleet: Fleet | None) -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, function)

    scheduler.reported(fleet, 1000.0)

    assert states(scheduler) == {"one": State.READY}


def test_a_minimum_counts_the_instances_of_all_hosts_and_keeps_those_of_lowest_id() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, replace(F, min=1, max=2), "m")
    lower, higher = (
        replace(a_host(an_instance(i, function="f", ready=1.0)), name="host-b", address="http://host-b:13131")
        for i in ("a", "z")
    )

    scheduler.reported(replace(a_fleet(a_report()), hosts={"host-b": higher}), 1000.0)
    beside_a_higher = states(scheduler)
    scheduler.reported(replace(a_fleet(a_report()), hosts={"host-b": lower}), 2000.0)

    assert beside_a_higher == {"m": State.READY}
    assert states(scheduler) == {"m": State.DRAINING}


def test_an_instance_that_never_idles_long_serves_the_request_it_was_started_for() -> None:
    scheduler = a_scheduler(fleet=a_fleet(a_report(waiting={"f": 1})))

    bring_up(scheduler, replace(F, idle_after_s=0.0))

    assert states(scheduler) == {"one": State.READY}


def reaping() -> SchedulerDriver:
    """At 300, `one` of F begins to drain (epoch 1) for having idled."""
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.reconcile(300.0)
    scheduler.take_effects()
    return scheduler


def test_a_reap_that_meets_a_request_in_flight_takes_its_drain_back() -> None:
    scheduler = reaping()

    scheduler.reported(a_fleet(a_report(seen=0, in_flight={"one": 1})), 300.5)

    assert (instance_of(scheduler).state, instance_of(scheduler).epoch) == (State.READY, 2)
    assert decisions(scheduler) == [("drain_cancelled", "one", "a request is in flight")]


def test_a_reap_is_cancelled_when_the_function_is_requested_again() -> None:
    scheduler = reaping()

    answer = scheduler.ensure(F, HERE, "two", 300.5)
    scheduler.reconcile(301.0)

    assert answer == Accepted("one", State.READY)
    assert states(scheduler) == {"one": State.READY}
    assert instance_of(scheduler).epoch == 2


def test_an_instance_whose_drain_was_cancelled_starts_its_idle_time_again() -> None:
    scheduler = reaping()
    scheduler.ensure(F, HERE, "two", 300.5)

    scheduler.reconcile(600.4)
    before = states(scheduler)
    scheduler.reconcile(600.5)

    assert before == {"one": State.READY}
    assert states(scheduler) == {"one": State.DRAINING}


def test_a_start_does_not_wait_for_a_reap_when_there_is_room_for_both() -> None:
    scheduler = a_scheduler(ON_CPU)
    bring_up(scheduler, SMALL)
    scheduler.reconcile(300.0)

    answer = scheduler.ensure(OTHER, HERE, "two", 300.5)
    scheduler.reported(a_fleet(a_report(in_flight={"one": 1})), 301.0)

    assert answer == Accepted("two", State.STARTING)
    assert states(scheduler) == {"one": State.READY, "two": State.STARTING}


def test_a_reap_that_is_acknowledged_stops_the_worker_and_ends_without_a_failure() -> None:
    scheduler = reaping()

    scheduler.reported(a_fleet(a_report(seen=1)), 301.0)
    stopped = look(scheduler, 301.0)
    clear_away(scheduler, now=302.0)

    assert [type(effect) for effect in stopped + new_effects(scheduler)] == [Stop, Reclaim]
    assert states(scheduler) == {}
    assert scheduler.record().failures == ()


# The record is away


def test_no_instance_is_drained_or_evicted_while_the_record_is_away() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)

    scheduler.reported(None, 1000.0)

    assert isinstance(scheduler.ensure(G, HERE, "two", 1000.0), Rejected)
    assert states(scheduler) == {"one": State.READY}


def test_while_the_record_is_away_a_drain_is_cancelled_after_the_grace_period() -> None:
    scheduler = reaping()

    scheduler.reported(None, 310.0)
    meanwhile = states(scheduler)
    scheduler.reported(None, 360.0)

    assert meanwhile == {"one": State.DRAINING}
    assert states(scheduler) == {"one": State.READY}


def test_free_room_is_still_used_while_the_record_is_away() -> None:
    scheduler = a_scheduler()
    scheduler.reported(None, 10.0)

    assert scheduler.ensure(F, HERE, "one", 10.0) == Accepted("one", State.STARTING)


def test_after_an_empty_record_no_instance_is_idle_until_routers_had_time_to_report() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.reported(None, 1000.0)

    scheduler.reported(a_fleet(), 1000.0 + REPORTS_BACK_S - 0.1)
    at_first = states(scheduler)
    scheduler.reported(a_fleet(a_report(in_flight={"one": 1})), 1000.0 + REPORTS_BACK_S)

    assert at_first == {"one": State.READY}
    assert states(scheduler) == {"one": State.READY}


def test_a_record_that_was_emptied_has_forgotten_the_routers_too() -> None:
    scheduler = reaping()
    record = scheduler.record()
    with_the_host = replace(a_fleet(a_report(seen=0, in_flight={"one": 1})), hosts={record.name: record})
    scheduler.cool(F.id, 300.4)
    scheduler.reported(with_the_host, 300.5)

    scheduler.reported(a_fleet(), 301.0)
    forgotten = states(scheduler)
    scheduler.reported(with_the_host, 301.0 + REPORTS_BACK_S)

    assert forgotten == {"one": State.DRAINING}
    assert states(scheduler) == {"one": State.DRAINING}


# cool


def test_cool_of_a_fetch_gives_it_up() -> None:
    scheduler = a_scheduler()
    scheduler.ensure(F, None, "one", 0.0)
    scheduler.take_effects()

    assert scheduler.cool("f", 10.0) == ["one"]
    assert states(scheduler) == {}
    assert [type(e) for e in new_effects(scheduler)] == [CancelFetch]
    assert [f.kind for f in scheduler.record().failures] == [FailureKind.CANCELLED]


def test_cool_of_one_that_waits_for_room_gives_it_up_and_its_victim_stays() -> None:
    scheduler = evicting()

    assert scheduler.cool("g", 101.0) == ["two"]
    assert states(scheduler) == {"one": State.READY}


def test_cool_of_a_start_stops_the_worker() -> None:
    scheduler = a_scheduler()
    start(scheduler)

    assert scheduler.cool("f", 10.0) == ["one"]
    assert new_effects(scheduler) == [Stop(instance_of(scheduler), 5.0)]
    assert (instance_of(scheduler).state, instance_of(scheduler).why) == (State.STOPPING, "cool")


def test_cool_of_a_ready_instance_waits_for_its_requests() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)

    assert scheduler.cool("f", 10.0) == ["one"]
    assert new_effects(scheduler) == []
    assert (instance_of(scheduler).state, instance_of(scheduler).why, instance_of(scheduler).deadline) == (
        State.DRAINING,
        "cool",
        70.0,
    )


def test_cool_waits_to_the_grace_and_then_lets_the_busy_serve_on() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.cool("f", 10.0)

    scheduler.reported(a_fleet(a_report(seen=1, in_flight={"one": 1})), 69.9)
    before = states(scheduler)
    scheduler.reported(a_fleet(a_report(seen=1, in_flight={"one": 1})), 70.0)

    assert before == {"one": State.DRAINING}
    assert states(scheduler) == {"one": State.READY}


@pytest.mark.parametrize("prepare", [bring_up, start])
def test_cool_at_once_does_not_wait(prepare: Callable[[SchedulerDriver], None]) -> None:
    scheduler = a_scheduler(fleet=a_fleet(a_report(in_flight={"one": 1})))
    prepare(scheduler)

    assert scheduler.cool("f", 10.0, at_once=True) == ["one"]
    assert new_effects(scheduler) == [Stop(instance_of(scheduler), 5.0)]


def test_cool_at_once_ends_a_drain() -> None:
    scheduler = a_scheduler(fleet=a_fleet(a_report(in_flight={"one": 1})))
    bring_up(scheduler)
    scheduler.cool("f", 10.0)

    assert scheduler.cool("f", 11.0, at_once=True) == ["one"]
    assert states(scheduler) == {"one": State.STOPPING}


def test_cool_of_a_stopping_instance_does_nothing() -> None:
    scheduler = a_scheduler()
    start(scheduler)
    scheduler.cool("f", 10.0)
    scheduler.take_effects()

    assert scheduler.cool("f", 11.0) == []
    assert scheduler.cool("f", 11.0, at_once=True) == []
    assert new_effects(scheduler) == []


def test_cool_does_not_affect_other_functions() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, SMALL, "one")
    bring_up(scheduler, OTHER, "two")

    assert scheduler.cool("small", 10.0) == ["one"]
    assert states(scheduler) == {"one": State.DRAINING, "two": State.READY}
    assert scheduler.cool("org/unknown", 10.0) == []


def test_a_request_during_a_cool_starts_another_instance() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, SMALL)
    scheduler.cool("small", 10.0)

    assert scheduler.ensure(SMALL, HERE, "two", 11.0) == Accepted("two", State.STARTING)


def test_the_drain_of_a_replaced_instance_is_not_cancelled() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, SMALL)
    scheduler.cool("small", 10.0)
    bring_up(scheduler, SMALL, "two", 11.0)

    scheduler.reported(a_fleet(a_report(seen=1, in_flight={"one": 1})), 200.0)

    assert states(scheduler) == {"one": State.DRAINING, "two": State.READY}


def test_the_replacement_is_abandoned_when_a_drain_is_cancelled() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.cool("f", 10.0)
    placing = scheduler.ensure(F, HERE, "two", 11.0)

    scheduler.reported(a_fleet(a_report(seen=1, in_flight={"one": 1})), 70.0)

    assert placing == Accepted("two", State.PLACING)
    assert states(scheduler) == {"one": State.READY}
    assert scheduler.record().failures == ()


# Emptying a host


def test_a_host_drain_lets_everyone_go_after_their_requests_and_takes_nothing_new() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, SMALL, "one")
    start(scheduler, OTHER, "two")

    assert scheduler.drain(10.0) == ["one", "two"]
    assert states(scheduler) == {"one": State.DRAINING, "two": State.STOPPING}
    assert scheduler.ensure(F, HERE, "three", 10.0) == Rejected("the host is cordoned", When.LATER)


def test_a_request_does_not_cancel_a_drain_of_the_host() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.drain(10.0)

    assert scheduler.ensure(F, HERE, "two", 11.0) == Rejected("the host is cordoned", When.LATER)
    assert states(scheduler) == {"one": State.DRAINING}


def test_requests_for_a_start_on_a_draining_host_may_try_another_host() -> None:
    scheduler = a_scheduler()
    start(scheduler)

    scheduler.drain(10.0)

    assert [f.kind for f in scheduler.record().failures] == [FailureKind.ROOM]


def test_what_the_agent_reads_of_its_host_replaces_only_that() -> None:
    scheduler = a_scheduler()
    sizes = {"f": 1000}

    scheduler.handle(HostRead(weights=sizes), 0.0)
    scheduler.handle(HostRead(problems=("the disk is full",), problem=""), 0.0)
    sizes["g"] = 1

    record = scheduler.record()
    assert (record.weights, record.problems, record.devices) == ({"f": 1000}, ("the disk is full",), a_host().devices)


def test_new_readings_of_the_devices_are_used() -> None:
    scheduler = a_scheduler()

    scheduler.handle(HostRead(devices=(a_device(total_mb=100),)), 0.0)

    assert isinstance(scheduler.ensure(F, HERE, "one", 0.0), Rejected)
    assert scheduler.record().devices == (a_device(total_mb=100),)


def test_one_evicted_in_the_same_breath_in_which_it_would_be_reaped_is_evicted() -> None:
    scheduler = a_scheduler(TWO_GPUS, a_fleet(a_report(in_flight={"busy": 1})))
    bring_up(scheduler, F, "one")
    bring_up(scheduler, replace(F, id="h"), "busy")
    scheduler.ensure(G, HERE, "two", 100.0)  # evicts `one`
    scheduler.cool("h", 101.0, at_once=True)
    clear_away(scheduler, "busy", 102.0)
    bring_up(scheduler, replace(F, id="k", idle_after_s=1.0), "three", 103.0)

    scheduler.reported(a_fleet(a_report(in_flight={"one": 1})), 160.0)  # `one` stays: `two` looks again

    assert states(scheduler) == {"one": State.READY, "two": State.PLACING, "three": State.DRAINING}
    assert (instance_of(scheduler, "three").why, instance_of(scheduler, "three").epoch) == ("evicted for g", 3)


def test_a_start_that_was_not_recorded_at_once_and_is_ready_meanwhile_finishes_its_requests() -> None:
    scheduler = a_scheduler(a_host())
    bring_up(scheduler, F, "one", 0.0)

    scheduler.handle(StartWithdrawn("one"), 1.0)

    assert states(scheduler) == {"one": State.DRAINING}
    assert instance_of(scheduler).reason is DrainReason.UNRECORDED


def test_a_start_that_was_not_recorded_ends_at_once_before_it_is_ready() -> None:
    scheduler = a_scheduler(a_host())
    scheduler.ensure(F, HERE, "one", 0.0)

    scheduler.handle(StartWithdrawn("one"), 1.0)

    assert states(scheduler) == {"one": State.STOPPING}
