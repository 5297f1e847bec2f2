"""The life of an instance, as a table.

    fetching → placing → starting → ready ⇄ draining → stopping → reclaiming → gone

An instance begins in `fetching` when its host lacks the weights, else in `placing`: room is made only for
weights that are there, so nobody is evicted for the length of a download. `placing` waits for victims to
leave and for the device's start lane. A worker that exits, at any time, goes to `reclaiming`: its group is
cleared away and its memory seen to be back before the room counts as free. Failures are not a state of the
instance: they are kept beside it, by function, for the next caller.
"""

import enum
from collections.abc import Mapping
from types import MappingProxyType


class State(enum.StrEnum):
    """Where an instance is in its life."""

    FETCHING = "fetching"
    PLACING = "placing"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    RECLAIMING = "reclaiming"
    GONE = "gone"


class Step(enum.StrEnum):
    """What can happen to an instance."""

    FETCHED = "fetched"
    PLACED = "placed"
    ANSWERED = "answered"
    DRAIN = "drain"
    TAKEN_BACK = "taken back"
    STOP = "stop"
    EXITED = "exited"
    RECLAIMED = "reclaimed"
    ABANDONED = "abandoned"


TRANSITIONS: Mapping[State, Mapping[Step, State]] = MappingProxyType(
    {
        State.FETCHING: {Step.FETCHED: State.PLACING, Step.ABANDONED: State.GONE},
        State.PLACING: {Step.PLACED: State.STARTING, Step.ABANDONED: State.GONE},
        State.STARTING: {
            Step.ANSWERED: State.READY,
            Step.STOP: State.STOPPING,
            Step.EXITED: State.RECLAIMING,
        },
        State.READY: {
            Step.DRAIN: State.DRAINING,
            Step.STOP: State.STOPPING,
            Step.EXITED: State.RECLAIMING,
        },
        State.DRAINING: {
            Step.TAKEN_BACK: State.READY,
            Step.STOP: State.STOPPING,
            Step.EXITED: State.RECLAIMING,
        },
        State.STOPPING: {Step.EXITED: State.RECLAIMING},
        State.RECLAIMING: {Step.RECLAIMED: State.GONE},
        State.GONE: {},
    }
)

COMING = frozenset({State.FETCHING, State.PLACING, State.STARTING})
"""On the way up: a request may wait for it."""

LIVE = COMING | {State.READY}
"""Serving or about to: another start of the same function would be one too many."""


class IllegalStep(Exception):
    """A step that the table does not have: a bug in the caller, named with state and step."""


def after(state: State, step: Step) -> State:
    """Return the state that follows. Raises IllegalStep when the table has no such step."""
    try:
        return TRANSITIONS[state][step]
    except KeyError:
        raise IllegalStep(f"an instance in '{state}' cannot take the step '{step}'") from None
