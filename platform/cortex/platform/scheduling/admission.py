"""Admission: where an instance starts on this host, by the rules of `placement.py`, `turns.py` and `defrag.py`, and
which instances make room for it. Pure.
"""

from collections.abc import Collection

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.lifecycle import PARKED, State, Step
from cortex.functions.spec import Function
from cortex.platform.fleet import Fleet
from cortex.platform.record import DrainReason, FailureKind, HostRecord, Instance, Tier
from cortex.platform.scheduling.defrag import consolidate
from cortex.platform.scheduling.eviction import protection
from cortex.platform.scheduling.failures import Incident
from cortex.platform.scheduling.ledger import placement_mb
from cortex.platform.scheduling.placement import Need, NoRoom, Placement, When, need, place
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.scheduling.start_modes import end_spare, give_way, is_spare, without_spares
from cortex.platform.scheduling.state import HostState
from cortex.platform.scheduling.steps import (
    abandon,
    close,
    decide,
    drain,
    drop,
    fail,
    put,
    step,
    with_reason,
    without_reason,
)
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


def start_s(state: HostState, revision: str, returning: Instance | None = None) -> float:
    """Return the seconds of earlier starts of a revision, or of the return of its parked instance; 0: not measured."""
    if returning is not None and returning.parks_to is not None:
        return returning.return_s.get(returning.parks_to, 0.0)
    entry = state.ledger.get(revision)
    return entry.start_s if entry else 0.0


class Offer(Struct, frozen=True):
    """How a function can become ready: as which waiter, where, and by the return of which instance.

    `returning` is None for a start.
    """

    waiter: Waiter
    placement: Placement | NoRoom
    returning: Instance | None = None


def offer(
    state: HostState,
    function: Function,
    weights: LocalWeights | None,
    now: float,
    *,
    waited_s: float = 0.0,
    exclude: Collection[str] = (),
    unused_s: float = 0.0,
) -> Offer:
    """Return how an instance of a function, other than those in `exclude`, can become ready: by a return, if its
    devices have room; else by a start; else a turn is awaited: of the return, or of a start if only that comes."""
    parked = state.parked(function.id, state.revision(function), exclude)
    start = state.line.waiter(function, need_of(state, function, weights), waited_s, now)
    if parked is None:
        return Offer(start, place_waiter(state, start, now, unused_s=unused_s))
    waiter = state.line.waiter(function, return_need(function, parked), waited_s, now)
    back = Offer(waiter, place_waiter(state, waiter, now, unused_s=unused_s, returning=parked), parked)
    if isinstance(back.placement, Placement):
        return back
    placement = place_waiter(state, start, now, unused_s=unused_s)
    if isinstance(placement, Placement) or (back.placement.when is When.NEVER and placement.when is When.LATER):
        return Offer(start, placement)
    return back


def return_need(function: Function, instance: Instance) -> Need:
    """Return what a parked instance needs: its memory, on the devices that it had."""
    return Need(
        function=function.id,
        engine=function.engine,
        devices=len(instance.devices),
        memory_mb=instance.memory_mb,
        memory_from=instance.memory_from,
        priority=function.priority,
    )


def place_waiter(
    state: HostState, waiter: Waiter, now: float, *, unused_s: float = 0.0, returning: Instance | None = None
) -> Placement | NoRoom:
    """Place a function outside the reservations of those ahead of it in line; `returning` on its devices."""
    record = without_spares(state, state.record())
    host = _without(returning, with_reservations(record, state.line.ahead_of(waiter)))
    strategy, cordoned = state.rules.strategy, state.cordoned
    return place(waiter.need, host, state.use(), now, strategy=strategy, cordoned=cordoned, unused_s=unused_s)


