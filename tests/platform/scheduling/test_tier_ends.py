"""Parked instances that end: by request, by a failure, by their death, and over a restart of their agent."""

from typing import Any

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function, Park, revision
from cortex.platform.agent_messages import Accepted
from cortex.platform.record import DrainReason, Instance, Tier
from cortex.platform.scheduling import events
from cortex.platform.scheduling.effects import Stop
from cortex.platform.scheduling.ledger import Costs, Entry
from cortex.platform.scheduling.parking import admitted_mb
from cortex.platform.scheduling.reconcile import STALL_S
from cortex.platform.scheduling.saved_state import SavedWorker
from cortex.platform.scheduling.steps import HUNG_GRACE_S, drain
from tests.support.factories import a_device, a_fleet, a_process, a_report
from tests.support.scheduling import (
    SchedulerDriver,
    a_scheduler,
    clear_away,
    decisions,
    instance_of,
    look,
    states,
)
from tests.support.tiers import (
    FREEZES,
    HERE,
    SLEEPS,
    WIDE,
    F,
    G,
    a_tiered,
    bring_up,
    drained,
    evicting,
    put_to_sleep,
    rehearse,
    report,
    ticks,
)

# Ends.


@pytest.mark.parametrize("at_once", [False, True])
def test_cool_stops_a_sleeper(at_once: bool) -> None:
    scheduler = a_tiered()
    put_to_sleep(scheduler, F, "one", 0.0)

    assert scheduler.cool("f", 10.0, at_once=at_once) == ["one"]

    assert states(scheduler) == {"one": State.STOPPING}
    assert instance_of(scheduler).held_mb == 1500


def test_cool_with_park_leaves_a_sleeper_and_stops_what_has_no_tier() -> None:
    scheduler = a_tiered()
    put_to_sleep(scheduler, F, "one", 0.0)
    bring_up(scheduler, replace(G, park=Park.STOP, vram_mb=1000), "two", 10.0)

    scheduler.cool("f", 20.0, park=True)
    scheduler.cool("g", 20.0, park=True)
    drained(scheduler, 20.0)

    assert states(scheduler) == {"one": State.SLEEPING, "two": State.STOPPING}


@pytest.mark.parametrize("reason", [DrainReason.SUPERSEDED, DrainReason.HOST_DRAIN, DrainReason.MOVED])
def test_cool_with_park_stops_what_is_not_to_return(reason: DrainReason) -> None:
    scheduler = a_tiered()
    bring_up(scheduler)
    report(scheduler, 1.0, in_flight={"one": 1})
    drain(scheduler.scheduler.state, instance_of(scheduler), reason, 1.0)

    scheduler.cool("f", 2.0, park=True)
    drained(scheduler, 3.0)

    assert states(scheduler) == {"one": State.STOPPING}


def test_cool_with_park_keeps_no_memory_that_another_waits_for() -> None:
    """9,500 MiB of `wide` do not fit beside a sleeper."""
    scheduler = a_tiered()
    bring_up(scheduler)
    rehearse(scheduler, "one", 50.0)
    scheduler.ensure(WIDE, HERE, "two", 100.0)

    scheduler.cool("f", 101.0, park=True)
    drained(scheduler, 102.0)

    assert states(scheduler) == {"one": State.STOPPING, "two": State.PLACING}


def test_a_drain_of_the_host_stops_its_sleepers() -> None:
    scheduler = a_tiered()
    put_to_sleep(scheduler, F, "one", 0.0)

    assert scheduler.drain(10.0) == ["one"]

    assert states(scheduler) == {"one": State.STOPPING}


def test_on_a_cordoned_host_nothing_is_parked() -> None:
    """A request outlasts the drain of the host, and ends."""
    scheduler = a_tiered(devices=(a_device("gpu-0", 20_000),))
    put_to_sleep(scheduler, G, "asleep", 0.0)
    bring_up(scheduler, F, "one", 10.0)
    report(scheduler, 20.0, in_flight={"one": 1})
    scheduler.drain(21.0)
    report(scheduler, 90.0, in_flight={"one": 1})
    assert states(scheduler)["one"] is State.READY

    cordoned(scheduler, 10_000.0)
    cordoned(scheduler, 10_001.0)

    assert states(scheduler) == {"asleep": State.STOPPING, "one": State.STOPPING}


def test_parked_instances_of_a_host_that_is_cordoned_stop() -> None:
    scheduler = a_tiered(devices=(a_device("gpu-0", 20_000),))
    put_to_sleep(scheduler, F, "one", 0.0)
    bring_up(scheduler, G, "two", 10.0)
    scheduler.cool("g", 11.0, park=True)
    drained(scheduler, 11.0)
    assert states(scheduler) == {"one": State.SLEEPING, "two": State.PARKING}

    cordoned(scheduler, 12.0)
    cordoned(scheduler, 13.0)

    assert states(scheduler) == {"one": State.STOPPING, "two": State.STOPPING}


