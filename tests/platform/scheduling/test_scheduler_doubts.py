"""What the scheduler does when a report is missing, when something does not move on, and on an old catalogue."""

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.platform.agent_messages import Accepted, Rejected
from cortex.platform.fleet import Fleet
from cortex.platform.record import Instance
from cortex.platform.scheduling.effects import Decision, Effect, Fetch, Look, Reclaim, Stop
from cortex.platform.scheduling.reconcile import LOOK_AGAIN_S, OVERDUE_S
from cortex.platform.scheduling.reports import SILENT_S
from cortex.platform.scheduling.requests import SUPERSEDED_S
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.scheduling.state import Rules
from tests.support.factories import a_fleet, a_function, a_host, a_process, a_report
from tests.support.scheduling import SchedulerDriver

HERE = LocalWeights("/cache/weights", 1)
F = a_function("f", vram_mb=6000, idle_after_s=100.0)
G = a_function("g", vram_mb=6000)
NEW_F = replace(F, args=("--new",))


def a_scheduler() -> SchedulerDriver:
    scheduler = SchedulerDriver(a_host(), Rules(drain_grace_s=60.0, stop_grace_s=5.0))
    scheduler.reported(a_fleet(a_report()), 0.0)
    return scheduler


def bring_up(scheduler: SchedulerDriver) -> None:
    """Have `f` ready as `one` at 10.0."""
    scheduler.ensure(F, HERE, "one", 0.0)
    scheduler.spawned("one", a_process(), "http://127.0.0.1:20000", 1.0)
    scheduler.answered("one", 10.0)
    scheduler.take_effects()


def effects(scheduler: SchedulerDriver) -> list[type[Effect]]:
    return [type(e) for e in scheduler.take_effects() if not isinstance(e, Decision)]


def instance_of(scheduler: SchedulerDriver) -> Instance:
    return next(i for i in scheduler.record().instances if i.id == "one")


def fleet_view(scheduler: SchedulerDriver, **rest: int) -> Fleet:
    return a_fleet(a_report(seen=scheduler.record().epoch), **rest)  # type: ignore[arg-type]


# A router that fell silent


def fallen_silent(scheduler: SchedulerDriver) -> float:
    """A router with a request in flight on `one` stops reporting; another one goes on. Return when."""
    both = a_fleet(a_report("silent", in_flight={"one": 1}), a_report())
    scheduler.reported(both, 20.0)
    scheduler.reported(both, 20.0 + SILENT_S)
    scheduler.reported(a_fleet(a_report()), 20.0 + SILENT_S)
    scheduler.take_effects()
    return 20.0 + SILENT_S


def test_an_instance_in_use_by_a_router_that_fell_silent_is_not_reaped() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    fallen_silent(scheduler)

    scheduler.reported(a_fleet(a_report()), 1000.0)
    requested = effects(scheduler)
    scheduler.looked("one", 1, 1, 1000.1)

    assert requested == [Look]
    assert instance_of(scheduler).state is State.READY


def test_it_is_reaped_once_its_worker_has_nothing_to_do() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    fallen_silent(scheduler)
    scheduler.reported(a_fleet(a_report()), 1000.0)

    scheduler.looked("one", 0, 1, 1000.1)

    assert instance_of(scheduler).state is State.DRAINING


def test_it_is_not_evicted_either() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    now = fallen_silent(scheduler)

    answer = scheduler.ensure(G, HERE, "two", now + 50.0)

    assert isinstance(answer, Rejected)


@pytest.mark.parametrize(("connections", "state"), [(1, State.READY), (0, State.STOPPING)])
def test_where_the_engine_does_not_count_connections_decide_after_a_router_fell_silent(
    connections: int, state: State
) -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    fallen_silent(scheduler)
    scheduler.cool("f", 1000.0)
    scheduler.reported(fleet_view(scheduler), 1000.0)

    scheduler.looked("one", None, connections, 1000.1)
    scheduler.reconcile(1061.0)

    assert instance_of(scheduler).state is state


# The last step of a drain


def test_a_worker_is_looked_at_before_it_is_stopped() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.cool("f", 200.0)

    scheduler.reported(fleet_view(scheduler), 200.5)
    before = effects(scheduler)
    scheduler.looked("one", 0, 3, 200.6)

    assert before == [Look]
    assert effects(scheduler) == [Stop]


def test_a_reap_is_cancelled_when_the_engine_is_busy() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.reconcile(200.0)
    scheduler.reported(fleet_view(scheduler), 200.5)

    scheduler.looked("one", 2, 1, 200.6)

    assert instance_of(scheduler).state is State.READY
    assert Stop not in effects(scheduler)


