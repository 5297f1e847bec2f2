"""The steps of an instance. Pure.

A step is one row of the table in `lifecycle.py`, with its consequences: the epoch that routers must acknowledge, the
effect for the supervisor, the decision.
"""

from msgspec.structs import replace

from cortex.functions.lifecycle import COMING, PARKED, State, Step, after
from cortex.platform.record import DrainReason, FailureKind, Instance, Tier
from cortex.platform.scheduling.contexts import unseated_of
from cortex.platform.scheduling.effects import CancelFetch, Decision, Park, Stop
from cortex.platform.scheduling.failures import Incident
from cortex.platform.scheduling.reasons import DecisionKind, drain_text
from cortex.platform.scheduling.state import HostState

HUNG_GRACE_S = 1.0
"""Time from TERM to KILL for a worker that hangs."""


def decide(state: HostState, what: DecisionKind, instance: Instance, why: str) -> None:
    """Log a decision about an instance."""
    state.effects.append(Decision(what, instance.function, instance.id, why))


def drain(
    state: HostState, instance: Instance, reason: DrainReason, now: float, detail: str = "", tier: Tier | None = None
) -> None:
    """Begin the drain handshake; then the instance goes to the tier, or stops."""
    state.epoch += 1
    instance = replace(with_reason(instance, reason, detail), epoch=state.epoch, parks_to=tier)
    instance = replace(instance, deadline=now + state.rules.drain_grace_s)
    if reason is not DrainReason.EVICTED:  # an eviction has its own decision
        _decide_end(state, DecisionKind.DRAINING, instance)
    step(state, instance, Step.DRAIN, now)


def close(state: HostState, instance: Instance, function: str, now: float, tier: Tier | None = None) -> None:
    """Close an instance in use for a function whose turn has come: it finishes its requests, then goes to the tier or
    stops.

    `request_timeout_s` bounds how long that takes.
    """
    state.epoch += 1
    latest = now + state.functions[instance.id].request_timeout_s
    instance = replace(with_reason(instance, DrainReason.TURN, function), epoch=state.epoch, parks_to=tier)
    step(state, replace(instance, yields_to=function, deadline=latest), Step.DRAIN, now)


def cancel_drain(state: HostState, instance: Instance, why: str, now: float) -> None:
    """Cancel the drain of an instance; abandon the start of its replacement."""
    state.epoch += 1
    decide(state, DecisionKind.DRAIN_CANCELLED, instance, why)
    step(state, replace(without_reason(instance), epoch=state.epoch), Step.TAKEN_BACK, now)
    for twin in state.twins(instance):
        if twin.state in (State.FETCHING, State.PLACING):
            decide(state, DecisionKind.ABANDONED, twin, f"{instance.id} serves on")
            abandon(state, twin, now)


def stop(
    state: HostState,
    instance: Instance,
    now: float,
    reason: DrainReason | None = None,
    detail: str = "",
    *,
    hung: bool = False,
) -> None:
    """Stop a worker; without a reason, for the one it drains for. One that is `hung` has little time to end itself."""
    unseated = None if hung or reason is DrainReason.FAILED else unseated_of(state, instance)
    instance = with_reason(instance, reason, detail) if reason else instance
    instance = step(state, instance, Step.STOP, now)
    _decide_end(state, DecisionKind.STOPPED, instance)
    grace_s = state.rules.stop_grace_s
    state.effects.append(Stop(instance, min(grace_s, HUNG_GRACE_S) if hung else grace_s, unseated))


def park(state: HostState, instance: Instance, tier: Tier, ram_mb: int, now: float) -> None:
    """Move the memory of an idle worker to a tier, for which there is RAM. The record has the RAM that it will hold,
    the effect what it holds now: 0 for one that was never parked."""
    held_mb, unseated = instance.ram_mb, unseated_of(state, instance)
    instance = step(state, replace(instance, parks_to=tier, ram_mb=ram_mb), Step.PARK, now)
    state.effects.append(Park(replace(instance, ram_mb=held_mb), state.functions[instance.id], tier, unseated))


def abandon(state: HostState, instance: Instance, now: float) -> None:
    """Give up a start whose worker does not run yet, or a return: then the instance stays in its tier."""
    if instance.parked is None:
        step(state, instance, Step.ABANDONED, now)
    else:
        rest = replace(instance, parks_to=instance.parked, waits_for=())
        step(state, rest, into(instance.parked), now)


