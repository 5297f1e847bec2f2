"""The life of an instance, as a table.

    fetching → placing → starting → ready ⇄ draining → stopping → reclaiming → gone
                  ↑                            ↓
                  └── sleeping, frozen ← parking

An instance begins in `fetching` if its host lacks the weights, otherwise in `placing`: no instance is evicted during a
download. `placing` waits for victims to leave and for the device's start lane. When a worker exits, at any time, its
instance goes to `reclaiming`: its remaining processes are killed, and its memory must be free before the room counts
as free. A failure is not a state of an instance: the host stores it by function, for the next caller.

A worker may be *parked* instead of stopped: its process stays, and the memory of its devices moves to the host's RAM.
`sleeping`: its engine has moved the weights, and part of the memory stays on the devices. `frozen`: the driver has
moved everything. A parked instance returns through `placing`, on the devices it had, and `starting`.
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
    PARKING = "parking"
    """Its memory is moving from the devices to RAM."""
    SLEEPING = "sleeping"
    FROZEN = "frozen"
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
    PARK = "park"
    ASLEEP = "asleep"
    FROZEN = "frozen"
    WAKE = "wake"
    STOP = "stop"
    EXITED = "exited"
    RECLAIMED = "reclaimed"
    ABANDONED = "abandoned"


TRANSITIONS: Mapping[State, Mapping[Step, State]] = MappingProxyType(
    {
        State.FETCHING: {Step.FETCHED: State.PLACING, Step.ABANDONED: State.GONE},
        State.PLACING: {
            Step.PLACED: State.STARTING,
            Step.ABANDONED: State.GONE,
            # The rest only for a parked instance that returns.
            Step.ASLEEP: State.SLEEPING,
            Step.FROZEN: State.FROZEN,
            Step.STOP: State.STOPPING,
            Step.EXITED: State.RECLAIMING,
        },
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
            Step.PARK: State.PARKING,
            Step.STOP: State.STOPPING,
            Step.EXITED: State.RECLAIMING,
        },
        State.PARKING: {
            Step.ASLEEP: State.SLEEPING,
            Step.FROZEN: State.FROZEN,
            Step.STOP: State.STOPPING,
            Step.EXITED: State.RECLAIMING,
        },
        State.SLEEPING: {
            Step.WAKE: State.PLACING,
            Step.PARK: State.PARKING,
            Step.STOP: State.STOPPING,
            Step.EXITED: State.RECLAIMING,
        },
        State.FROZEN: {
            Step.WAKE: State.PLACING,
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

PARKED = frozenset({State.SLEEPING, State.FROZEN})
"""The process lives, its weights are in RAM, and it serves nothing until it returns."""

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
