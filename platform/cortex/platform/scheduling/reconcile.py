"""Reconciliation: take the steps that are due. Pure.

`reconcile()` is called after every event and on every tick: it starts a placing instance whose room is free, gives up a
start without a sign of life, drains an idle instance, and finishes a drain that all routers have acknowledged.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from cortex.functions.launch import StartMode, Trick
from cortex.functions.lifecycle import LIVE, State, Step
from cortex.functions.servers import max_concurrency, server_of
from cortex.functions.spec import Function
from cortex.platform.record import DrainReason, Instance, Silence, Tier, Use
from cortex.platform.scheduling.admission import admit_or_fail
from cortex.platform.scheduling.effects import Fetch, Look, Prove, Reclaim, Spawn, Stop, Wake
from cortex.platform.scheduling.failures import Incident
from cortex.platform.scheduling.ledger import WAKING, beside_cache_mb
from cortex.platform.scheduling.parking import tier_from
from cortex.platform.scheduling.progress import PROOF_S, Proof, is_doubtful, silence
from cortex.platform.scheduling.reaping import reap_at
from cortex.platform.scheduling.reasons import FOR_LATER, FOR_ROOM, DecisionKind
from cortex.platform.scheduling.start_modes import mode_of
from cortex.platform.scheduling.state import HostState, Observation
from cortex.platform.scheduling.steps import abandon, cancel_drain, decide, drain, put, step
from cortex.platform.scheduling.tiers import give_up, learn, leave, move_limit, rehearse, shed
from cortex.platform.scheduling.turns import REPORTED_S
from cortex.platform.scheduling.upgrades import follow, upgrade

STABLE_S = 60.0
"""An instance that was ready this long clears its function's failures."""

SLOWEST_LOAD_MB_S = 50.0
"""The slowest speed of reading weights that the start ceiling allows for."""

LOOK_AGAIN_S = 5.0
"""How long a look at a worker may take before another is requested."""

PROVE_AGAIN_S = PROOF_S + 5.0
"""How long a proof may take before another is requested."""

LOOK_FRESH_S = 1.0
"""Maximum age of a look when a worker is stopped because of it."""

OVERDUE_S = {
    State.FETCHING: 300.0,
    State.PLACING: 120.0,
    State.STOPPING: 30.0,
    State.RECLAIMING: 60.0,
}
"""How long an instance may be in a state without progress before that is reported and retried."""


STALL_S = 2.0
"""A longer time between two calls is a stall of the agent or of its machine. For as long after it, no worker is given
up: what it did meanwhile is still to be read."""


def reconcile(state: HostState, now: float) -> None:
    """Take the steps that are due. Called after every event and on every tick."""
    if state.reconciled_at and now - state.reconciled_at > STALL_S:
        state.stalled_until = now + STALL_S
    state.reconciled_at = now
    usage = state.use()
    if state.line:
        state.line.prune(usage, state.functions_starting(), now)
    for instance_id in list(state.instances):
        instance = state.instances.get(instance_id)  # an earlier iteration may have changed it
        if instance is None:
            continue
        instance = learn(state, instance)
        match instance.state:
            case State.PLACING:
                _reconcile_placing(state, instance, usage, now)
            case State.STARTING | State.PARKING if instance.parks_to is not None:
                _reconcile_moving(state, instance, now)
            case State.STARTING:
                _reconcile_starting(state, instance, now)
            case State.READY:
                _reconcile_ready(state, instance, usage, now)
            case State.DRAINING:
                _reconcile_draining(state, instance, usage, now)
            case State.SLEEPING | State.FROZEN:
                leave(state, instance, now)
        if (current := state.instances.get(instance_id)) and current.state in OVERDUE_S:
            _reconcile_overdue(state, current, now)
    shed(state, now)


def _reconcile_overdue(state: HostState, instance: Instance, now: float) -> None:
    """Report what an overdue instance waits for, and retry:

    (1) a fetch without progress is resumed;
    (2) an instance that waits for others to leave is placed again: there may be room elsewhere;
    (3) a worker that does not end is stopped, and its memory reclaimed, again.
    """
    bound = OVERDUE_S[instance.state]
    if instance.state is State.STOPPING:
        bound += state.rules.stop_grace_s
    moved = max(instance.since, instance.phase_since if instance.state is State.FETCHING else 0.0)
    if now < state.overdue.get(instance.id, moved + bound):
        return
    if any(state.instances[w].yields_to for w in instance.waits_for if w in state.instances):
        return  # an instance that closes for it may take as long as its requests
    state.overdue[instance.id] = now + bound
    log_it = not instance.problem
    match instance.state:
        case State.FETCHING:  # (1)
            problem = f"the fetch of its weights has made no progress for {bound:.0f} s"
            state.effects.append(Fetch(instance, state.functions[instance.id]))
        case State.PLACING:  # (2)
            waits = [w for w in instance.waits_for if w in state.instances]
            names = ", ".join(f"{state.instances[w].function} ({state.instances[w].state})" for w in waits)
            problem = f"it waits for {names or 'another start or stop on its devices'}"
            if all(state.instances[w].state is not State.DRAINING for w in waits):
                admit_or_fail(state, instance, now)
        case State.STOPPING:  # (3)
            problem = "its process does not end"
            state.effects.append(Stop(instance, state.rules.stop_grace_s))
        case _:  # (3)
            problem = "the memory of its process is not released"
            state.effects.append(Reclaim(instance))
    current = state.instances.get(instance.id)
    if current is not None and current.state is instance.state and not current.problem:
        put(state, replace(current, problem=problem))
    if log_it:
        decide(state, DecisionKind.OVERDUE, instance, problem)


