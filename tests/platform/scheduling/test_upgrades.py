"""Upgrades: a full start takes the place of an instance that was started fast, in a quiet moment."""

from typing import Any

import pytest
from msgspec.structs import replace

from cortex.functions.launch import StartMode
from cortex.functions.lifecycle import State
from cortex.functions.spec import Function, Start, revision
from cortex.platform.agent_messages import Accepted
from cortex.platform.fleet import Fleet
from cortex.platform.record import DrainReason, HostRecord, Tier, used_instance
from cortex.platform.scheduling.effects import Spawn, Stop
from cortex.platform.scheduling.ledger import Entry, StartTimes
from cortex.platform.scheduling.upgrades import LONG_IDLE_S, QUIET_S, STEADY_S
from tests.support.factories import a_device, a_fleet, a_function, a_host, a_process, a_report, an_instance
from tests.support.scheduling import (
    HERE,
    SchedulerDriver,
    a_scheduler,
    bring_up,
    clear_away,
    decisions,
    instance_of,
    look,
    new_effects,
    states,
)

F = a_function("f", vram_mb=4000, args=("--full-load-s=34",))
WIDE = replace(F, vram_mb=6000)
G = a_function("g", vram_mb=6000)
FAST, FULL = StartMode.FAST, StartMode.FULL
NOW = QUIET_S + 1


def report(scheduler: SchedulerDriver, now: float, **rest: Any) -> None:
    """One router reports that it has seen every drain; then comes a tick."""
    used = rest.pop("used", {})
    router = a_report(seen=scheduler.record().epoch, **rest)
    fleet = a_fleet(router, used={used_instance(i): at for i, at in used.items()})
    scheduler.reported(replace(fleet, at=now), now)
    scheduler.reconcile(now)


def fast(function: Any = F, host: HostRecord | None = None, now: float = 0.0, full_s: float = 0.0) -> SchedulerDriver:
    """A scheduler whose instance `one` was started fast."""
    scheduler = a_scheduler(host)
    if full_s:
        times = StartTimes(version="1", seconds=(full_s,))
        scheduler.set_ledger({revision(function): Entry(modes={FULL: times})})
    scheduler.ensure(function, HERE, "one", now, waited_s=0.1)
    scheduler.spawned("one", a_process(), "http://127.0.0.1:20000", now, tricks=("eager",))
    scheduler.answered("one", now)
    assert instance_of(scheduler).start_mode is FAST
    scheduler.take_effects()
    return scheduler


def upgrading(function: Any = F, **rest: Any) -> SchedulerDriver:
    """At `NOW`, `one-f` starts beside `one`."""
    scheduler = fast(function, **rest)
    report(scheduler, NOW)
    assert states(scheduler) == {"one": State.READY, "one-f": State.STARTING}
    scheduler.spawned("one-f", a_process(101), "http://127.0.0.1:20001", NOW)
    scheduler.take_effects()
    return scheduler


# Beside.


def test_in_a_quiet_moment_a_full_start_begins_in_free_room() -> None:
    scheduler = fast()

    report(scheduler, QUIET_S - 1)
    before = states(scheduler)
    report(scheduler, NOW)

    assert before == {"one": State.READY}
    assert decisions(scheduler)[0] == ("upgrading", "one", "beside it, in free room")
    one, successor = instance_of(scheduler), instance_of(scheduler, "one-f")
    assert (successor.state, successor.start_mode, successor.replaces) == (State.STARTING, FULL, "one")
    assert (one.state, one.moves_to) == (State.READY, "one-f")


def test_the_full_start_takes_the_place_and_the_other_finishes_its_requests() -> None:
    scheduler = upgrading()

    scheduler.answered("one-f", 50.0)
    one = instance_of(scheduler)
    report(scheduler, 51.0, in_flight={"one": 1})
    busy = states(scheduler)
    report(scheduler, 200.0)
    stopped = look(scheduler, 200.0)
    clear_away(scheduler, now=201.0)

    assert (one.state, one.reason, one.why) == (
        State.DRAINING,
        DrainReason.UPGRADED,
        "replaced by one-f, a full start",
    )
    assert busy == {"one": State.DRAINING, "one-f": State.READY}
    assert [type(e) for e in stopped] == [Stop]
    assert states(scheduler) == {"one-f": State.READY}