@pytest.mark.parametrize("catalogue", [{}, {"f": replace(F, args=("--other",))}])
def test_a_sleeper_whose_revision_is_gone_stops(catalogue: dict[str, Function]) -> None:
    scheduler = a_tiered()
    put_to_sleep(scheduler, F, "one", 0.0)

    scheduler.apply_catalogue(catalogue, "new", 10.0)

    assert states(scheduler) == {"one": State.STOPPING}


# Failures.


def test_a_park_that_fails_stops_the_instance_and_is_not_tried_again() -> None:
    scheduler = a_tiered()
    bring_up(scheduler)
    scheduler.cool("f", 1.0, park=True)
    drained(scheduler, 1.0)

    scheduler.park_failed("one", Tier.SLEEP, "HTTP 500", 2.0)

    assert states(scheduler) == {"one": State.STOPPING}
    assert scheduler.record().unparkable == {revision(F): {Tier.SLEEP: "HTTP 500"}}
    assert scheduler.saved_state().unparkable == scheduler.record().unparkable
    assert ("park_failed", "one", "to sleep: HTTP 500") in decisions(scheduler)
    assert not scheduler.record().failures, "its starts do not fail"
    clear_away(scheduler, "one", 3.0)
    bring_up(scheduler, F, "two", 4.0)
    report(scheduler, 5.0)
    assert instance_of(scheduler, "two").tiers == ()

    scheduler.clear_failures("f")
    report(scheduler, 6.0)
    assert instance_of(scheduler, "two").tiers == (Tier.SLEEP,)


def test_a_return_that_fails_is_replaced_by_a_start() -> None:
    scheduler = a_tiered()
    put_to_sleep(scheduler, F, "one", 1.0)
    scheduler.ensure(F, None, "two", 10.0)

    scheduler.start_failed("one", "the canary's tokens differ", (), 11.0)

    (failure,) = scheduler.record().failures
    assert (failure.served, failure.retry_at) == (True, 0.0), "routers start another for the requests that wait"
    clear_away(scheduler, "one", 12.0)
    assert scheduler.ensure(F, HERE, "three", 12.0) == Accepted("three", State.STARTING)
    assert scheduler.record().unparkable == {revision(F): {Tier.SLEEP: "the canary's tokens differ"}}


@pytest.mark.parametrize("state", [State.PARKING, State.SLEEPING, State.PLACING, State.STARTING])
def test_a_worker_that_dies_in_any_tier_is_reclaimed(state: State) -> None:
    scheduler = evicting()
    drained(scheduler, 101.0)
    if state is not State.PARKING:
        scheduler.parked("one", Tier.SLEEP, 101.4, device_mb=1500, ram_mb=3000)
        scheduler.answered("two", 110.0)
    if state in (State.PLACING, State.STARTING):
        scheduler.ensure(F, None, "three", 200.0)
        assert states(scheduler)["one"] is State.PLACING
    if state is State.STARTING:
        drained(scheduler, 201.0)
        scheduler.parked("two", Tier.SLEEP, 201.4, device_mb=1500, ram_mb=3000)
    assert states(scheduler)["one"] is state

    scheduler.exited("one", "was killed by signal 9", (), 210.0)

    assert states(scheduler)["one"] is State.RECLAIMING
    scheduler.reclaimed("one", 211.0)
    assert "one" not in states(scheduler)


def returning() -> SchedulerDriver:
    """At 200, `one` waits for its room until `two` is asleep."""
    scheduler = evicting()
    drained(scheduler, 101.0)
    scheduler.parked("one", Tier.SLEEP, 101.4, device_mb=1500, ram_mb=3000)
    scheduler.answered("two", 110.0)
    rehearse(scheduler, "two", 150.0)
    assert scheduler.ensure(F, None, "three", 200.0) == Accepted("one", State.PLACING)
    drained(scheduler, 200.0)
    assert states(scheduler) == {"one": State.PLACING, "two": State.PARKING}
    return scheduler


@pytest.mark.parametrize("stops", [True, False])
def test_one_that_ends_while_it_returns_takes_no_room_of_its_victim(stops: bool) -> None:
    """More stays of `two` than was expected."""
    scheduler = returning()
    if stops:
        scheduler.cool("f", 201.0)
    else:
        scheduler.exited("one", "was killed by signal 9", (), 201.0)

    scheduler.parked("two", Tier.SLEEP, 202.0, device_mb=5000, ram_mb=3000)

    assert instance_of(scheduler).waits_for == ()
    assert states(scheduler) == {"one": State.STOPPING if stops else State.RECLAIMING, "two": State.SLEEPING}