def test_a_cool_waits_for_the_requests_of_the_engine() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.cool("f", 200.0)
    scheduler.reported(fleet_view(scheduler), 200.5)
    scheduler.looked("one", 1, 1, 200.6)
    busy = instance_of(scheduler).state

    scheduler.reconcile(202.0)
    scheduler.looked("one", 0, 1, 202.1)

    assert busy is State.DRAINING
    assert instance_of(scheduler).state is State.STOPPING


def test_a_look_without_a_result_is_requested_again() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.cool("f", 200.0)
    scheduler.reported(fleet_view(scheduler), 200.5)
    scheduler.take_effects()

    scheduler.reconcile(201.0)
    soon = effects(scheduler)
    scheduler.reconcile(201.0 + LOOK_AGAIN_S)

    assert soon == []
    assert effects(scheduler) == [Look]


# What does not move on


def test_a_worker_that_does_not_end_is_reported_and_stopped_again() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.cool("f", 20.0, at_once=True)
    scheduler.take_effects()

    scheduler.reconcile(20.0 + OVERDUE_S[State.STOPPING] + 5.0)
    again = effects(scheduler)
    scheduler.reconcile(21.0 + OVERDUE_S[State.STOPPING] + 5.0)

    assert again == [Stop]
    assert instance_of(scheduler).problem == "its process does not end"
    assert effects(scheduler) == []


def test_an_overdue_reclaim_is_retried_and_shows_the_supervisors_reason() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.exited("one", "was killed", (), 20.0)
    scheduler.end_delayed("one", "process 100 sleeps in the kernel")
    scheduler.take_effects()

    scheduler.reconcile(20.0 + OVERDUE_S[State.RECLAIMING])

    assert effects(scheduler) == [Reclaim]
    assert instance_of(scheduler).problem == "process 100 sleeps in the kernel"


def test_a_fetch_without_progress_is_overdue() -> None:
    scheduler = a_scheduler()
    scheduler.ensure(F, None, "one", 0.0)
    scheduler.take_effects()
    scheduler.fetching("one", "10 of 100 MiB", 0.1, 100.0)

    scheduler.reconcile(OVERDUE_S[State.FETCHING] + 50.0)
    moving = effects(scheduler)
    scheduler.fetching("one", "10 of 100 MiB", 0.1, 390.0)
    scheduler.reconcile(OVERDUE_S[State.FETCHING] + 100.0)
    overdue = effects(scheduler), instance_of(scheduler).problem
    scheduler.fetching("one", "11 of 100 MiB", 0.11, 410.0)

    assert moving == []
    assert overdue == ([Fetch], "the fetch of its weights has made no progress for 300 s")
    assert instance_of(scheduler).problem == ""


def test_a_start_that_waits_for_room_is_placed_again() -> None:
    scheduler = SchedulerDriver(a_host(), Rules())
    scheduler.reported(a_fleet(a_report()), 0.0)
    bring_up(scheduler)
    scheduler.ensure(G, HERE, "two", 50.0)
    scheduler.reported(fleet_view(scheduler), 50.1)
    scheduler.looked("one", 0, 0, 50.2)  # it is stopped, and never ends

    scheduler.reconcile(50.0 + OVERDUE_S[State.PLACING])

    two = next(i for i in scheduler.record().instances if i.id == "two")
    assert two.problem == "it waits for f (stopping)"


# Another catalogue than the caller's


def test_a_revision_that_was_superseded_is_not_started_again_for_a_caller_with_the_old_file() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.apply_catalogue({"f": NEW_F}, "new", 20.0)

    at_once, later = (scheduler.ensure(F, HERE, "two", now) for now in (21.0, 20.0 + SUPERSEDED_S))

    assert isinstance(at_once, Rejected)
    assert isinstance(later, Accepted)


def test_a_revision_that_is_declared_again_is_started_at_once() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.apply_catalogue({"f": NEW_F}, "new", 20.0)
    scheduler.apply_catalogue({"f": F}, "old", 21.0)

    assert scheduler.ensure(F, HERE, "two", 21.0) == Accepted("one", State.READY)


def test_a_start_from_a_catalogue_unknown_to_the_host_is_superseded_by_the_hosts_next_catalogue() -> None:
    scheduler = a_scheduler()
    scheduler.apply_catalogue({"g": G}, "first", 1.0)

    scheduler.ensure(F, HERE, "one", 2.0)
    retold = scheduler.record().catalogue
    scheduler.apply_catalogue({"g": G}, "first", 3.0)

    assert retold == ""
    assert instance_of(scheduler).why == "superseded"