def test_an_instance_in_use_all_the_time_is_replaced_while_it_serves() -> None:
    scheduler = fast()

    report(scheduler, STEADY_S - 1, in_flight={"one": 2})
    before = states(scheduler)
    report(scheduler, STEADY_S + 1, in_flight={"one": 2})

    assert before == {"one": State.READY}
    assert states(scheduler) == {"one": State.READY, "one-f": State.STARTING}


@pytest.mark.parametrize(
    ("function", "rest"),
    [
        (replace(F, start=Start.FAST), {}),
        (replace(F, idle_after_s=NOW + 2 * 60), {}),  # it ends before three full starts of a minute
        (F, {"waiting": {"g": 1}}),
        (F, {"waiting": {"f": 1}}),
        (F, {"in_flight": {"one": 1}}),
        (F, {"used": {"one": NOW - 1}}),
        (replace(F, vram_mb=6000), {}),  # no room beside it
    ],
)
def test_an_instance_stays_as_it_is(function: Any, rest: dict[str, Any]) -> None:
    scheduler = fast(function)

    report(scheduler, NOW, **rest)

    assert states(scheduler) == {"one": State.READY}


FAR = replace(a_host(an_instance("far", function="g", state=State.STARTING)), name="far")


@pytest.mark.parametrize(
    ("waits", "fleet", "begins"),
    [
        (G, a_fleet(), False),
        (replace(G, pinned_on=("far",)), a_fleet(), True),
        (replace(G, labels=("h200",)), a_fleet(), True),
        (replace(G, min_device_vram_mb=80_000), a_fleet(), True),
        (G, replace(a_fleet(), hosts={"far": FAR}), True),
    ],
    ids=["it may start here", "it is pinned elsewhere", "no such label here", "too large", "it starts elsewhere"],
)
def test_a_request_that_waits_for_a_start_elsewhere_is_no_reason_to_wait(
    waits: Function, fleet: Fleet, begins: bool
) -> None:
    scheduler = fast()
    scheduler.apply_catalogue({"f": F, "g": waits}, "d", 1.0)

    router = a_report(seen=scheduler.record().epoch, waiting={"g": 1})
    scheduler.reported(replace(fleet, routers={router.id: router}, at=NOW), NOW)
    scheduler.reconcile(NOW)

    assert ("one-f" in states(scheduler)) is begins


def test_a_measured_full_start_says_how_long_an_instance_has_to_stay() -> None:
    function = replace(F, idle_after_s=40.0)
    soon, quick = fast(function), fast(function, full_s=9.0)

    report(soon, NOW)
    report(quick, NOW)

    assert states(soon) == {"one": State.READY}
    assert states(quick) == {"one": State.READY, "one-f": State.STARTING}


def test_nothing_is_begun_while_routers_cannot_be_read_or_the_host_is_cordoned() -> None:
    unread, cordoned = fast(), fast()

    unread.reported(None, NOW)
    cordoned.reported(replace(a_fleet(a_report(), cordoned=True), at=NOW), NOW)

    assert states(unread) == {"one": State.READY}
    assert states(cordoned) == {"one": State.READY}


def test_one_instance_at_a_time_is_replaced() -> None:
    scheduler = fast(host=a_host(devices=(a_device(total_mb=40_000), a_device("gpu-1", total_mb=40_000))))
    other = a_function("h", vram_mb=4000, args=("--full-load-s=34",))
    scheduler.ensure(other, HERE, "two", 0.0, waited_s=0.1)
    scheduler.spawned("two", a_process(102), "http://127.0.0.1:20002", 0.0, tricks=("eager",))
    scheduler.answered("two", 0.0)

    report(scheduler, NOW)

    assert states(scheduler) == {"one": State.READY, "two": State.READY, "one-f": State.STARTING}


def test_a_replacement_evicts_nothing() -> None:
    scheduler = fast()
    bring_up(scheduler, a_function("idle", vram_mb=4000), "idle")

    report(scheduler, 100.0)

    assert states(scheduler) == {"one": State.READY, "idle": State.READY}


def test_an_instance_that_is_to_be_replaced_does_not_rehearse_its_sleep() -> None:
    function = replace(F, args=("--full-load-s=34", "--asleep-mb=100"))
    host = a_host(tiers={Tier.SLEEP: ""}, park_ram_mb=20_000)

    scheduler = upgrading(function, host=host)
    report(scheduler, NOW + 1)

    assert states(scheduler) == {"one": State.READY, "one-f": State.STARTING}