@pytest.mark.parametrize("adopted", [False, True])
def test_a_sleeper_that_died_holds_no_memory_for_its_tier(adopted: bool) -> None:
    scheduler = a_tiered()
    if adopted:
        scheduler.adopt(saved(State.SLEEPING), 10.0, alive=False, healthy=False)
    else:
        put_to_sleep(scheduler, F, "one", 0.0)
        scheduler.exited("one", "was killed by signal 9", (), 10.0)

    assert (instance_of(scheduler).state, instance_of(scheduler).parks_to) == (State.RECLAIMING, None)
    assert admitted_mb(instance_of(scheduler)) == 0


def test_the_ram_of_one_that_dies_while_it_parks_is_waited_for() -> None:
    """The RAM is enough for one of them."""
    scheduler = a_tiered(ram_mb=5000, devices=(a_device("gpu-0", 20_000),))
    bring_up(scheduler)
    bring_up(scheduler, G, "two", 1.0)
    scheduler.cool("f", 2.0, park=True)
    drained(scheduler, 2.0)
    scheduler.exited("one", "was killed by signal 9", (), 3.0)

    scheduler.cool("g", 3.0, park=True)
    drained(scheduler, 3.5)

    assert states(scheduler) == {"one": State.RECLAIMING, "two": State.DRAINING}
    scheduler.reclaimed("one", 4.0)
    drained(scheduler, 4.0)
    assert states(scheduler) == {"two": State.PARKING}


def test_an_exit_of_one_that_is_only_placed_counts_for_nothing() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.ensure(G, HERE, "two", 100.0)

    scheduler.exited("two", "exited with 1", (), 101.0)

    assert states(scheduler)["two"] is State.PLACING


def hanging(worked: bool) -> SchedulerDriver:
    """At 100, `one` of F goes to sleep for `two` of G. If it `worked`, an earlier sleep took 0.4 s, a return 0.5 s."""
    scheduler = evicting()
    if worked:
        entry = Entry(tiers={Tier.SLEEP: Costs(park_s=0.4, return_s=0.5)})
        scheduler.handle(events.LedgerRead({revision(F): entry}), 100.0)
    drained(scheduler, 100.0)
    assert states(scheduler) == {"one": State.PARKING, "two": State.PLACING}
    return scheduler


@pytest.mark.parametrize(("worked", "limit_s"), [(True, 6.2), (False, 9.0)])
def test_a_victim_that_hangs_on_its_way_to_sleep_is_stopped_soon(worked: bool, limit_s: float) -> None:
    """Three times as long as the last time and 5 s; unmeasured, 5 s and the time for 2,000 MiB at 500 MiB/s."""
    scheduler = hanging(worked)

    ticks(scheduler, 100.0, 100.0 + limit_s - 0.1)
    before = states(scheduler)
    ticks(scheduler, 100.0 + limit_s - 0.1, 100.0 + limit_s + 0.1)

    assert before == {"one": State.PARKING, "two": State.PLACING}
    assert states(scheduler) == {"one": State.STOPPING, "two": State.PLACING}
    (stop,) = (e for e in scheduler.take_effects() if isinstance(e, Stop))
    assert stop.grace_s == HUNG_GRACE_S
    clear_away(scheduler, "one", 112.0)
    assert states(scheduler) == {"two": State.STARTING}


@pytest.mark.parametrize("worked", [True, False])
def test_a_worker_that_hangs_costs_its_revision_a_tier_only_where_that_never_worked(worked: bool) -> None:
    scheduler = hanging(worked)

    ticks(scheduler, 100.0, 120.0)

    assert set(scheduler.record().unparkable) == (set() if worked else {revision(F)})
    assert ("park_failed", "one") in [d[:2] for d in decisions(scheduler)]


def test_a_sleeper_that_hangs_on_its_way_back_is_replaced_by_a_start() -> None:
    scheduler = a_tiered()
    put_to_sleep(scheduler, F, "one", 1.0)
    scheduler.handle(events.LedgerRead({revision(F): Entry(tiers={Tier.SLEEP: Costs(return_s=0.5)})}), 10.0)
    scheduler.ensure(F, None, "two", 10.0)
    assert states(scheduler) == {"one": State.STARTING}

    ticks(scheduler, 10.0, 16.4)
    before = states(scheduler)
    ticks(scheduler, 16.4, 16.6)

    assert (before, states(scheduler)) == ({"one": State.STARTING}, {"one": State.STOPPING})
    (failure,) = scheduler.record().failures
    assert (failure.retry_at, "did not return from sleep within 6 s" in failure.reason) == (0.0, True)


def test_a_move_that_ended_while_the_machine_stood_still_has_ended() -> None:
    scheduler = a_tiered()
    put_to_sleep(scheduler, F, "one", 1.0)
    scheduler.ensure(F, None, "two", 10.0)

    report(scheduler, 10_000.0)
    scheduler.answered("one", 10_000.0)

    assert states(scheduler) == {"one": State.READY}


