"""The life of an instance, as a table.

    fetching → placing → starting → ready ⇄ draining → stopping → reclaiming → gone

An instance begins in `fetching` if its host lacks the weights, otherwise in `placing`: no instance is evicted during a
download. `placing` waits for victims to leave and for the device's start lane. When a worker exits, at any time, its
instance goes to `reclaiming`: its remaining processes are killed, and its memory must be free before the room counts
as free. A failure is not a state of an instance: the host stores it by function, for the next caller.
"""

import enum
from collections.abc import Mapping
from types import MappingProxyType


class State(enum.StrEnum):
    """The state of an instance."""

    FETCHING = "fetching"
    PLACING = "placing"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    RECLAIMING = "reclaiming"
    GONE = "gone"
    OTHER = "other"
    """A state of a later release, read in a record: neither starting nor ready here, and its memory is held."""

    @classmethod
    def _missing_(cls, value: object) -> "State":
        return cls.OTHER


class Step(enum.StrEnum):
    """A transition between states."""

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
        State.OTHER: {},
    }
)

COMING = frozenset({State.FETCHING, State.PLACING, State.STARTING})
"""Starting: a request may wait for it."""

LIVE = COMING | {State.READY}
"""Ready or starting: the function needs no other start."""


class IllegalStep(Exception):
    """A step that the table does not have, which is a bug in the caller. The message names state and step."""


def after(state: State, step: Step) -> State:
    """Return the next state. Raises IllegalStep when the table does not have the step."""
    try:
        return TRANSITIONS[state][step]
    except KeyError:
        raise IllegalStep(f"an instance in '{state}' cannot take the step '{step}'") from None