# It gives way.


def test_it_gives_way_to_a_start_that_needs_its_room_or_its_lane() -> None:
    scheduler = upgrading()

    answer = scheduler.ensure(G, HERE, "two", NOW + 1, waited_s=0.1)
    effects = new_effects(scheduler)
    clear_away(scheduler, "one-f", NOW + 2)

    assert answer == Accepted("two", State.PLACING)
    assert [e.instance.id for e in effects if isinstance(e, Stop)] == ["one-f"]
    assert len(effects) == 1
    assert states(scheduler) == {"one": State.READY, "two": State.STARTING}
    assert (instance_of(scheduler).moves_to, scheduler.record().failures) == ("", ())


def test_a_plan_counts_its_room_as_free() -> None:
    scheduler = upgrading()

    plan = scheduler.plan(G, HERE, NOW + 1)

    assert getattr(plan, "evict", None) == ()


def test_after_it_has_given_way_the_next_attempt_waits_twice_as_long() -> None:
    scheduler = upgrading()
    scheduler.ensure(replace(G, vram_mb=1000), HERE, "two", NOW + 1, waited_s=0.1)
    clear_away(scheduler, "one-f", NOW + 2)
    scheduler.spawned("two", a_process(102), "http://127.0.0.1:20002", NOW + 2)
    scheduler.answered("two", NOW + 3)

    def used(at: float) -> dict[str, float]:
        return {"one": at}

    report(scheduler, 115.0, used=used(100.0))
    before = states(scheduler)
    report(scheduler, 121.0, used=used(100.0))

    assert before == {"one": State.READY, "two": State.READY}
    assert states(scheduler) == {"one": State.READY, "two": State.READY, "one-f1": State.STARTING}


def test_another_instance_of_the_function_is_not_what_a_request_gets() -> None:
    scheduler = upgrading()

    assert scheduler.ensure(F, HERE, "two", NOW + 1, waited_s=0.1) == Accepted("one", State.READY)


# It fails.


def test_a_full_start_that_crashes_is_remembered_and_no_failed_start() -> None:
    scheduler = upgrading()

    scheduler.exited("one-f", "exited with 1", (), NOW + 5)
    receipt = decisions(scheduler)
    scheduler.reclaimed("one-f", NOW + 6)
    report(scheduler, 1000.0 - 750.0)

    assert ("trick_failed", "one-f", "full: the worker exited with 1 while starting") in receipt
    assert (states(scheduler), scheduler.record().failures) == ({"one": State.READY}, ())
    assert scheduler.record().tricks_off == {revision(F): {"full": "the worker exited with 1 while starting"}}


def test_a_full_start_that_lacks_memory_is_tried_again_later() -> None:
    scheduler = upgrading()

    scheduler.exited("one-f", "exited with 1", ["CUDA out of memory"], NOW + 1)
    scheduler.reclaimed("one-f", NOW + 1)
    report(scheduler, 2 * QUIET_S - 1)
    before = states(scheduler)
    report(scheduler, 2 * QUIET_S + 1)

    assert (before, scheduler.record().failures) == ({"one": State.READY}, ())
    assert states(scheduler) == {"one": State.READY, "one-f1": State.STARTING}


def test_a_full_start_that_a_changed_catalogue_ends_is_followed_by_one_of_another_name() -> None:
    scheduler = upgrading()
    scheduler.apply_catalogue({F.id: replace(F, args=("--changed",))}, "changed", NOW + 1)
    both = states(scheduler)
    scheduler.apply_catalogue({F.id: F}, "as before", NOW + 2)
    assert scheduler.ensure(F, HERE, "two", NOW + 2, waited_s=0.1) == Accepted("one", State.READY)
    clear_away(scheduler, "one-f", NOW + 3)
    moves_to = instance_of(scheduler).moves_to

    report(scheduler, 10 * QUIET_S)

    assert both == {"one": State.DRAINING, "one-f": State.STOPPING}
    assert moves_to == ""
    assert states(scheduler) == {"one": State.READY, "one-f1": State.STARTING}