def test_a_worker_that_hangs_is_stopped_after_a_stall_too() -> None:
    scheduler = a_tiered()
    put_to_sleep(scheduler, F, "one", 1.0)
    scheduler.ensure(F, None, "two", 10.0)

    ticks(scheduler, 10_000.0, 10_000.0 + STALL_S)

    assert states(scheduler) == {"one": State.STOPPING}


def test_a_freeze_may_wait_for_work_in_progress() -> None:
    scheduler = a_tiered(FREEZES)
    put_to_sleep(scheduler, F, "one", 0.0)
    entry = Entry(tiers={Tier.FREEZE: Costs(park_s=1.5)})
    scheduler.handle(events.LedgerRead({revision(F): entry}), 99.0)
    scheduler.ensure(WIDE, HERE, "two", 100.0)

    ticks(scheduler, 100.0, 119.0)
    before = states(scheduler)
    ticks(scheduler, 119.0, 120.0)

    assert before == {"one": State.PARKING, "two": State.PLACING}
    assert states(scheduler) == {"one": State.STOPPING, "two": State.PLACING}


def test_after_a_start_with_sleep_mode_that_crashed_the_next_starts_without_it() -> None:
    scheduler = a_tiered()
    scheduler.ensure(F, HERE, "one", 0.0)
    scheduler.spawned("one", a_process(7), "http://127.0.0.1:1", 1.0)

    scheduler.exited("one", "exited with code 1", [], 2.0)

    assert scheduler.record().unparkable == {revision(F): {Tier.SLEEP: "the worker exited with code 1 while starting"}}


# The agent's restart.


def saved(state: State, **rest: Any) -> SavedWorker:
    scheduler = a_tiered()
    put_to_sleep(scheduler, F, "one", 0.0)
    return SavedWorker(replace(instance_of(scheduler), state=state, **rest), F, HERE)


def cordoned(scheduler: SchedulerDriver, now: float) -> None:
    """The record says that the host is cordoned, and its drains end."""
    router = a_report(seen=scheduler.record().epoch)
    scheduler.reported(replace(a_fleet(router, cordoned=True), at=now), now)
    look(scheduler, now)


RETURNING = {"parked": None, "parks_to": Tier.SLEEP}


@pytest.mark.parametrize(
    ("worker", "asleep", "state", "tier"),
    [
        (saved(State.SLEEPING), True, State.SLEEPING, Tier.SLEEP),
        (saved(State.PARKING, parked=None), True, State.SLEEPING, Tier.SLEEP),
        (saved(State.PLACING), True, State.SLEEPING, Tier.SLEEP),
        (saved(State.STARTING, **RETURNING), True, State.SLEEPING, Tier.SLEEP),
        (saved(State.STARTING, **RETURNING), False, State.READY, None),
        (saved(State.PARKING, parked=None), False, State.READY, None),
        (saved(State.FROZEN, parked=Tier.FREEZE, parks_to=Tier.FREEZE), True, State.FROZEN, Tier.FREEZE),
        (saved(State.SLEEPING), None, State.STOPPING, None),
        (saved(State.FROZEN, parked=Tier.FREEZE, parks_to=Tier.FREEZE), None, State.STOPPING, None),
        (saved(State.SLEEPING, parked=Tier.OTHER, parks_to=Tier.OTHER), True, State.STOPPING, None),
    ],
)
def test_a_restarted_agent_takes_a_parked_worker_over_as_it_is(
    worker: SavedWorker, asleep: bool | None, state: State, tier: Tier | None
) -> None:
    scheduler = a_tiered()

    scheduler.adopt(worker, 10.0, alive=True, healthy=asleep is False, asleep=asleep)

    instance: Instance = instance_of(scheduler)
    assert (instance.state, instance.parks_to) == (state, tier)
    assert instance.waits_for == ()
    if state is not State.STOPPING:
        assert instance.parked is tier


def test_a_restarted_agent_that_has_not_read_its_host_keeps_its_sleepers() -> None:
    scheduler = a_scheduler()
    scheduler.adopt(saved(State.SLEEPING), 10.0, alive=True, healthy=False, asleep=True)

    report(scheduler, 11.0)
    scheduler.handle(events.HostRead(tiers=SLEEPS, park_ram_mb=20_000), 12.0)
    report(scheduler, 13.0)

    assert states(scheduler) == {"one": State.SLEEPING}


def test_a_parked_worker_that_died_meanwhile_is_reclaimed() -> None:
    scheduler = a_tiered()

    scheduler.adopt(saved(State.SLEEPING), 10.0, alive=False, healthy=False)

    assert states(scheduler) == {"one": State.RECLAIMING}