def turn_of(state: HostState, waiter: Waiter, now: float, returning: Instance | None = None) -> Turn | None:
    """Return when instances in use can be closed for a function; for `returning`, on its devices."""
    if state.cordoned:
        return None
    ahead = state.line.ahead_of(waiter)
    functions = {**state.functions, **{reservation_id(w.need.function): w.function for w in ahead}}
    starts = {i.id: start_s(state, i.revision) for i in state.instances.values()}
    starts |= {reservation_id(w.need.function): w.start_s for w in ahead}
    record = without_spares(state, state.record())
    host, strategy = _without(returning, with_reservations(record, ahead)), state.rules.strategy
    return next_turn(waiter, host, state.use(), functions, now, strategy=strategy, starts=starts)


def _without(returning: Instance | None, host: HostRecord) -> HostRecord:
    """Return the devices of an instance that returns, without itself: it needs all of its memory there."""
    if returning is None:
        return host
    devices = tuple(d for d in host.devices if d.id in returning.devices)
    return replace(host, devices=devices, instances=tuple(i for i in host.instances if i.id != returning.id))


def wake(state: HostState, instance: Instance, placement: Placement, now: float, *, minimum: bool = False) -> None:
    """Begin the return of a parked instance."""
    tier, instance = instance.parked, without_reason(instance)
    instance = replace(instance, created=now, phases={}, for_minimum=minimum, parks_to=tier)
    admit(state, step(state, instance, Step.WAKE, now), placement, now)


def admit(state: HostState, instance: Instance, placement: Placement, now: float) -> None:
    """Assign a placement to an instance, and drain its victims."""
    placed = replace(instance, devices=placement.devices, memory_mb=placement.memory_mb)
    placed = put(state, replace(placed, memory_from=placement.memory_from, waits_for=placement.waits_for))
    give_way(state, placed, now)
    for victim in map(state.instances.__getitem__, placement.evict):
        tier = placement.parks.get(victim.id)
        if protection(victim, state.use(), now, tier or Tier.STOP):  # it is in use: this is a turn
            decide(state, DecisionKind.CLOSED, victim, f"for the turn of {instance.function}")
            close(state, victim, instance.function, now, tier)
            continue
        decide(state, DecisionKind.EVICTED, victim, f"for {instance.function}")
        if victim.state in PARKED:  # no request is in flight; `reconcile` takes the step
            victim = replace(victim, parks_to=tier, deadline=now + state.rules.drain_grace_s)
            put(state, with_reason(victim, DrainReason.EVICTED, instance.function))
        else:
            drain(state, victim, DrainReason.EVICTED, now, instance.function, tier)
    decide(state, DecisionKind.PLACED, instance, f"on {', '.join(placement.devices)}")


def admit_or_fail(state: HostState, instance: Instance, now: float) -> None:
    """Place an instance, or abandon it when there is no room, or when it is only to replace one that serves."""
    if is_spare(state, instance):
        drop(state, instance)
        abandon(state, instance, now)
        return
    function = state.functions[instance.id]
    returning = instance if instance.parked else None
    if returning:
        instance = put(state, replace(instance, waits_for=()))
        function_need = return_need(function, instance)
    else:
        instance = put(state, replace(instance, devices=(), memory_mb=0, waits_for=()))
        function_need = need_of(state, function, state.weights[instance.id])
    waiter = state.line.waiter(function, function_need, now - instance.created, now)
    placement = place_waiter(state, waiter, now, returning=returning)
    if isinstance(placement, Placement):
        admit(state, instance, placement, now)
        return
    fail(state, instance, Incident(placement.reason, FailureKind.ROOM), now)
    abandon(state, instance, now)


def consolidation(state: HostState, function_need: Need, now: float) -> Placement | None:
    """Empty devices for a function that needs several by moving idle instances together, when that is due.

    An instance that moves leaves once its replacement on other devices is ready.
    """
    due = 0 < state.rules.defrag_after_cycles <= state.cycles - state.defragged
    if function_need.devices < 2 or not due or state.cordoned:
        return None
    host = without_spares(state, state.record())
    plan = consolidate(function_need, host, state.use(), now, strategy=state.rules.strategy)
    if plan is None:
        return None
    state.defragged = state.cycles
    for move in plan.moves:
        if (spare := state.instances.get(state.instances[move.instance].moves_to)) is not None:
            end_spare(state, spare, "its move to other devices", now)
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
