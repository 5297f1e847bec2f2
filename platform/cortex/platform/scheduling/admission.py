"""Admission: where an instance starts on this host, by the rules of `placement.py`, `turns.py` and `defrag.py`, and
which instances make room for it. Pure.
"""

from msgspec.structs import replace

from cortex.functions.lifecycle import State, Step
from cortex.functions.spec import Function
from cortex.platform.record import DrainReason, FailureKind, Fleet, Instance
from cortex.platform.scheduling.defrag import consolidate
from cortex.platform.scheduling.eviction import protection
from cortex.platform.scheduling.failures import Incident
from cortex.platform.scheduling.ledger import placement_mb
from cortex.platform.scheduling.placement import Need, NoRoom, Placement, need, place
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.scheduling.state import HostState
from cortex.platform.scheduling.steps import close, decide, drain, fail, put, step
from cortex.platform.scheduling.turns import Turn, Waiter, next_turn, reservation_id, with_reservations

MORE_MEMORY = 1.5
"""Factor of memory for a start after one that ran out of memory."""


def need_of(state: HostState, function: Function, weights: LocalWeights | None) -> Need:
    """Return what a function needs, by measurement where there is one; more after it ran out of memory."""
    revision = state.revision(function)
    fleet = state.reports.fleet or Fleet()
    running = {i.id for i in state.in_fleet()}
    measured_mb = placement_mb(state.ledger.get(revision), function.vram_mb, running, fleet.used)
    function_need = need(function, weights, measured_mb, state.host.devices)
    failure = state.failures.of(function.id, revision)
    if failure and failure.kind is FailureKind.OUT_OF_MEMORY:
        most = max((d.budget_mb for d in state.host.devices), default=0)
        more = max(function_need.memory_mb, min(round(function_need.memory_mb * MORE_MEMORY), most))
        return replace(function_need, memory_mb=more, least_mb=0)
    return function_need


def start_s(state: HostState, revision: str) -> float:
    """Return the seconds of earlier starts of a revision; 0: not measured."""
    entry = state.ledger.get(revision)
    return entry.start_s if entry else 0.0


def place_waiter(state: HostState, waiter: Waiter, now: float, *, unused_s: float = 0.0) -> Placement | NoRoom:
    """Place a function outside the reservations of those ahead of it in line."""
    host = with_reservations(state.record(), state.line.ahead_of(waiter))
    strategy, cordoned = state.rules.strategy, state.cordoned
    return place(waiter.need, host, state.use(), now, strategy=strategy, cordoned=cordoned, unused_s=unused_s)


def turn_of(state: HostState, waiter: Waiter, now: float) -> Turn | None:
    """Return when instances in use can be closed for a function."""
    if state.cordoned:
        return None
    ahead = state.line.ahead_of(waiter)
    functions = {**state.functions, **{reservation_id(w): w.function for w in ahead}}
    starts = {i.id: start_s(state, i.revision) for i in state.instances.values()}
    starts |= {reservation_id(w): w.start_s for w in ahead}
    host, strategy = with_reservations(state.record(), ahead), state.rules.strategy
    return next_turn(waiter, host, state.use(), functions, now, strategy=strategy, starts=starts)


def admit(state: HostState, instance: Instance, placement: Placement, now: float) -> None:
    """Assign a placement to an instance, and drain its victims."""
    placed = replace(instance, devices=placement.devices, memory_mb=placement.memory_mb)
    put(state, replace(placed, memory_from=placement.memory_from, waits_for=placement.waits_for))
    for victim in map(state.instances.__getitem__, placement.evict):
        if protection(victim, state.use(), now):  # it is in use: this is a turn
            decide(state, DecisionKind.CLOSED, victim, f"for the turn of {instance.function}")
            close(state, victim, instance.function, now)
            continue
        decide(state, DecisionKind.EVICTED, victim, f"for {instance.function}")
        drain(state, victim, DrainReason.EVICTED, now, instance.function)
    decide(state, DecisionKind.PLACED, instance, f"on {', '.join(placement.devices)}")


def admit_or_fail(state: HostState, instance: Instance, now: float) -> None:
    """Place an instance, or abandon it when there is no room."""
    function = state.functions[instance.id]
    instance = put(state, replace(instance, devices=(), memory_mb=0, waits_for=()))
    function_need = need_of(state, function, state.weights[instance.id])
    placement = place_waiter(state, state.line.waiter(function, function_need, now - instance.created, now), now)
    if isinstance(placement, Placement):
        admit(state, instance, placement, now)
        return
    fail(state, instance, Incident(placement.reason, FailureKind.ROOM), now)
    step(state, instance, Step.ABANDONED, now)


def consolidation(state: HostState, function_need: Need, now: float) -> Placement | None:
    """Empty devices for a function that needs several by moving idle instances together, when that is due.

    An instance that moves leaves once its replacement on other devices is ready.
    """
    due = 0 < state.rules.defrag_after_cycles <= state.cycles - state.defragged
    if function_need.devices < 2 or not due or state.cordoned:
        return None
    plan = consolidate(function_need, state.record(), state.use(), now, strategy=state.rules.strategy)
    if plan is None:
        return None
    state.defragged = state.cycles
    for move in plan.moves:
        instance = state.instances[move.instance]
        memory_mb, memory_from = instance.memory_mb, instance.memory_from
        successor = replacement(state, instance, "m", now)
        put(state, replace(successor, devices=move.to, memory_mb=memory_mb, memory_from=memory_from))
        put(state, replace(instance, moves_to=successor.id))
        decide(state, DecisionKind.MOVED, instance, f"to {', '.join(move.to)}")
    return Placement(
        devices=plan.devices,
        memory_mb=function_need.memory_mb,
        memory_from=function_need.memory_from,
        waits_for=tuple(m.instance for m in plan.moves),
    )


def replacement(state: HostState, instance: Instance, suffix: str, now: float) -> Instance:
    """Return another instance of the same spec and weights, to be placed."""
    successor = Instance(
        id=f"{instance.id}-{suffix}",
        function=instance.function,
        revision=instance.revision,
        state=State.PLACING,
        since=now,
        created=now,
        pinned=instance.pinned,
        priority=instance.priority,
    )
    state.functions[successor.id] = state.functions[instance.id]
    state.weights[successor.id] = state.weights[instance.id]
    return successor
