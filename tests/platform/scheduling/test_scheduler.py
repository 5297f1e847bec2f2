"""The agent's decisions: events in, effects out. No process, no sleep; time is a number."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function, revision
from cortex.platform.agent_messages import Accepted, PlacementPlan, Rejected, Victim
from cortex.platform.record import FailureKind, Fleet, HostRecord, Instance, Silence, used_instance
from cortex.platform.scheduling.effects import CancelFetch, Decision, Effect, Fetch, Look, Prove, Reclaim, Spawn, Stop
from cortex.platform.scheduling.events import HostRead
from cortex.platform.scheduling.ledger import Entry, Reading
from cortex.platform.scheduling.placement import When
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.platform.scheduling.reconcile import STABLE_S
from cortex.platform.scheduling.saved_state import AgentState, LocalWeights, SavedWorker
from cortex.platform.scheduling.scheduler import REPORTS_BACK_S
from cortex.platform.scheduling.state import Rules
from cortex.platform.scheduling.worker_events import MISSES_TO_ACT
from tests.support.factories import a_device, a_fleet, a_function, a_host, a_process, a_report, an_instance
from tests.support.scheduling import SchedulerDriver

HERE = LocalWeights("/cache/weights.gguf", 1000)
RULES = Rules(drain_grace_s=60.0, stop_grace_s=5.0, start_silence_s=300.0, start_ceiling_s=3600.0)

F = a_function("f", vram_mb=6000)
G = a_function("g", vram_mb=6000)
SMALL = a_function("small", vram_mb=1000)
OTHER = a_function("other", vram_mb=1000)

ON_CPU = a_host(devices=(a_device("cpu", kind="cpu"),))
TWO_GPUS = a_host(devices=(a_device("gpu-0"), a_device("gpu-1")))


def a_scheduler(host: HostRecord | None = None, fleet: Fleet | None = None, rules: Rules = RULES) -> SchedulerDriver:
    """A scheduler with the report of one router without requests."""
    scheduler = SchedulerDriver(host or a_host(), rules)
    scheduler.reported(fleet or a_fleet(a_report()), 0.0)
    return scheduler


def new_effects(scheduler: SchedulerDriver) -> list[Effect]:
    """The effects since the last call, without receipts."""
    return [e for e in scheduler.take_effects() if not isinstance(e, Decision)]


def look(scheduler: SchedulerDriver, now: float, *, running: int | None = 0, connections: int = 0) -> list[Effect]:
    """Answer every look request; return the other effects."""
    others: list[Effect] = []
    while effects := new_effects(scheduler):
        others += [e for e in effects if not isinstance(e, Look)]
        for effect in effects:
            if isinstance(effect, Look):
                scheduler.looked(effect.instance.id, running, connections, now)
    return others


def receipts(scheduler: SchedulerDriver) -> list[tuple[str, str, str]]:
    """The receipts since the last call: what, of which instance, why."""
    return [(e.what, e.instance, e.why) for e in scheduler.take_effects() if isinstance(e, Decision)]


def instance_of(scheduler: SchedulerDriver, instance: str = "one") -> Instance:
    return next(i for i in scheduler.record().instances if i.id == instance)


def states(scheduler: SchedulerDriver) -> dict[str, State]:
    return {i.id: i.state for i in scheduler.record().instances}


def start(scheduler: SchedulerDriver, function: Function = F, instance: str = "one", now: float = 0.0) -> None:
    """Bring an instance as far as `starting`, its process spawned."""
    assert scheduler.ensure(function, HERE, instance, now) == Accepted(instance, State.STARTING)
    scheduler.spawned(instance, a_process(), "http://127.0.0.1:20000", now)
    scheduler.take_effects()


def bring_up(scheduler: SchedulerDriver, function: Function = F, instance: str = "one", now: float = 0.0) -> None:
    """Bring an instance as far as `ready`."""
    start(scheduler, function, instance, now)
    scheduler.answered(instance, now)
    scheduler.take_effects()


def clear_away(scheduler: SchedulerDriver, instance: str = "one", now: float = 0.0) -> None:
    """Let the supervisor answer a stop to the end."""
    scheduler.exited(instance, "exited with 0", (), now)
    scheduler.reclaimed(instance, now)


def crash(scheduler: SchedulerDriver, instance: str, now: float) -> None:
    """Let a start fail."""
    start(scheduler, F, instance, now)
    clear_away(scheduler, instance, now)
    scheduler.take_effects()


# ensure


def test_ensure_places_and_starts_a_worker() -> None:
    scheduler = a_scheduler()

    answer = scheduler.ensure(F, HERE, "one", 10.0)

    started = Instance(
        id="one",
        function="f",
        revision=revision(F),
        state=State.STARTING,
        since=10.0,
        created=10.0,
        devices=("gpu-0",),
        memory_mb=6000,
        memory_from="declared",
        phase="starting",
        last_sign=10.0,
        phases={"placing": 0.0},
        started=10.0,
    )
    assert answer == Accepted("one", State.STARTING)
    assert scheduler.take_effects() == [
        Decision(DecisionKind.PLACED, "f", "one", "on gpu-0"),
        Spawn(started, F, HERE),
    ]
    assert scheduler.record().instances == (started,)


def test_ensure_again_is_the_same_start() -> None:
    scheduler = a_scheduler()
    scheduler.ensure(F, HERE, "one", 10.0)
    scheduler.take_effects()

    assert scheduler.ensure(F, HERE, "two", 10.0) == Accepted("one", State.STARTING)
    assert scheduler.take_effects() == []


def test_ensure_of_a_ready_function_starts_nothing() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)

    assert scheduler.ensure(F, HERE, "two", 10.0) == Accepted("one", State.READY)
    assert scheduler.take_effects() == []


def test_five_hundred_callers_make_one_start() -> None:
    scheduler = a_scheduler()

    answers = {scheduler.ensure(F, HERE, f"caller-{n}", 10.0) for n in range(500)}

    assert answers == {Accepted("caller-0", State.STARTING)}
    assert [type(effect) for effect in new_effects(scheduler)] == [Spawn]


def test_a_changed_setting_that_is_no_part_of_the_command_starts_nothing() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    calmer = replace(F, idle_after_s=9000.0)

    assert scheduler.ensure(calmer, HERE, "two", 10.0) == Accepted("one", State.READY)
    assert scheduler.function_of("one") == calmer


def test_another_revision_is_another_instance() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, SMALL)

    answer = scheduler.ensure(replace(SMALL, args=("--new",)), HERE, "two", 10.0)

    assert answer == Accepted("two", State.STARTING)


def test_an_instance_on_a_host_it_is_pinned_on_is_pinned() -> None:
    scheduler = a_scheduler()

    start(scheduler, replace(F, pinned_on=("host-a",), priority=7))

    assert (instance_of(scheduler).pinned, instance_of(scheduler).priority) == (True, 7)


def test_no_room_is_refused_and_leaves_nothing_behind() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, replace(F, pinned_on=("host-a",)))

    answer = scheduler.ensure(G, HERE, "two", 10.0)

    assert answer == Rejected("does not fit by 2000 MiB: f is pinned", When.NEVER, short_by_mb=2000)
    assert states(scheduler) == {"one": State.READY}
    assert receipts(scheduler) == [("refused", "", "does not fit by 2000 MiB: f is pinned")]


def test_a_cordoned_host_rejects_starts_and_keeps_its_instances() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, SMALL)

    scheduler.reported(a_fleet(a_report(), cordoned=True), 1.0)

    assert scheduler.ensure(OTHER, HERE, "two", 1.0) == Rejected("the host is cordoned", When.LATER)
    assert scheduler.ensure(SMALL, HERE, "two", 1.0) == Accepted("one", State.READY)


def test_a_cordon_holds_while_the_record_cannot_be_read() -> None:
    scheduler = a_scheduler(fleet=a_fleet(cordoned=True))

    scheduler.reported(None, 1.0)

    assert scheduler.ensure(F, HERE, "one", 1.0) == Rejected("the host is cordoned", When.LATER)


# Missing weights


def test_missing_weights_are_fetched_before_anything_else() -> None:
    scheduler = a_scheduler()

    answer = scheduler.ensure(F, None, "one", 10.0)

    assert answer == Accepted("one", State.FETCHING)
    assert new_effects(scheduler) == [Fetch(instance_of(scheduler), F)]
    assert (instance_of(scheduler).devices, instance_of(scheduler).memory_mb) == ((), 0)


def test_no_instance_is_evicted_during_a_download() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, F, "idle")

    scheduler.ensure(G, None, "new", 100.0)
    while_fetching = states(scheduler)
    scheduler.fetched("new", HERE, 200.0)

    assert while_fetching == {"idle": State.READY, "new": State.FETCHING}
    assert states(scheduler) == {"idle": State.DRAINING, "new": State.PLACING}
    assert instance_of(scheduler, "new").waits_for == ("idle",)


def test_weights_of_a_function_that_can_never_fit_are_not_fetched() -> None:
    scheduler = a_scheduler()

    answer = scheduler.ensure(a_function(vram_mb=20_000), None, "one", 0.0)

    assert isinstance(answer, Rejected)
    assert new_effects(scheduler) == []


def test_fetched_weights_are_started_from_where_they_are() -> None:
    scheduler = a_scheduler()
    scheduler.ensure(F, None, "one", 0.0)
    scheduler.take_effects()

    scheduler.fetched("one", LocalWeights("/cache/new.gguf", 10), 50.0)

    assert new_effects(scheduler) == [Spawn(instance_of(scheduler), F, LocalWeights("/cache/new.gguf", 10))]


def test_the_progress_of_a_fetch_is_in_the_record() -> None:
    scheduler = a_scheduler()
    scheduler.ensure(F, None, "one", 0.0)

    scheduler.fetching("one", "downloading", 0.5, 7.0)

    assert (instance_of(scheduler).phase, instance_of(scheduler).progress, instance_of(scheduler).last_sign) == (
        "downloading",
        0.5,
        7.0,
    )


def test_weights_that_cannot_be_had_are_a_failure_and_no_crash() -> None:
    scheduler = a_scheduler()
    scheduler.ensure(F, None, "one", 0.0)

    scheduler.fetch_failed("one", "404 from the hub", 50.0)

    (failure,) = scheduler.record().failures
    assert states(scheduler) == {}
    assert (failure.kind, failure.reason, failure.count) == (FailureKind.WEIGHTS, "404 from the hub", 0)


def test_room_that_is_gone_when_the_weights_arrive_is_a_failure_for_the_waiters() -> None:
    scheduler = a_scheduler()
    scheduler.ensure(F, None, "one", 0.0)
    bring_up(scheduler, replace(G, pinned_on=("host-a",)), "two", 10.0)

    scheduler.fetched("one", HERE, 50.0)

    (failure,) = scheduler.record().failures
    assert states(scheduler) == {"two": State.READY}
    assert (failure.kind, failure.reason) == (FailureKind.ROOM, "does not fit by 2000 MiB: g is pinned")


def test_a_caller_with_settings_that_differ_from_the_catalogue_makes_a_router_send_it_again() -> None:
    scheduler = a_scheduler()
    scheduler.apply_catalogue({"f": F}, "digest", 0.0)

    start(scheduler, replace(F, pinned=True))
    before = (instance_of(scheduler).pinned, scheduler.record().catalogue)
    scheduler.apply_catalogue({"f": F}, "digest", 1.0)

    assert before == (True, "")
    assert (instance_of(scheduler).pinned, scheduler.record().catalogue) == (False, "digest")


# One more instance


def test_one_more_instance_is_started_when_the_existing_ones_are_excluded() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, SMALL)

    assert scheduler.ensure(SMALL, HERE, "two", 1.0, exclude=("one",)) == Accepted("two", State.STARTING)
    assert scheduler.ensure(SMALL, HERE, "three", 1.0, exclude=("one",)).instance == "two"  # type: ignore[union-attr]


def test_one_more_instance_is_rejected_where_it_needs_an_eviction() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    bring_up(scheduler, SMALL, "small")

    answer = scheduler.ensure(F, HERE, "two", 100.0, exclude=("one",), evict=False)

    assert answer == Rejected("no room is free for one more instance", When.LATER)
    assert states(scheduler) == {"one": State.READY, "small": State.READY}


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


def test_an_eviction_has_a_receipt() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)

    scheduler.ensure(G, HERE, "two", 100.0)

    assert receipts(scheduler) == [("evicted", "one", "for g"), ("placed", "two", "on gpu-0")]


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
    assert ("kept", "one", "still 2 requests in flight after the grace period") in receipts(scheduler)


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
    assert receipts(scheduler) == [("kept", "one", "a request is in flight")]


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


# Starting


def test_a_worker_that_answers_is_ready() -> None:
    scheduler = a_scheduler()
    start(scheduler, now=10.0)

    scheduler.answered("one", 12.5)

    assert (instance_of(scheduler).state, instance_of(scheduler).ready, instance_of(scheduler).phase) == (
        State.READY,
        12.5,
        "",
    )
    assert receipts(scheduler) == [("ready", "one", "after 2.500 s")]


def test_a_workers_process_and_url_are_recorded() -> None:
    scheduler = a_scheduler()
    scheduler.ensure(F, HERE, "one", 10.0)

    scheduler.spawned("one", a_process(4711), "http://127.0.0.1:20001", 10.5)

    worker = instance_of(scheduler)
    assert (worker.process, worker.url) == (a_process(4711), "http://127.0.0.1:20001")
    assert (worker.started, worker.last_sign) == (10.5, 10.5)


def test_only_a_starting_instance_gets_a_process() -> None:
    scheduler = a_scheduler()
    scheduler.ensure(F, None, "one", 0.0)
    before = scheduler.record()

    scheduler.spawned("one", a_process(4711), "http://127.0.0.1:20001", 1.0)

    assert scheduler.record() == before


def test_an_exit_while_starting_is_a_failure_at_once() -> None:
    scheduler = a_scheduler()
    start(scheduler)

    scheduler.exited("one", "exited with 1", ["no such file"], 3.0)

    (failure,) = scheduler.record().failures
    assert (failure.kind, failure.reason, failure.lines, failure.count) == (
        FailureKind.CRASH,
        "the worker exited with 1 while starting",
        1,
        1,
    )
    assert new_effects(scheduler) == [Reclaim(instance_of(scheduler))]
    assert states(scheduler) == {"one": State.RECLAIMING}


def test_a_worker_that_cannot_be_spawned_is_a_failure() -> None:
    scheduler = a_scheduler()
    scheduler.ensure(F, HERE, "one", 0.0)
    scheduler.take_effects()

    scheduler.spawn_failed("one", "no 'fake' on this host", 0.1)

    assert [f.reason for f in scheduler.record().failures] == ["no 'fake' on this host"]
    assert new_effects(scheduler) == [Reclaim(instance_of(scheduler))]


def test_a_worker_that_serves_another_model_is_stopped_and_is_a_failure() -> None:
    scheduler = a_scheduler()
    start(scheduler)

    scheduler.start_failed("one", "it serves 'x'", ["loaded x"], 5.0)
    stopped = new_effects(scheduler)
    clear_away(scheduler, now=6.0)

    (failure,) = scheduler.record().failures
    assert [type(effect) for effect in stopped] == [Stop]
    assert (failure.reason, failure.lines, failure.count) == ("it serves 'x'", 1, 1)
    assert states(scheduler) == {}


def test_a_start_that_falls_silent_has_failed() -> None:
    scheduler = a_scheduler()
    start(scheduler, now=0.0)
    scheduler.sign_of_life("one", "loading", 100.0)

    scheduler.reconcile(400.0)
    before = states(scheduler)
    scheduler.reconcile(400.1)

    assert before == {"one": State.STARTING}
    assert new_effects(scheduler) == [Stop(instance_of(scheduler), 5.0)]
    assert [f.reason for f in scheduler.record().failures] == ["the start showed no sign of life for 300 s"]


def test_a_start_that_never_ends_has_failed_however_alive_it_seems() -> None:
    scheduler = a_scheduler(rules=replace(RULES, start_ceiling_s=200.0))
    start(scheduler, now=0.0)
    scheduler.sign_of_life("one", "loading", 220.0)

    scheduler.reconcile(220.0)  # 1000 MiB of weights may take 20 s more
    before = states(scheduler)
    scheduler.reconcile(220.1)

    assert before == {"one": State.STARTING}
    assert new_effects(scheduler) == [Stop(instance_of(scheduler), 5.0)]
    assert [f.reason for f in scheduler.record().failures] == ["the start took longer than 220 s"]


def test_the_time_of_a_start_is_the_sum_of_the_phases_in_the_log() -> None:
    scheduler = a_scheduler()
    start(scheduler)

    scheduler.sign_of_life("one", "loading weights", 3.0)
    scheduler.sign_of_life("one", "loading weights", 8.0, 0.5)
    loading = instance_of(scheduler)
    scheduler.sign_of_life("one", "warming up", 10.0)
    warming = instance_of(scheduler)
    scheduler.answered("one", 14.0)

    assert (loading.phase, loading.progress) == ("loading weights", 0.5)
    assert (warming.phase, warming.progress) == ("warming up", None)
    ready = instance_of(scheduler)
    assert (ready.phase, ready.progress) == ("", None)
    spent = {"starting": 3.0, "loading weights": 7.0, "warming up": 4.0}
    assert {k: v for k, v in ready.phases.items() if k != "placing"} == spent


def test_a_sign_of_life_without_a_phase_keeps_the_phase() -> None:
    scheduler = a_scheduler()
    start(scheduler)

    scheduler.sign_of_life("one", "loading", 1.0)
    scheduler.sign_of_life("one", "", 2.0)

    assert (instance_of(scheduler).phase, instance_of(scheduler).last_sign) == ("loading", 2.0)


# Exits


def cooling(scheduler: SchedulerDriver) -> None:
    bring_up(scheduler)
    scheduler.cool("f", 1.0)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (start, "the worker was killed while starting"),
        (bring_up, "the worker was killed while it was ready"),
        (cooling, "the worker was killed while it was draining"),
    ],
    ids=["starting", "ready", "draining"],
)
def test_an_unexpected_exit_is_a_failure(prepare: Callable[[SchedulerDriver], None], reason: str) -> None:
    scheduler = a_scheduler()
    prepare(scheduler)

    scheduler.exited("one", "was killed", (), 2.0)

    assert [f.reason for f in scheduler.record().failures] == [reason]
    assert [type(effect) for effect in new_effects(scheduler)] == [Reclaim]
    assert states(scheduler) == {"one": State.RECLAIMING}


def test_an_exit_after_a_stop_is_not_a_failure() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.cool("f", 1.0, at_once=True)
    scheduler.take_effects()

    scheduler.exited("one", "was killed", (), 2.0)

    assert scheduler.record().failures == ()
    assert new_effects(scheduler) == [Reclaim(instance_of(scheduler))]


def test_a_failed_spawn_of_a_cancelled_start_adds_no_failure() -> None:
    scheduler = a_scheduler()
    scheduler.ensure(F, HERE, "one", 0.0)
    scheduler.cool("f", 0.1)

    scheduler.spawn_failed("one", "no port is free", 0.2)

    assert states(scheduler) == {"one": State.RECLAIMING}
    assert [f.kind for f in scheduler.record().failures] == [FailureKind.CANCELLED]


def test_a_repeated_exit_event_is_ignored() -> None:
    scheduler = a_scheduler()
    start(scheduler)
    scheduler.exited("one", "exited with 1", (), 2.0)
    scheduler.take_effects()

    scheduler.exited("one", "exited with 1", (), 2.1)

    assert scheduler.take_effects() == []
    assert [f.count for f in scheduler.record().failures] == [1]


@pytest.mark.parametrize("weights", [None, HERE], ids=["fetching", "placing"])
def test_an_exit_of_an_instance_without_a_process_is_ignored(weights: LocalWeights | None) -> None:
    scheduler = a_scheduler()
    start(scheduler, SMALL)
    scheduler.ensure(OTHER, weights, "two", 0.0)
    before = states(scheduler)

    scheduler.exited("two", "exited with 1", (), 1.0)

    assert states(scheduler) == before


LATE: list[Callable[[SchedulerDriver], object]] = [
    lambda s: s.fetching("one", "downloading", 0.5, 9.0),
    lambda s: s.fetched("one", HERE, 9.0),
    lambda s: s.fetch_failed("one", "why", 9.0),
    lambda s: s.spawned("one", a_process(), "http://x", 9.0),
    lambda s: s.sign_of_life("one", "phase", 9.0),
    lambda s: s.answered("one", 9.0),
    lambda s: s.exited("one", "how", (), 9.0),
    lambda s: s.spawn_failed("one", "why", 9.0),
    lambda s: s.start_failed("one", "why", (), 9.0),
    lambda s: s.reclaimed("one", 9.0),
]


@pytest.mark.parametrize("event", LATE)
def test_an_event_of_an_instance_that_is_gone_is_ignored(event: Callable[[SchedulerDriver], object]) -> None:
    scheduler = a_scheduler()
    start(scheduler)
    clear_away(scheduler)
    scheduler.take_effects()
    before = scheduler.record()

    event(scheduler)

    assert scheduler.record() == before
    assert scheduler.take_effects() == []


# Failures in a row


def test_after_three_crashes_in_a_row_starts_back_off_one_two_and_four_minutes() -> None:
    scheduler = a_scheduler()
    for n, at in enumerate((0.0, 1.0, 2.0)):
        crash(scheduler, f"i{n}", at)

    refused = [scheduler.ensure(F, HERE, "x", 61.9)]
    crash(scheduler, "i3", 62.0)
    refused.append(scheduler.ensure(F, HERE, "x", 181.9))
    crash(scheduler, "i4", 182.0)
    refused.append(scheduler.ensure(F, HERE, "x", 421.9))
    crash(scheduler, "i5", 422.0)

    assert [r.retry_at for r in refused if isinstance(r, Rejected)] == [62.0, 182.0, 422.0]


def three_crashes() -> SchedulerDriver:
    """At 2, F has failed three times in a row and is tried again no sooner than at 62."""
    scheduler = a_scheduler()
    for n, at in enumerate((0.0, 1.0, 2.0)):
        crash(scheduler, f"i{n}", at)
    return scheduler


def test_a_rejection_during_a_back_off_has_the_reason_and_the_time() -> None:
    scheduler = three_crashes()
    (failure,) = scheduler.record().failures

    assert scheduler.ensure(F, HERE, "x", 12.0) == Rejected(
        "starts keep failing (3 in a row), tried again no sooner than 50 s from now: "
        "the worker exited with 0 while starting",
        When.LATER,
        retry_at=62.0,
        failure=failure,
    )


def test_a_back_off_concerns_one_function() -> None:
    assert three_crashes().ensure(G, HERE, "x", 3.0) == Accepted("x", State.STARTING)


def test_a_forced_start_does_not_wait_for_the_back_off() -> None:
    assert three_crashes().ensure(F, HERE, "x", 3.0, force=True) == Accepted("x", State.STARTING)


def test_after_failures_are_cleared_a_start_is_possible_at_once() -> None:
    scheduler = three_crashes()

    scheduler.clear_failures("f")

    assert scheduler.ensure(F, HERE, "x", 3.0) == Accepted("x", State.STARTING)


def test_a_new_revision_is_tried_at_once() -> None:
    assert three_crashes().ensure(replace(F, args=("--mended",)), HERE, "x", 3.0) == Accepted("x", State.STARTING)


def test_an_instance_that_proves_stable_ends_the_row() -> None:
    scheduler = three_crashes()
    bring_up(scheduler, F, "x", 62.0)

    scheduler.reconcile(62.0 + STABLE_S)
    before = len(scheduler.record().failures)
    scheduler.reconcile(62.1 + STABLE_S)

    assert before == 1
    assert scheduler.record().failures == ()


def test_a_worker_that_dies_before_it_is_stable_does_not_add_to_the_row_of_failed_starts() -> None:
    scheduler = three_crashes()
    bring_up(scheduler, F, "x", 62.0)

    clear_away(scheduler, "x", 70.0)

    assert [(f.count, f.early, f.retry_at) for f in scheduler.record().failures] == [(3, 1, 62.0)]


def test_a_function_whose_workers_die_while_they_serve_is_started_at_once() -> None:
    scheduler = a_scheduler()
    for n in range(20):
        bring_up(scheduler, F, f"i{n}", 100.0 * n)
        clear_away(scheduler, f"i{n}", 100.0 * n + 30.0)

    answer = scheduler.ensure(F, HERE, "next", 1931.0)

    assert answer == Accepted("next", State.STARTING)


def test_a_function_whose_workers_die_right_after_ready_backs_off_with_the_reason() -> None:
    scheduler = a_scheduler()
    for n in range(6):
        bring_up(scheduler, F, f"i{n}", float(n))
        clear_away(scheduler, f"i{n}", n + 0.5)

    answer = scheduler.ensure(F, HERE, "next", 6.0)

    assert isinstance(answer, Rejected)
    assert answer.reason.startswith("starts keep failing (6 in a row), tried again no sooner than 60 s from now")


def test_failures_survive_the_agent() -> None:
    record = three_crashes().record()

    scheduler = a_scheduler(record)

    assert isinstance(scheduler.ensure(F, HERE, "x", 3.0), Rejected)


# A new catalogue


NEW_F = replace(F, args=("--new",))


def test_an_instance_declared_as_before_runs_on_with_the_new_settings() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    calmer = replace(F, idle_after_s=9000.0, priority=3, pinned_on=("host-a",))

    scheduler.apply_catalogue({"f": calmer}, "digest", 10.0)

    assert states(scheduler) == {"one": State.READY}
    assert scheduler.function_of("one") == calmer
    assert (instance_of(scheduler).priority, instance_of(scheduler).pinned) == (3, True)
    assert scheduler.record().catalogue == "digest"


@pytest.mark.parametrize("catalogue", [{}, {"f": NEW_F}], ids=["removed", "changed"])
def test_an_instance_no_longer_declared_so_is_drained(catalogue: dict[str, Function]) -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)

    scheduler.apply_catalogue(catalogue, "digest", 10.0)

    assert (instance_of(scheduler).state, instance_of(scheduler).why) == (State.DRAINING, "superseded")


def test_a_superseded_instance_finishes_its_requests_however_long_they_take() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.apply_catalogue({"f": NEW_F}, "digest", 10.0)

    scheduler.reported(a_fleet(a_report(seen=1, in_flight={"one": 1})), 5000.0)
    busy = states(scheduler)
    scheduler.reported(a_fleet(a_report(seen=1)), 5001.0)
    look(scheduler, 5001.0)

    assert busy == {"one": State.DRAINING}
    assert states(scheduler) == {"one": State.STOPPING}


def test_the_new_revision_starts_next_to_the_old_one_or_after_it() -> None:
    roomy, tight = a_scheduler(), a_scheduler()
    bring_up(roomy, SMALL)
    bring_up(tight, F)
    roomy.apply_catalogue({}, "digest", 10.0)
    tight.apply_catalogue({}, "digest", 10.0)

    assert roomy.ensure(replace(SMALL, args=("-n",)), HERE, "two", 10.0) == Accepted("two", State.STARTING)
    assert tight.ensure(NEW_F, HERE, "two", 10.0) == Accepted("two", State.PLACING)


def test_a_catalogue_that_is_put_back_takes_the_drain_back_when_it_is_wanted() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.apply_catalogue({"f": NEW_F}, "new", 10.0)
    scheduler.apply_catalogue({"f": F}, "old", 11.0)

    assert scheduler.ensure(F, HERE, "two", 12.0) == Accepted("one", State.READY)


@pytest.mark.parametrize("weights", [None, HERE], ids=["fetching", "starting"])
def test_a_superseded_start_is_cancelled(weights: LocalWeights | None) -> None:
    scheduler = a_scheduler()
    scheduler.ensure(F, weights, "one", 0.0)

    scheduler.apply_catalogue({"f": NEW_F}, "digest", 10.0)

    assert set(states(scheduler).values()) <= {State.STOPPING}
    assert [f.kind for f in scheduler.record().failures] == [FailureKind.ROOM]


def test_failures_of_functions_no_longer_declared_are_forgotten() -> None:
    scheduler = three_crashes()

    scheduler.apply_catalogue({"g": G}, "digest", 10.0)

    assert scheduler.record().failures == ()


# Lanes


def test_two_starts_on_one_gpu_run_one_after_the_other() -> None:
    scheduler = a_scheduler()
    start(scheduler, SMALL, "one")

    answer = scheduler.ensure(OTHER, HERE, "two", 1.0)
    meanwhile = new_effects(scheduler)
    scheduler.answered("one", 5.0)

    assert answer == Accepted("two", State.PLACING)
    assert meanwhile == []
    assert [effect.instance.id for effect in new_effects(scheduler) if isinstance(effect, Spawn)] == ["two"]


def test_starts_on_different_gpus_go_in_parallel() -> None:
    scheduler = a_scheduler(TWO_GPUS)

    start(scheduler, F, "one")
    start(scheduler, G, "two")

    assert (instance_of(scheduler, "one").devices, instance_of(scheduler, "two").devices) == (("gpu-0",), ("gpu-1",))


def test_starts_on_a_cpu_go_in_parallel() -> None:
    scheduler = a_scheduler(ON_CPU)

    start(scheduler, SMALL, "one")
    start(scheduler, OTHER, "two")

    assert states(scheduler) == {"one": State.STARTING, "two": State.STARTING}


def test_a_start_over_two_gpus_waits_for_both() -> None:
    scheduler = a_scheduler(TWO_GPUS)
    start(scheduler, SMALL, "one")
    wide = a_function("wide", min_devices=2)

    answer = scheduler.ensure(wide, HERE, "two", 1.0)
    scheduler.answered("one", 5.0)

    assert answer == Accepted("two", State.PLACING)
    assert states(scheduler) == {"one": State.READY, "two": State.STARTING}


def test_a_start_waits_for_a_stop_and_its_memory_on_the_same_gpu() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, SMALL, "one")
    scheduler.cool("small", 10.0, at_once=True)

    answer = scheduler.ensure(OTHER, HERE, "two", 10.0)
    scheduler.exited("one", "exited with 0", (), 11.0)
    reclaiming = states(scheduler)
    scheduler.reclaimed("one", 12.0)

    assert answer == Accepted("two", State.PLACING)
    assert reclaiming == {"one": State.RECLAIMING, "two": State.PLACING}
    assert states(scheduler) == {"two": State.STARTING}


def test_a_drained_worker_is_not_stopped_during_a_start_on_the_same_gpu() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, SMALL, "one")
    start(scheduler, OTHER, "two", 299.0)
    scheduler.reconcile(300.0)

    scheduler.reported(a_fleet(a_report(seen=1)), 301.0)
    look(scheduler, 301.0)
    meanwhile = states(scheduler)
    scheduler.answered("two", 302.0)
    look(scheduler, 302.0)

    assert meanwhile == {"one": State.DRAINING, "two": State.STARTING}
    assert states(scheduler) == {"one": State.STOPPING, "two": State.READY}


def test_a_crash_frees_the_lane_when_the_memory_is_back() -> None:
    scheduler = a_scheduler()
    start(scheduler, SMALL, "one")
    scheduler.ensure(OTHER, HERE, "two", 1.0)

    clear_away(scheduler, "one", 2.0)

    assert states(scheduler) == {"two": State.STARTING}


# The end, and a new beginning


def test_a_shut_down_stops_everything_at_once_and_waits_for_no_request() -> None:
    scheduler = a_scheduler(fleet=a_fleet(a_report(in_flight={"ready": 1})))
    bring_up(scheduler, SMALL, "ready")
    start(scheduler, OTHER, "starting")
    scheduler.ensure(a_function("third"), HERE, "placing", 0.0)
    scheduler.ensure(a_function("fourth"), None, "fetching", 0.0)
    scheduler.take_effects()

    scheduler.shut_down(10.0)

    assert [(e.instance.id, e.instance.why) for e in new_effects(scheduler) if isinstance(e, Stop)] == [
        ("ready", "shutdown"),
        ("starting", "shutdown"),
    ]
    assert states(scheduler) == {"ready": State.STOPPING, "starting": State.STOPPING}


def a_saved_worker(state: State = State.READY, **rest: Any) -> SavedWorker:
    """What an earlier agent wrote of a worker of F."""
    worker = an_instance("one", function="f", revision=revision(F), state=state, pid=100, memory_mb=6000, **rest)
    return SavedWorker(worker, F, HERE)


def test_the_saved_state_has_every_worker_and_every_failure() -> None:
    scheduler = a_scheduler(TWO_GPUS)
    bring_up(scheduler, F, "one")
    start(scheduler, G, "two")
    clear_away(scheduler, "two")
    scheduler.ensure(SMALL, None, "fetching", 0.0)

    assert scheduler.saved_state() == AgentState(
        workers=(SavedWorker(instance_of(scheduler), F, HERE),), failures=scheduler.record().failures
    )
    assert [f.function for f in scheduler.saved_state().failures] == ["g"]


@pytest.mark.parametrize("state", [State.READY, State.DRAINING])
def test_a_worker_that_is_alive_and_well_serves_on(state: State) -> None:
    scheduler = a_scheduler(a_host(epoch=70))

    scheduler.adopt(a_saved_worker(state, why="idle", deadline=60.0, epoch=7), 100.0, alive=True, healthy=True)

    worker = instance_of(scheduler)
    assert (worker.state, worker.why, worker.deadline, worker.epoch) == (State.READY, "", 0.0, 71)
    assert scheduler.ensure(F, HERE, "two", 100.0) == Accepted("one", State.READY)
    assert new_effects(scheduler) == []


def test_a_worker_that_was_starting_is_waited_for_with_fresh_patience() -> None:
    scheduler = a_scheduler()

    scheduler.adopt(a_saved_worker(State.STARTING, last_sign=0.0, started=0.0), 310.0, alive=True, healthy=False)
    scheduler.reconcile(310.0)
    before = states(scheduler)
    scheduler.answered("one", 320.0)

    assert before == {"one": State.STARTING}
    assert states(scheduler) == {"one": State.READY}


def test_a_worker_that_was_being_stopped_is_stopped() -> None:
    scheduler = a_scheduler()

    scheduler.adopt(a_saved_worker(State.STOPPING), 100.0, alive=True, healthy=True)

    assert new_effects(scheduler) == [Stop(instance_of(scheduler), 5.0)]


def test_a_worker_that_does_not_answer_a_restarted_agent_is_stopped() -> None:
    scheduler = a_scheduler()

    scheduler.adopt(a_saved_worker(), 100.0, alive=True, healthy=False)

    assert new_effects(scheduler) == [Stop(instance_of(scheduler), 5.0)]
    assert [f.reason for f in scheduler.record().failures] == ["the worker did not answer the restarted agent"]


@pytest.mark.parametrize("state", [State.STARTING, State.READY, State.DRAINING, State.STOPPING, State.RECLAIMING])
def test_the_memory_of_a_worker_that_died_during_the_restart_is_reclaimed(state: State) -> None:
    scheduler = a_scheduler()

    scheduler.adopt(a_saved_worker(state), 100.0, alive=False, healthy=False)
    effects = new_effects(scheduler)
    scheduler.reclaimed("one", 101.0)

    assert [type(effect) for effect in effects] == [Reclaim]
    assert states(scheduler) == {}


# Watching what is ready


@pytest.mark.parametrize(
    ("fleet", "misses", "stuck", "stays"),
    [
        (a_fleet(a_report()), MISSES_TO_ACT - 1, True, True),
        (a_fleet(a_report()), MISSES_TO_ACT, False, False),
        (a_fleet(a_report(in_flight={"one": 1})), MISSES_TO_ACT, False, True),
        (a_fleet(a_report(in_flight={"one": 1})), MISSES_TO_ACT, True, False),
        (None, MISSES_TO_ACT, False, True),
        (None, MISSES_TO_ACT, True, False),
    ],
)
def test_a_worker_that_misses_health_checks_is_stopped_unless_it_may_be_busy(
    fleet: Fleet | None, misses: int, stuck: bool, stays: bool
) -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.reported(fleet, 10.0)

    scheduler.health_check_failed("one", misses, 10.0, stuck=stuck)

    assert states(scheduler) == {"one": State.READY if stays else State.STOPPING}
    assert len(scheduler.record().failures) == (not stays)


def test_a_worker_that_fell_back_to_the_cpu_is_stopped() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)

    scheduler.fell_back_to_cpu("one", 10.0)

    assert new_effects(scheduler) == [Stop(instance_of(scheduler), 5.0)]
    assert [f.reason for f in scheduler.record().failures] == [
        "the worker has no process on gpu-0: it fell back to the CPU"
    ]


def test_the_highest_memory_reading_of_a_worker_counts() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)

    for reading in (500, 700, 600):
        scheduler.used("one", reading)

    assert instance_of(scheduler).used_mb == 700


def test_the_measurement_of_earlier_starts_beats_the_declaration() -> None:
    scheduler = a_scheduler()

    scheduler.set_ledger({revision(F): Entry(memory_mb=4321)})
    start(scheduler)

    assert (instance_of(scheduler).memory_mb, instance_of(scheduler).memory_from) == (4321, "measured")


def test_a_start_is_told_the_measured_memory_beside_the_cache_unless_the_last_one_failed() -> None:
    scheduler = a_scheduler()
    scheduler.set_ledger({revision(F): Entry(readings=(Reading(start=1.0, memory_mb=5000, cache_mb=3000),))})

    scheduler.ensure(F, HERE, "one", 1.0)
    first = [e for e in new_effects(scheduler) if isinstance(e, Spawn)]
    scheduler.spawn_failed("one", "why", 2.0)
    scheduler.reclaimed("one", 2.0)
    scheduler.ensure(F, HERE, "two", 3.0)
    second = [e for e in new_effects(scheduler) if isinstance(e, Spawn)]

    assert [s.beside_cache_mb for s in first + second] == [2000, 0]


# Out of memory


OOM = ["torch.OutOfMemoryError: CUDA out of memory."]


def test_a_start_that_ran_out_of_memory_is_tried_once_more_with_more_of_it() -> None:
    scheduler = a_scheduler()
    start(scheduler)

    scheduler.exited("one", "exited with 1", OOM, 5.0)
    scheduler.reclaimed("one", 6.0)

    (again,) = scheduler.record().instances
    assert (again.id, again.state, again.memory_mb) == ("one-2", State.STARTING, 9000)
    assert [(f.kind, f.count) for f in scheduler.record().failures] == [(FailureKind.OUT_OF_MEMORY, 1)]


def test_others_are_evicted_for_a_start_that_ran_out_of_memory() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, a_function("idle", vram_mb=2000), "idle")
    start(scheduler, now=100.0)

    scheduler.exited("one", "exited with 1", OOM, 105.0)

    assert states(scheduler) == {
        "idle": State.DRAINING,
        "one": State.RECLAIMING,
        "one-2": State.PLACING,
    }


def test_a_start_that_runs_out_of_memory_again_has_crashed() -> None:
    scheduler = a_scheduler()
    start(scheduler)
    scheduler.exited("one", "exited with 1", OOM, 5.0)
    scheduler.reclaimed("one", 6.0)

    scheduler.exited("one-2", "exited with 1", OOM, 10.0)
    scheduler.reclaimed("one-2", 11.0)

    assert states(scheduler) == {}
    assert [(f.kind, f.count) for f in scheduler.record().failures] == [(FailureKind.CRASH, 2)]


def test_a_function_for_which_there_never_is_enough_memory_backs_off_as_well() -> None:
    scheduler = a_scheduler()
    needy = a_function("needy", vram_mb=8000)  # half as much again is more than the device has: it gets all of it

    for n, at in enumerate((0.0, 10.0)):
        start(scheduler, needy, f"i{n}", at)
        for instance in (f"i{n}", f"i{n}-2"):
            scheduler.exited(instance, "exited with 1", OOM, at)
            scheduler.reclaimed(instance, at)

    answer = scheduler.ensure(needy, HERE, "x", 30.0)
    assert isinstance(answer, Rejected)
    assert answer.retry_at == 10.0 + 120.0  # four in a row


# Plans


def test_a_plan_says_where_it_would_go_and_at_whose_expense_and_does_nothing() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)

    plan = scheduler.plan(G, HERE, 100.0)

    assert plan == PlacementPlan(
        host="host-a",
        devices=("gpu-0",),
        memory_mb=6000,
        memory_from="declared",
        evict=(Victim("one", "f", 100.0),),
    )
    assert states(scheduler) == {"one": State.READY}
    assert scheduler.take_effects() == []


def test_a_plan_names_an_instance_that_is_up_or_whose_drain_can_be_cancelled() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    while_ready = scheduler.plan(F, HERE, 10.0)
    scheduler.reconcile(300.0)

    assert while_ready == scheduler.plan(F, HERE, 300.0)
    assert while_ready == PlacementPlan(host="host-a", there="one", devices=("gpu-0",), memory_mb=6000)


def test_a_plan_that_cannot_be_says_why() -> None:
    scheduler = a_scheduler()

    assert scheduler.plan(a_function(vram_mb=10_001), HERE, 0.0) == Rejected(
        "needs 10001 MiB per device, 1 MiB more than there can ever be", When.NEVER, short_by_mb=1
    )


def test_a_plan_says_until_when_starts_back_off() -> None:
    plan = three_crashes().plan(F, HERE, 3.0)

    assert isinstance(plan, PlacementPlan)
    assert plan.retry_at == 62.0


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


# Progress.


def silent(for_s: float, in_flight: int = 1) -> Fleet:
    """A fleet whose router has got nothing from the instance `one` for so long."""
    report = a_report(in_flight={"one": in_flight} if in_flight else {})
    return a_fleet(replace(report, silent={"one": Silence(for_s=for_s)}))


def proofs(scheduler: SchedulerDriver) -> list[str]:
    return [e.instance.id for e in scheduler.take_effects() if isinstance(e, Prove)]


def test_a_silent_worker_is_tried_once_at_a_time_and_one_that_answers_serves_on() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.reported(silent(10.0), 10.0)
    before = proofs(scheduler)
    scheduler.reported(silent(16.0), 16.0)
    scheduler.reported(silent(17.0), 17.0)
    first = proofs(scheduler)

    scheduler.proved("one", 18.0, answered=True, worked=True)
    scheduler.reported(silent(30.0), 30.0)
    soon = proofs(scheduler)
    scheduler.reported(silent(34.0), 34.0)

    assert (before, first, soon, proofs(scheduler)) == ([], ["one"], [], ["one"])
    assert states(scheduler) == {"one": State.READY}


def test_a_worker_that_makes_no_progress_is_stopped_and_the_next_request_starts_it_anew() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.reported(silent(16.0), 16.0)
    scheduler.take_effects()
    scheduler.reported(silent(26.0), 26.0)

    scheduler.proved("one", 26.0, answered=False, worked=False)
    stops = [e for e in new_effects(scheduler) if isinstance(e, Stop)]
    (failure,) = scheduler.record().failures
    clear_away(scheduler, now=27.0)

    assert [stop.instance.id for stop in stops] == ["one"]
    assert (failure.hung, failure.count, failure.retry_at) == (True, 0, 0.0)
    assert "made no progress for 26 s" in failure.reason
    assert scheduler.ensure(F, HERE, "next", 28.0) == Accepted("next", State.STARTING)


def test_a_worker_that_computes_is_tried_again_until_it_has_been_silent_for_a_minute() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    for at in (16.0, 26.0, 36.0, 46.0):
        scheduler.reported(silent(at), at)
        assert proofs(scheduler) == ["one"]
        scheduler.proved("one", at, answered=False, worked=True)
    before = states(scheduler)

    scheduler.reported(silent(60.0), 60.0)
    scheduler.proved("one", 60.0, answered=False, worked=True)

    assert (before, states(scheduler)) == ({"one": State.READY}, {"one": State.STOPPING})
