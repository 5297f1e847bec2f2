"""Events of workers: exits, health checks, and workers that make no progress."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import revision
from cortex.platform.agent_messages import Accepted
from cortex.platform.fleet import Fleet
from cortex.platform.record import FailureKind, Silence
from cortex.platform.scheduling.effects import Prove, Reclaim, Spawn, Stop
from cortex.platform.scheduling.ledger import Entry, Reading
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.scheduling.worker_events import MISSES_TO_ACT
from tests.support.factories import a_fleet, a_process, a_report
from tests.support.scheduling import (
    HERE,
    OTHER,
    SMALL,
    F,
    SchedulerDriver,
    a_scheduler,
    bring_up,
    clear_away,
    instance_of,
    new_effects,
    start,
    states,
)

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