def test_a_full_start_whose_process_cannot_be_started_is_tried_again_later() -> None:
    scheduler = fast()
    report(scheduler, NOW)

    scheduler.spawn_failed("one-f", "the disk is full", NOW + 1)
    scheduler.reclaimed("one-f", NOW + 1)

    assert (scheduler.record().tricks_off, scheduler.record().failures) == ({}, ())
    assert states(scheduler) == {"one": State.READY}
    report(scheduler, NOW + 3 * QUIET_S)
    assert states(scheduler) == {"one": State.READY, "one-f1": State.STARTING}


def test_when_the_other_dies_meanwhile_the_full_start_goes_on() -> None:
    scheduler = upgrading()

    clear_away(scheduler, "one", NOW + 1)
    answer = scheduler.ensure(F, HERE, "two", NOW + 2, waited_s=0.1)
    scheduler.ensure(G, HERE, "three", NOW + 2)

    assert answer == Accepted("one-f", State.STARTING)
    assert states(scheduler)["one-f"] is State.STARTING


# Instead.


def test_an_instance_that_stays_is_started_in_full_instead_where_both_do_not_fit() -> None:
    scheduler = fast(replace(WIDE, min=1))

    report(scheduler, LONG_IDLE_S - 1)
    before = states(scheduler)
    report(scheduler, LONG_IDLE_S + 1)
    draining = instance_of(scheduler)
    report(scheduler, LONG_IDLE_S + 2)
    look(scheduler, LONG_IDLE_S + 2)
    stopping = states(scheduler)
    clear_away(scheduler, now=LONG_IDLE_S + 4)

    assert before == {"one": State.READY}
    assert (draining.state, draining.reason, draining.comes_back) == (State.DRAINING, DrainReason.UPGRADED, True)
    assert stopping == {"one": State.STOPPING, "one-f1": State.PLACING}
    (spawn,) = (e for e in new_effects(scheduler) if isinstance(e, Spawn))
    assert (spawn.instance.id, spawn.instance.start_mode) == ("one-f1", FULL)


@pytest.mark.parametrize("function", [WIDE, replace(WIDE, idle_after_s=1e6)])
def test_an_instance_that_idling_ends_is_not_stopped_for_it(function: Any) -> None:
    scheduler = fast(function)

    report(scheduler, LONG_IDLE_S + 1)

    assert states(scheduler) == {"one": State.READY}


def test_a_request_that_comes_before_it_stops_keeps_it() -> None:
    requested, used = fast(replace(WIDE, min=1)), fast(replace(WIDE, min=1))
    for scheduler in (requested, used):
        report(scheduler, LONG_IDLE_S + 1)

    answer = requested.ensure(replace(WIDE, min=1), HERE, "two", LONG_IDLE_S + 1.5, waited_s=0.1)
    report(used, LONG_IDLE_S + 2, in_flight={"one": 1})

    assert answer == Accepted("one", State.READY)
    assert states(requested) == states(used) == {"one": State.READY}


def test_a_full_start_instead_that_crashes_leaves_a_fast_one() -> None:
    function = replace(WIDE, min=1)
    scheduler = fast(function)
    report(scheduler, LONG_IDLE_S + 1)
    report(scheduler, LONG_IDLE_S + 2)
    look(scheduler, LONG_IDLE_S + 2)
    clear_away(scheduler, now=LONG_IDLE_S + 4)
    scheduler.spawned("one-f1", a_process(101), "http://127.0.0.1:20001", LONG_IDLE_S + 4)

    scheduler.exited("one-f1", "exited with 1", (), LONG_IDLE_S + 9)
    scheduler.reclaimed("one-f1", LONG_IDLE_S + 9)

    assert states(scheduler) == {"one-f1-2": State.STARTING}
    assert instance_of(scheduler, "one-f1-2").start_mode is FAST
    assert scheduler.record().failures == ()


def test_a_full_start_instead_begins_after_an_earlier_move_that_failed() -> None:
    scheduler = fast(replace(WIDE, min=1))
    instances = scheduler.scheduler.state.instances
    instances["one"] = replace(instances["one"], moves_to="one-m")

    report(scheduler, LONG_IDLE_S + 1)
    report(scheduler, LONG_IDLE_S + 2)
    look(scheduler, LONG_IDLE_S + 2)

    assert states(scheduler) == {"one": State.STOPPING, "one-f1": State.PLACING}
