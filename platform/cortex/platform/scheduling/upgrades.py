"""Upgrades: a full start in place of an instance that was started fast, in a quiet moment. Pure.

Beside: the full start takes free room, and then the place of the other, which has served meanwhile. It evicts nothing,
and gives way to every other start. Instead: where there is no room for both, an instance that is to stay, and has been
idle for long, stops and is started in full.
"""

from msgspec.structs import replace

from cortex.functions.launch import StartMode
from cortex.functions.lifecycle import State
from cortex.functions.spec import Function, Start
from cortex.platform.record import DrainReason, Instance, Use
from cortex.platform.scheduling.admission import admit, admit_or_fail, need_of, replacement
from cortex.platform.scheduling.placement import Placement, misfit, need, place
from cortex.platform.scheduling.reaping import reap_at
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.platform.scheduling.start_modes import measured_s
from cortex.platform.scheduling.state import MOVING, HostState
from cortex.platform.scheduling.steps import decide, drain, drop, predecessor, put

QUIET_S = 10.0
"""An instance that was used less than this ago may be used again at any moment."""
STEADY_S = 60.0
"""An instance that is used all the time is replaced while it serves, after this time."""
LONG_IDLE_S = 60.0
"""An instance that was idle for less is not stopped for a full start."""
STAY_STARTS = 3.0
"""An instance that idling ends sooner than this many full starts from now is not worth one."""
UNMEASURED_S = 60.0
"""The duration of a full start before it was measured."""
MOST_DOUBLINGS = 8
"""Each cancelled full start doubles the wait before the next, at most this often: to 43 minutes."""


def upgrade(state: HostState, instance: Instance, usage: Use, now: float) -> bool:
    """Replace an instance that was started fast by a full start; return whether one is begun, or is under way.

    (1) the function wants it as it is, or its full start has failed: never;
    (2) a full start for it is under way: wait;
    (3) a request waits for a start that may be made here, or an instance here starts, stops or is about to: not now;
    (4) it was used a moment ago, and is not used all the time; or idling ends it soon: not now;
    (5) there is free room for both: start beside it;
    (6) it stays even when it is idle, and has been idle for long: instead of it;
    (7) otherwise it stays as it is.
    """
    function = state.functions[instance.id]
    failed = StartMode.FULL in state.tricks_off(instance.revision)
    if instance.start_mode is not StartMode.FAST or function.start is Start.FAST or failed:  # (1)
        return False
    if instance.moves_to in state.instances:  # (2)
        return True
    if not _is_quiet(state, usage):  # (3)
        return False
    patience = 2 ** min(state.upgrades.get(instance.id, 0), MOST_DOUBLINGS)
    idle_s, in_use = now - max(usage.last_used(instance), instance.since), usage.in_flight.get(instance.id, 0) > 0
    used = in_use or idle_s < QUIET_S
    at = reap_at(instance, function, usage, state.in_fleet())
    stays_s = float("inf") if at is None else at - now
    waits = now - instance.since < STEADY_S * patience if used else idle_s < QUIET_S * patience
    if waits or stays_s < STAY_STARTS * _full_s(state, instance, function):  # (4)
        return False
    if (placement := _free_place(state, instance, function, usage, now)) is not None:  # (5)
        successor = _successor(state, instance, now)
        put(state, replace(instance, moves_to=successor.id))
        decide(state, DecisionKind.UPGRADING, instance, "beside it, in free room")
        admit(state, successor, placement, now)
        return True
    if at is None and not in_use and idle_s >= LONG_IDLE_S * patience:  # (6)
        decide(state, DecisionKind.UPGRADING, instance, f"instead of it, idle for {idle_s:.0f} s")
        state.upgrades[instance.id] = state.upgrades.get(instance.id, 0) + 1
        drain(state, replace(instance, moves_to=""), DrainReason.UPGRADED, now)
        return True
    return False  # (7)


def follow(state: HostState, instance: Instance, now: float) -> None:
    """Begin the full start of an instance that has just been stopped for it."""
    if instance.reason is DrainReason.UPGRADED and not instance.moves_to and not state.cordoned:
        admit_or_fail(state, _successor(state, instance, now), now)


def begin_again(state: HostState, instance: Instance, now: float) -> None:
    """Start another instance for one whose start is excused, unless the one that it was to replace still serves."""
    if predecessor(state, instance) is not None:
        drop(state, instance)
        return
    again = replacement(state, instance, "2", now)
    again = replace(again, start_mode=instance.start_mode, for_minimum=instance.for_minimum)
    admit_or_fail(state, put(state, again), now)


def _is_quiet(state: HostState, usage: Use) -> bool:
    """Whether no request waits for a start that this host may be asked for, and no instance here starts, parks or
    leaves."""
    moves = (State.FETCHING, State.PLACING, State.DRAINING, *MOVING)
    if not usage.known or state.line or state.cordoned or any(i.state in moves for i in state.instances.values()):
        return False
    waiting = {function for function, count in usage.waiting.items() if count}
    if waiting:
        waiting -= state.functions_starting()  # elsewhere: these requests wait for no start here
    return not any(_may_start_here(state, function) for function in waiting)


def _may_start_here(state: HostState, function: str) -> bool:
    """Whether this host could run a function if it were empty; also of one that its catalogue does not have yet."""
    declared = (state.catalogue or {}).get(function)
    return declared is None or misfit(need(declared, None), state.host) is None


def _full_s(state: HostState, instance: Instance, function: Function) -> float:
    version = state.host.engines.get(function.engine, "")
    return measured_s(state.ledger.get(instance.revision), StartMode.FULL, version) or UNMEASURED_S


def _free_place(state: HostState, instance: Instance, function: Function, usage: Use, now: float) -> Placement | None:
    """Return a place in free room for a full start with at least the memory of an instance; None: there is none."""
    placement = place(need_of(state, function, state.weights[instance.id]), state.record(), usage, now)
    if not isinstance(placement, Placement) or placement.waits_for or placement.memory_mb < instance.memory_mb:
        return None
    return placement


def _successor(state: HostState, instance: Instance, now: float) -> Instance:
    """Return the full start, which is not placed yet."""
    successor = replacement(state, instance, f"f{state.upgrades.get(instance.id, 0) or ''}", now)
    return put(state, replace(successor, replaces=instance.id, for_minimum=True))
