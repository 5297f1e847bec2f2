"""What callers request of the scheduler: `ensure`, `cool`, drains, a new catalogue; and the adoption of workers. Pure.

Callers *ensure*; they never check and then start.
"""

from msgspec.structs import replace

from cortex.functions.lifecycle import PARKED, State
from cortex.functions.names import join_names
from cortex.functions.spec import Function
from cortex.platform.agent_messages import Accepted, PlacementPlan, Rejected, Victim
from cortex.platform.record import DrainReason, Failure, Instance, Tier
from cortex.platform.scheduling.adapters import drop_undeclared, resume_unloads
from cortex.platform.scheduling.admission import Offer, admit, consolidation, offer, start_s, turn_of, wake
from cortex.platform.scheduling.effects import Decision, Ending, Fetch, Reclaim, Stop
from cortex.platform.scheduling.events import Adopted, CatalogueChanged, CoolRequest, EnsureRequest
from cortex.platform.scheduling.failures import Incident
from cortex.platform.scheduling.placement import MINIMUM_YIELDS_S, NoRoom, Placement, When
from cortex.platform.scheduling.reasons import MAY_PARK, DecisionKind
from cortex.platform.scheduling.reconcile import reconcile
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.scheduling.start_modes import mode_of
from cortex.platform.scheduling.state import HostState
from cortex.platform.scheduling.steps import (
    cancel_drain,
    decide,
    drain,
    end,
    fail_and_stop,
    put,
    with_reason,
    without_reason,
)

SUPERSEDED_S = 30.0
"""How long a superseded revision is not started again: routers read the catalogue within a second."""


def adopt(state: HostState, event: Adopted, now: float) -> None:
    """Take over a worker that an earlier agent of this host started:

    (1) its process is gone: reclaim its memory;
    (2) it was stopping, or in a state or tier of a later release: stop it;
    (3) it was starting: keep waiting for it;
    (4) it is parked, whatever it was: it stays in its tier, and a return is begun again by the next request;
    (5) it serves its model: it is ready, and an earlier drain is cancelled;
    (6) it does not answer: stop it.
    """
    worker = event.worker
    instance = replace(worker.instance, adapter_steps={})  # an earlier agent's loads have ended with it
    state.functions[instance.id], state.weights[instance.id] = worker.function, worker.weights
    ended = replace(instance, parks_to=None, waits_for=())
    if not event.alive or instance.state is State.RECLAIMING:  # (1)
        instance = put(state, replace(ended, state=State.RECLAIMING, since=now))
        state.effects.append(Reclaim(instance))
        return
    later = instance.state is State.OTHER or Tier.OTHER in (instance.parked, instance.parks_to)
    if later or instance.state is State.STOPPING:  # (2)
        instance = put(state, replace(ended, state=State.STOPPING))
        state.effects.append(Stop(instance, state.rules.stop_grace_s))
        return
    if instance.state is State.STARTING and instance.parks_to is None:  # (3)
        put(state, replace(instance, last_sign=now))
        return
    state.epoch += 1
    instance = replace(without_reason(instance), waits_for=(), epoch=state.epoch)
    if event.asleep:  # (4)
        tier = instance.parked or Tier.SLEEP
        rests = State.FROZEN if tier is Tier.FREEZE else State.SLEEPING
        since = instance.since if instance.state is rests else now
        instance = put(state, replace(instance, state=rests, parked=tier, parks_to=tier, since=since))
        decide(state, DecisionKind.ADOPTED, instance, f"{rests}, pid {instance.pid}")
        return
    instance = put(state, replace(instance, state=State.READY, parked=None))
    if event.healthy:  # (5)
        decide(state, DecisionKind.ADOPTED, instance, f"pid {instance.pid}")
        resume_unloads(state, instance)
    else:  # (6)
        fail_and_stop(state, instance, Incident("the worker did not answer the restarted agent"), now)


