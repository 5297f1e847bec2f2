"""Parked instances that end: by request, by a failure, by their death, and over a restart of their agent."""

from typing import Any

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function, Park, revision
from cortex.platform.agent_messages import Accepted
from cortex.platform.record import Instance, Tier
from cortex.platform.scheduling import events
from cortex.platform.scheduling.saved_state import SavedWorker
from tests.support.factories import a_process
from tests.support.scheduling import (
    a_scheduler,
    clear_away,
    decisions,
    instance_of,
    states,
)
from tests.support.tiers import (
    HERE,
    SLEEPS,
    F,
    G,
    a_tiered,
    bring_up,
    drained,
    evicting,
    put_to_sleep,
    report,
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


def test_a_drain_of_the_host_stops_its_sleepers() -> None:
    scheduler = a_tiered()
    put_to_sleep(scheduler, F, "one", 0.0)

    assert scheduler.drain(10.0) == ["one"]

    assert states(scheduler) == {"one": State.STOPPING}


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


def test_an_exit_of_one_that_is_only_placed_counts_for_nothing() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler)
    scheduler.ensure(G, HERE, "two", 100.0)

    scheduler.exited("two", "exited with 1", (), 101.0)

    assert states(scheduler)["two"] is State.PLACING


def test_a_park_without_an_answer_is_given_up() -> None:
    scheduler = a_tiered()
    bring_up(scheduler)
    scheduler.cool("f", 1.0, park=True)
    drained(scheduler, 1.0)

    report(scheduler, 140.0)

    assert states(scheduler) == {"one": State.STOPPING}


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
