"""The life of an instance, as a table."""

from itertools import product

import pytest

from cortex.functions.lifecycle import COMING, LIVE, TRANSITIONS, IllegalStep, State, Step, after

LEGAL = [
    (State.FETCHING, Step.FETCHED, State.PLACING),
    (State.FETCHING, Step.ABANDONED, State.GONE),
    (State.PLACING, Step.PLACED, State.STARTING),
    (State.PLACING, Step.ABANDONED, State.GONE),
    (State.PLACING, Step.ASLEEP, State.SLEEPING),
    (State.PLACING, Step.FROZEN, State.FROZEN),
    (State.PLACING, Step.STOP, State.STOPPING),
    (State.PLACING, Step.EXITED, State.RECLAIMING),
    (State.STARTING, Step.ANSWERED, State.READY),
    (State.STARTING, Step.STOP, State.STOPPING),
    (State.STARTING, Step.EXITED, State.RECLAIMING),
    (State.READY, Step.DRAIN, State.DRAINING),
    (State.READY, Step.STOP, State.STOPPING),
    (State.READY, Step.EXITED, State.RECLAIMING),
    (State.DRAINING, Step.TAKEN_BACK, State.READY),
    (State.DRAINING, Step.STOP, State.STOPPING),
    (State.DRAINING, Step.EXITED, State.RECLAIMING),
    (State.DRAINING, Step.PARK, State.PARKING),
    (State.PARKING, Step.ASLEEP, State.SLEEPING),
    (State.PARKING, Step.FROZEN, State.FROZEN),
    (State.PARKING, Step.STOP, State.STOPPING),
    (State.PARKING, Step.EXITED, State.RECLAIMING),
    (State.SLEEPING, Step.WAKE, State.PLACING),
    (State.SLEEPING, Step.PARK, State.PARKING),
    (State.SLEEPING, Step.STOP, State.STOPPING),
    (State.SLEEPING, Step.EXITED, State.RECLAIMING),
    (State.FROZEN, Step.WAKE, State.PLACING),
    (State.FROZEN, Step.STOP, State.STOPPING),
    (State.FROZEN, Step.EXITED, State.RECLAIMING),
    (State.STOPPING, Step.EXITED, State.RECLAIMING),
    (State.RECLAIMING, Step.RECLAIMED, State.GONE),
]
ILLEGAL = sorted(set(product(State, Step)) - {(state, step) for state, step, _ in LEGAL})


@pytest.mark.parametrize(("state", "step", "follows"), LEGAL)
def test_a_legal_step_leads_to_the_next_state(state: State, step: Step, follows: State) -> None:
    assert after(state, step) is follows


@pytest.mark.parametrize(("state", "step"), ILLEGAL)
def test_an_illegal_step_raises_with_state_and_step(state: State, step: Step) -> None:
    with pytest.raises(IllegalStep, match=f"'{state}' cannot take the step '{step}'"):
        after(state, step)


def test_every_state_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(State)


def test_a_worker_that_ran_is_gone_only_after_its_memory_is_reclaimed() -> None:
    last = {state for state, _, follows in LEGAL if follows is State.GONE}

    assert last == {State.FETCHING, State.PLACING, State.RECLAIMING}


def test_only_starting_and_ready_instances_are_live() -> None:
    assert {State.FETCHING, State.PLACING, State.STARTING} == COMING
    assert {State.FETCHING, State.PLACING, State.STARTING, State.READY} == LIVE