def ensure(state: HostState, event: EnsureRequest, now: float) -> Accepted | Rejected:
    """Ensure that an instance of a function, other than those in `beside`, is ready or on its way up:

    (1) the catalogue has just superseded this revision: rejected, because the caller's catalogue is old;
    (2) there is one: return it; a drain that nothing depends on is cancelled;
    (3) its starts keep failing: rejected until the back-off is over, unless forced, or one that is parked can return;
    (4) it does not fit, or only by eviction and without `evict`: with `turn` it joins the line, and instances in
        use are closed for it when its turn comes (`turns.py`); otherwise rejected, with the reason;
    (5) one is parked: make room for its return, or let it return as soon as it is parked;
    (6) its weights are missing: fetch them first, make room later;
    (7) make room and start it as `event.instance`.
    """
    request, weights = event.request, event.weights
    function, rev = request.function, state.revision(request.function)
    if state.catalogue is not None and state.catalogue.get(function.id) != function:
        # The caller's catalogue differs from this host's: publish no digest, so that a router sends it again. An
        # instance that is not in that one either is superseded by it.
        state.catalogue_digest = ""
    if now < state.superseded.get(rev, 0.0):  # (1)
        return _superseded(function)
    up = state.on_way_or_up(function.id, rev, request.beside)  # (2)
    if up and up.state is State.DRAINING:
        cancel_drain(state, up, "wanted again", now)
        return Accepted(up.id, State.READY)
    if up:
        state.functions[up.id] = function
        return Accepted(up.id, up.state)
    unused_s = max(request.unused_s, MINIMUM_YIELDS_S if request.minimum else 0.0)
    best = offer(state, function, weights, now, waited_s=request.waited_s, exclude=request.beside, unused_s=unused_s)
    waiter, placement, parked = best.waiter, best.placement, best.returning
    failure = state.failures.of(function.id, rev)  # (3)
    if failure and failure.retry_at > now and not request.force and parked is None:
        return _backing_off(failure, now)
    if not request.evict and isinstance(placement, Placement) and placement.waits_for:
        placement = NoRoom(reason="no room is free for one more instance", when=When.LATER)
    elif weights is not None and parked is None and (isinstance(placement, NoRoom) or placement.evict):
        placement = consolidation(state, waiter.need, now) or placement
    if isinstance(placement, NoRoom):  # (4)
        may_close = request.evict and not request.minimum and placement.when is When.LATER
        next_turn = turn_of(state, waiter, now, parked) if may_close else None
        if request.turn and request.evict:
            state.line.join(replace(waiter, turn=next_turn, start_s=start_s(state, rev, parked)))
        here = weights is not None or parked is not None
        if next_turn is None or not request.turn or (next_turn.at > now and here):
            state.effects.append(Decision(DecisionKind.REFUSED, function.id, "", placement.reason))
            turn_in_s = next_turn.at - now if next_turn else None
            return Rejected(
                placement.reason,
                placement.when,
                short_by_mb=placement.short_by_mb,
                turn_in_s=turn_in_s,
                foreign_mb=placement.foreign_mb,
            )
        placement = next_turn.placement  # missing weights are fetched before the turn
        if here:
            cost = _cost(state, best, placement, now)
            started = parked.id if parked else event.instance
            state.effects.append(Decision(DecisionKind.TURN, function.id, started, cost))
    if not request.beside:
        state.line.leave(function.id)
    if parked is not None:  # (5)
        state.functions[parked.id] = function
        return _return(state, parked, placement, now, minimum=request.minimum)
    instance = Instance(
        id=event.instance,
        function=function.id,
        revision=rev,
        state=State.FETCHING if weights is None else State.PLACING,
        since=now,
        created=now,
        pinned=_is_pinned(state, function),
        priority=function.priority,
        for_minimum=request.minimum,
    )
    state.functions[instance.id] = function
    instance = put(state, replace(instance, start_mode=mode_of(state, instance, waits=request.waited_s > 0)))
    if weights is None:  # (6)
        state.effects.append(Fetch(instance, function))
    else:  # (7)
        state.weights[instance.id] = weights
        admit(state, instance, placement, now)
        for twin in state.twins(instance):
            is_parked = twin.state is State.PARKING or twin.state in PARKED
            if is_parked and not request.beside:  # its devices had no room
                end(state, twin, DrainReason.MOVED, now)
    reconcile(state, now)
    # Placing may already have failed (the reason is then in the failures) or moved on.
    current = state.instances.get(instance.id)
    return Accepted(instance.id, current.state if current else State.GONE)


def _return(state: HostState, instance: Instance, placement: Placement, now: float, *, minimum: bool) -> Accepted:
    """Begin the return of a parked instance; one that is being parked returns right after that."""
    if instance.state is State.PARKING:
        put(state, replace(instance, reason=None, why=""))
        return Accepted(instance.id, instance.state)
    wake(state, instance, placement, now, minimum=minimum)
    reconcile(state, now)
    return Accepted(instance.id, state.instances[instance.id].state)


def withdraw(state: HostState, instance: str, now: float) -> None:
    """End an instance whose start the record does not show; one that is ready may be in it by now, and in use, so its
    requests end first."""
    if instance in state.instances:
        current = state.instances[instance]
        end(state, current, DrainReason.UNRECORDED, now, at_once=current.state is not State.READY)
        reconcile(state, now)


def plan(state: HostState, function: Function, weights: LocalWeights | None, now: float) -> PlacementPlan | Rejected:
    """Return what `ensure` would do, without doing it."""
    rev = state.revision(function)
    if now < state.superseded.get(rev, 0.0):
        return _superseded(function)
    if up := state.on_way_or_up(function.id, rev):
        return PlacementPlan(host=state.host.name, there=up.id, devices=up.devices, memory_mb=up.memory_mb)
    failure = state.failures.of(function.id, rev)
    best = offer(state, function, weights, now)
    waiter, placement, parked = best.waiter, best.placement, best.returning
    if isinstance(placement, NoRoom):
        next_turn = turn_of(state, waiter, now, parked) if placement.when is When.LATER else None
        turn_in_s = next_turn.at - now if next_turn else None
        return Rejected(placement.reason, placement.when, short_by_mb=placement.short_by_mb, turn_in_s=turn_in_s)
    usage = state.use()
    victims = (state.instances[v] for v in placement.evict)
    return PlacementPlan(
        host=state.host.name,
        devices=placement.devices,
        memory_mb=placement.memory_mb,
        memory_from=placement.memory_from,
        evict=tuple(
            Victim(v.id, v.function, round(now - usage.last_used(v), 1), placement.parks.get(v.id)) for v in victims
        ),
        retry_at=failure.retry_at if failure and failure.retry_at > now and not parked else 0.0,
        returns=parked.id if parked else "",
        tier=parked.parks_to if parked else None,
    )