def _reconcile_placing(state: HostState, instance: Instance, usage: Use, now: float) -> None:
    """Start it once all instances it waits for are gone and no start or stop runs on its GPUs."""
    present = [w for w in instance.waits_for if not state.has_left(w)]
    if _turn_is_pointless(state, instance, present, usage, now):
        decide(state, DecisionKind.ABANDONED, instance, "no request waits for it any more")
        abandon(state, instance, now)
        return
    still_live = (w for w in present if state.instances[w].state in LIVE and not state.is_moving(w))
    if any(still_live):  # a victim's drain was cancelled: place again
        admit_or_fail(state, instance, now)
        return
    if present != list(instance.waits_for):
        instance = put(state, replace(instance, waits_for=tuple(present)))
    if present or state.is_lane_taken(instance):
        return
    instance = replace(instance, started=now, last_sign=now, phase="starting")
    if (tier := instance.parked) is not None:
        instance = replace(instance, parked=None, path=str(tier), warm=False, phase=WAKING)
        instance = step(state, instance, Step.PLACED, now)
        state.effects.append(Wake(instance, state.functions[instance.id], tier))
        return
    waits = instance.start_mode is StartMode.FAST or usage.waiting.get(instance.function, 0) > 0
    mode = mode_of(state, instance, waits=waits)
    instance = step(state, replace(instance, start_mode=mode), Step.PLACED, now)
    state.cycles += 1
    # After a failed start the engine sizes its cache itself.
    failed = state.failures.of(instance.function, instance.revision) is not None
    unknown = failed or Trick.KNOWN_CACHE in state.tricks_off(instance.revision)
    entry = None if unknown else state.ledger.get(instance.revision)
    beside_mb = beside_cache_mb(entry, len(instance.devices), fast=mode is StartMode.FAST)
    state.effects.append(Spawn(instance, state.functions[instance.id], state.weights[instance.id], beside_mb))


def _turn_is_pointless(state: HostState, instance: Instance, present: Sequence[str], usage: Use, now: float) -> bool:
    """Whether instances in use are closing for one that no request waits for any more: their drain is cancelled."""
    closing = [w for w in present if state.instances[w].yields_to == instance.function]
    return (
        any(state.instances[w].state is State.DRAINING for w in closing)
        and usage.known
        and not usage.waiting.get(instance.function)
        and now - instance.since > REPORTED_S
    )


def _reconcile_moving(state: HostState, instance: Instance, now: float) -> None:
    """Stop a worker that hangs while its memory moves: others wait for its room, or its own requests for its return."""
    limit_s, moves = move_limit(state, instance), "return" if instance.state is State.STARTING else "go"
    if now - instance.since > limit_s and now >= state.stalled_until:
        way = f"{moves} {'from' if moves == 'return' else 'to'} {instance.parks_to}"
        give_up(state, instance, Incident(f"it did not {way} within {limit_s:.0f} s"), now, hung=True)


def _reconcile_starting(state: HostState, instance: Instance, now: float) -> None:
    silent, total, ceiling = now - instance.last_sign, now - instance.started, _ceiling(state, instance)
    if now < state.stalled_until:
        return
    if silent > state.rules.start_silence_s:
        give_up(state, instance, Incident(f"the start showed no sign of life for {silent:.0f} s"), now)
    elif total > ceiling:
        give_up(state, instance, Incident(f"the start took longer than {ceiling:.0f} s"), now)


def _ceiling(state: HostState, instance: Instance) -> float:
    """Maximum duration of a start: the rule's, plus the time to read its weights from a slow disk."""
    return state.rules.start_ceiling_s + state.weights[instance.id].size_mb / SLOWEST_LOAD_MB_S


def _reconcile_ready(state: HostState, instance: Instance, usage: Use, now: float) -> None:
    """Drain it once it was idle long enough, and the function's `min` does not need it."""
    failure = state.failures.of(instance.function, instance.revision)
    if failure and now - instance.ready > STABLE_S and failure.at < instance.ready:
        state.failures.forget(instance.function)
    function = state.functions.get(instance.id)
    successor = state.instances.get(instance.moves_to)
    if successor is not None and successor.state is State.READY:
        upgraded = successor.replaces == instance.id
        where = successor.id if upgraded else ", ".join(successor.devices)
        drain(state, instance, DrainReason.UPGRADED if upgraded else DrainReason.MOVED, now, where)
        return
    if usage.known and function is not None:
        _reconcile_progress(state, instance, function, now)
    if not usage.known or function is None or upgrade(state, instance, usage, now) or instance.pinned:
        return
    if usage.in_flight.get(instance.id) and _only_silent(state, instance):
        _is_idle(state, instance, now)  # requests a look; its result counts from the next report on
    at = reap_at(instance, function, usage, state.in_fleet())
    if at is not None and now >= at:
        tier = tier_from(instance, Tier.SLEEP)
        drain(state, instance, DrainReason.IDLE, now, tier=None if tier is Tier.STOP else tier)
    else:
        rehearse(state, instance, usage, now)


