"""`ensure` and `plan`: what is started, what is fetched first, and what is rejected."""

from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import revision
from cortex.platform.agent_messages import Accepted, PlacementPlan, Rejected, Victim
from cortex.platform.record import FailureKind, Instance
from cortex.platform.scheduling.effects import Decision, Fetch, Spawn
from cortex.platform.scheduling.placement import When
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.platform.scheduling.saved_state import LocalWeights
from tests.support.factories import a_fleet, a_function, a_report
from tests.support.scheduling import (
    HERE,
    OTHER,
    SMALL,
    F,
    G,
    a_scheduler,
    bring_up,
    decisions,
    instance_of,
    new_effects,
    start,
    states,
    three_crashes,
)

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
    assert decisions(scheduler) == [("refused", "", "does not fit by 2000 MiB: f is pinned")]


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