def cool(state: HostState, event: CoolRequest, now: float) -> None:
    """End the instances of a function; or park those that can be parked, after their requests."""
    instances = [i for i in state.instances.values() if i.function == event.function]
    ids = [
        i.id
        for i in instances
        if (event.park and _park(state, i, now)) or end(state, i, DrainReason.COOL, now, at_once=event.at_once)
    ]
    state.effects.append(Ending(tuple(ids)))
    reconcile(state, now)


def _park(state: HostState, instance: Instance, now: float) -> bool:
    """Park an instance after its requests, or leave it parked; False: it has no tier, or is to end."""
    tier = next(iter(instance.tiers), None)
    if instance.state is State.READY and tier is not None:
        drain(state, instance, DrainReason.COOL, now, tier=tier)
    elif instance.state is State.DRAINING and tier is not None and instance.reason in MAY_PARK:
        if instance.parks_to is None and state.is_awaited(instance.id):
            return False  # another needs the memory that it would keep
        put(state, replace(with_reason(instance, DrainReason.COOL), parks_to=instance.parks_to or tier))
    else:
        return instance.state is State.PARKING or instance.state in PARKED
    return True


def forget_failures(state: HostState, function: str) -> None:
    """Forget a function's failures, and which tiers and tricks failed for it: all are tried again."""
    state.failures.forget(function)
    revisions = {i.revision for i in state.instances.values() if i.function == function}
    if declared := (state.catalogue or {}).get(function):
        revisions.add(state.revision(declared))
    state.switch_on(revisions)


def drain_host(state: HostState, now: float) -> None:
    """Start nothing more, and end every instance after its requests."""
    state.cordoned = True
    ids = [i.id for i in list(state.instances.values()) if end(state, i, DrainReason.HOST_DRAIN, now)]
    state.effects.append(Ending(tuple(ids)))
    reconcile(state, now)


def shut_down(state: HostState, now: float) -> None:
    """End every instance at once."""
    for instance in list(state.instances.values()):
        end(state, instance, DrainReason.SHUTDOWN, now, at_once=True)


def apply_catalogue(state: HostState, event: CatalogueChanged, now: float) -> None:
    """Drain instances whose launch command changed or whose function is gone as superseded; give the others the new
    settings."""
    state.catalogue, state.catalogue_digest = dict(event.functions), event.digest
    revisions = {f.id: state.revision(f) for f in event.functions.values()}
    declared_now = set(revisions.values())
    state.superseded = {r: t for r, t in state.superseded.items() if t > now and r not in declared_now}
    for instance in list(state.instances.values()):
        declared = event.functions.get(instance.function)
        if declared is None or revisions[declared.id] != instance.revision:
            state.superseded[instance.revision] = now + SUPERSEDED_S
            end(state, instance, DrainReason.SUPERSEDED, now)
        else:
            instance = drop_undeclared(state, instance, declared)
            state.functions[instance.id] = declared
            put(state, replace(instance, pinned=_is_pinned(state, declared), priority=declared.priority))
    state.failures.keep_only(event.functions)
    state.switch_on((state.host.unparkable.keys() | state.host.tricks_off.keys()) - declared_now)
    reconcile(state, now)


def _is_pinned(state: HostState, function: Function) -> bool:
    return function.pinned or state.host.name in function.pinned_on


def _cost(state: HostState, best: Offer, placement: Placement, now: float) -> str:
    """Return the text of a turn's decision."""
    waiter = best.waiter
    leaving = sorted({state.instances[i].function for i in placement.evict})
    close = "close" if len(leaving) > 1 else "closes"
    expected_s = start_s(state, state.revision(waiter.function), best.returning)
    takes = f"; its {'return' if best.returning else 'start'} takes {expected_s:.1f} s" if expected_s else ""
    return f"it has waited {now - waiter.since:.0f} s; {join_names(leaving)} {close} for it{takes}"


def _superseded(function: Function) -> Rejected:
    return Rejected(f"the catalogue has a newer revision of '{function.id}', or no longer has it", When.LATER)


def _backing_off(failure: Failure, now: float) -> Rejected:
    reason = (
        f"starts keep failing ({max(failure.count, failure.early)} in a row), tried again no sooner than "
        f"{round(failure.retry_at - now)} s from now: {failure.reason}"
    )
    return Rejected(reason, When.LATER, retry_at=failure.retry_at, failure=failure)