def _reconcile_progress(state: HostState, instance: Instance, function: Function, now: float) -> None:
    """Send a request of one token to a worker that has been silent for too long."""
    proof = state.proofs.get(instance.id)
    if proof is not None and now - proof.sent < PROVE_AGAIN_S and proof.answered < proof.sent:
        return
    silent = silence_of(state, instance, now)
    if silent is not None and is_doubtful(silent, full=is_full(state, instance, function)):
        state.proofs[instance.id] = Proof(sent=now, answered=proof.answered if proof else 0.0)
        state.effects.append(Prove(instance, function))


def silence_of(state: HostState, instance: Instance, now: float) -> Silence | None:
    """Return for how long an instance has been silent for all routers; None: it is not, or they are unknown."""
    fleet = state.reports.fleet
    return silence(instance.id, fleet.routers.values(), state.proofs.get(instance.id), now) if fleet else None


def is_full(state: HostState, instance: Instance, function: Function) -> bool:
    """Whether all slots of a worker are busy, by the routers' reports."""
    slots = max_concurrency(function, server_of(function, instance.server))
    return slots is not None and state.use().in_flight.get(instance.id, 0) >= slots


def _reconcile_draining(state: HostState, instance: Instance, usage: Use, now: float) -> None:
    """Finish the drain handshake: every live router has acknowledged it, nothing is in flight, and the worker is
    idle."""
    fleet = state.reports.fleet
    busy = usage.in_flight.get(instance.id, 0)
    if fleet is None:  # reports cannot be read: assume nothing
        acknowledged = False
    else:
        acknowledged = all(r.seen.get(state.host.name, -1) >= instance.epoch for r in fleet.routers.values())
    if busy and _only_silent(state, instance):
        busy = 0  # a look at the worker decides below
    if acknowledged and not busy and not _is_idle(state, instance, now):
        if not _is_busy(state, instance):
            return  # until the look is done
        busy = 1
    if instance.reason in FOR_ROOM and not state.is_awaited(instance.id):
        cancel_drain(state, instance, "its room is not needed any more", now)
    elif acknowledged and not busy:
        leave(state, instance, now)
        if state.find(instance.id, State.STOPPING):
            follow(state, instance, now)
    elif instance.reason is DrainReason.SUPERSEDED or state.is_replaced(instance):
        return  # another serves in its place: it finishes its requests, however long that takes
    elif instance.yields_to and now < instance.deadline:
        _outlast_grace(state, instance, busy, now)
    elif busy and instance.reason in FOR_LATER and not state.is_awaited(instance.id):
        cancel_drain(state, instance, "a request is in flight", now)
    elif now >= instance.deadline:
        why = f"{busy} requests in flight" if busy else "not acknowledged by all routers"
        cancel_drain(state, instance, f"still {why} after the grace period", now)


def _outlast_grace(state: HostState, instance: Instance, busy: int, now: float) -> None:
    """Report that the requests of a closing instance outlast the grace period. It still waits for them."""
    function = state.functions[instance.id]
    if instance.id in state.overdue or now < instance.since + function.turn_grace_s:
        return
    what = f"its requests in flight ({busy})" if busy else "acknowledgements of routers"
    why = (
        f"{what} take longer than `turn_grace_s`; {instance.yields_to} waits for them, at most"
        f" {function.request_timeout_s:g} s from when it was closed"
    )
    state.overdue[instance.id] = now
    decide(state, DecisionKind.OVERDUE, instance, why)


def _only_silent(state: HostState, instance: Instance) -> bool:
    """Whether only routers that fell silent had requests in flight on an instance."""
    fleet = state.reports.fleet
    live = fleet.routers.values() if fleet else ()
    return state.reports.any_silent(instance.id) and not any(r.in_flight.get(instance.id) for r in live)


def _is_idle(state: HostState, instance: Instance, now: float) -> bool:
    """Whether a recent look shows that the worker is idle. Requests a look when there is none."""
    look = state.looks.get(instance.id)
    if look is not None and look.at and now - look.at <= LOOK_FRESH_S:
        return not look.busy
    if look is None or look.at or now - look.requested_at > LOOK_AGAIN_S:
        state.looks[instance.id] = Observation(requested_at=now, at=0.0, busy=look.busy if look else False)
        state.effects.append(Look(instance))
    return False


def _is_busy(state: HostState, instance: Instance) -> bool:
    """Whether the worker was busy at the last look, contrary to the routers' reports."""
    look = state.looks.get(instance.id)
    return look is not None and look.busy
