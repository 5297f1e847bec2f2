"""What changes all instances: a new catalogue, a shutdown, and an agent that takes over."""

from typing import Any

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function, revision
from cortex.platform.agent_messages import Accepted
from cortex.platform.record import FailureKind
from cortex.platform.scheduling.effects import Reclaim, Stop
from cortex.platform.scheduling.saved_state import AgentState, LocalWeights, SavedWorker
from tests.support.factories import a_fleet, a_function, a_host, a_report, an_instance
from tests.support.scheduling import (
    HERE,
    OTHER,
    SMALL,
    TWO_GPUS,
    F,
    G,
    a_scheduler,
    bring_up,
    clear_away,
    instance_of,
    look,
    new_effects,
    start,
    states,
    three_crashes,
)

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


def test_the_saved_state_has_every_worker_and_what_failed() -> None:
    scheduler = a_scheduler(TWO_GPUS)
    bring_up(scheduler, F, "one")
    start(scheduler, G, "two")
    clear_away(scheduler, "two")
    scheduler.ensure(SMALL, None, "fetching", 0.0)

    assert scheduler.saved_state() == AgentState(
        workers=(SavedWorker(instance_of(scheduler), F, HERE),),
        failures=scheduler.record().failures,
        unparkable=scheduler.record().unparkable,
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


@pytest.mark.parametrize("state", [State.STOPPING, State.OTHER])
def test_a_worker_that_was_being_stopped_or_is_in_a_state_of_a_later_release_is_stopped(state: State) -> None:
    scheduler = a_scheduler()

    scheduler.adopt(a_saved_worker(state), 100.0, alive=True, healthy=True)

    assert states(scheduler) == {"one": State.STOPPING}
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