def end(state: HostState, instance: Instance, reason: DrainReason, now: float, *, at_once: bool = False) -> bool:
    """Drain, stop or abandon an instance. False when it is already ending."""
    match instance.state:
        case State.FETCHING | State.PLACING:
            fail(state, instance, Incident(f"given up before it started: {reason}", _cancelled(reason)), now)
            if instance.parked is None or reason is DrainReason.UNRECORDED:
                abandon(state, instance, now)
            else:
                stop(state, instance, now, reason)
        case State.STARTING:
            fail(state, instance, Incident(f"given up while it was starting: {reason}", _cancelled(reason)), now)
            stop(state, instance, now, reason)
        case State.READY if not at_once:
            drain(state, instance, reason, now)
        case State.READY | State.DRAINING if at_once:
            stop(state, instance, now, reason)
        case State.DRAINING:
            deadline = now + state.rules.drain_grace_s
            put(state, replace(with_reason(instance, reason), deadline=deadline, parks_to=None))
        case State.PARKING:
            stop(state, instance, now, reason)
        case _ if instance.state in PARKED and at_once:
            stop(state, instance, now, reason)
        case _ if instance.state in PARKED:  # it stops when no start on its devices is disturbed
            put(state, replace(with_reason(instance, reason), parks_to=None))
        case _:
            return False
    return True


def fail(state: HostState, instance: Instance, incident: Incident, now: float) -> None:
    """Record what went wrong with an instance."""
    failure = state.failures.add(instance, incident, now)
    decide(state, DecisionKind.FAILED, instance, failure.reason)


def fail_and_stop(state: HostState, instance: Instance, incident: Incident, now: float) -> None:
    """Record what went wrong with an instance, and stop it."""
    fail(state, instance, incident, now)
    stop(state, instance, now, DrainReason.FAILED)


def step(state: HostState, instance: Instance, taken: Step, now: float) -> Instance:
    """Take a step. Raises IllegalStep. One that ends goes to no tier, and waits for no other instance."""
    if instance.state is State.FETCHING and taken is Step.ABANDONED:
        state.effects.append(CancelFetch(instance, state.functions[instance.id]))
    if instance.state in COMING:
        instance = replace(instance, phases=phases_until(instance, now))
    if taken in (Step.STOP, Step.EXITED):
        instance = replace(instance, parks_to=None, waits_for=())
    for table in (state.looks, state.proofs, state.overdue):
        table.pop(instance.id, None)
    return put(state, replace(instance, state=after(instance.state, taken), since=now, problem=""))


def put(state: HostState, instance: Instance) -> Instance:
    """Replace an instance; one that is gone is removed, and the one that it was to replace stays."""
    if instance.state is State.GONE:
        drop(state, instance)
        for table in (
            state.instances, state.functions, state.weights, state.rehearsals, state.upgrades, state.adapter_failures,
        ):  # fmt: skip
            table.pop(instance.id, None)
    else:
        state.instances[instance.id] = instance
    return instance


def predecessor(state: HostState, instance: Instance) -> Instance | None:
    """Return the instance that a full start is to replace, while that one serves; None for every other instance."""
    before = state.instances.get(instance.replaces)
    return before if before is not None and before.moves_to == instance.id else None


def drop(state: HostState, instance: Instance) -> None:
    """Let the instance that a full start was to replace stay."""
    if (before := predecessor(state, instance)) is not None:
        state.upgrades[before.id] = state.upgrades.get(before.id, 0) + 1
        put(state, replace(before, moves_to=""))


def phases_until(instance: Instance, now: float) -> dict[str, float]:
    """Return the seconds of each phase of a start, the current one's until now. The first phase, before the worker
    logs anything, has the state's name."""
    starts = instance.state is State.STARTING
    name = instance.phase if starts and instance.phase else str(instance.state)
    spent = now - (max(instance.since, instance.phase_since) if starts else instance.since)
    return {**instance.phases, name: round(instance.phases.get(name, 0.0) + spent, 3)}


def without_reason(instance: Instance) -> Instance:
    """Return an instance whose drain is cancelled."""
    return replace(instance, reason=None, why="", deadline=0.0, yields_to="", parks_to=None)


def into(tier: Tier) -> Step:
    """Return the step into a tier."""
    return Step.FROZEN if tier is Tier.FREEZE else Step.ASLEEP


def with_reason(instance: Instance, reason: DrainReason, detail: str = "") -> Instance:
    return replace(instance, reason=reason, why=drain_text(reason, detail))


def _decide_end(state: HostState, what: DecisionKind, instance: Instance) -> None:
    state.effects.append(Decision(what, instance.function, instance.id, instance.why, instance.reason))


def _cancelled(reason: DrainReason) -> FailureKind:
    """Return the failure kind of a cancelled start: after ROOM, requests may try another host or revision."""
    elsewhere = (DrainReason.HOST_DRAIN, DrainReason.SHUTDOWN, DrainReason.SUPERSEDED, DrainReason.UNRECORDED)
    return FailureKind.ROOM if reason in elsewhere else FailureKind.CANCELLED
