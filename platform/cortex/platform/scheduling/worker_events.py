"""What follows from the events of workers and fetches. Pure.

An event may be late, repeated, or about an instance that is gone: it counts only in the states it belongs to.
"""

from msgspec.structs import replace

from cortex.functions.lifecycle import TRANSITIONS, State, Step
from cortex.platform.record import Cause, DrainReason, FailureKind, Instance, Tier
from cortex.platform.scheduling import events
from cortex.platform.scheduling.admission import admit_or_fail, place_waiter, return_need, wake
from cortex.platform.scheduling.effects import Reclaim
from cortex.platform.scheduling.failures import Evidence, Incident
from cortex.platform.scheduling.parking import is_leaving, pinned_mb
from cortex.platform.scheduling.placement import Placement
from cortex.platform.scheduling.progress import is_hung
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.platform.scheduling.reconcile import PROVE_AGAIN_S, is_full, reconcile, silence_of
from cortex.platform.scheduling.start_modes import excuse, mode_text
from cortex.platform.scheduling.state import HostState, Observation
from cortex.platform.scheduling.steps import decide, fail, fail_and_stop, into, phases_until, put, step
from cortex.platform.scheduling.tiers import give_up
from cortex.platform.scheduling.upgrades import begin_again

MISSES_TO_ACT = 3
"""Consecutive health checks without an answer before the scheduler acts."""


def fetch_progress(state: HostState, event: events.FetchProgress, now: float) -> None:
    """A fetch that gets further is not overdue."""
    if instance := state.find(event.instance, State.FETCHING):
        if event.progress != instance.progress:
            instance = replace(instance, phase_since=now, problem="")
        put(state, replace(instance, phase=event.phase, progress=event.progress, last_sign=now))


def fetched(state: HostState, event: events.Fetched, now: float) -> None:
    """Make room."""
    if instance := state.find(event.instance, State.FETCHING):
        state.weights[instance.id] = event.weights
        instance = step(state, replace(instance, phase="", progress=None), Step.FETCHED, now)
        admit_or_fail(state, instance, now)
        reconcile(state, now)


def fetch_failed(state: HostState, event: events.FetchFailed, now: float) -> None:
    """Abandon the instance."""
    if instance := state.find(event.instance, State.FETCHING):
        fail(state, instance, Incident(event.reason, FailureKind.WEIGHTS), now)
        step(state, instance, Step.ABANDONED, now)
        reconcile(state, now)


def spawned(state: HostState, event: events.Spawned, now: float) -> None:
    """Record the worker's process."""
    if instance := state.find(event.instance, State.STARTING, State.STOPPING):
        process = event.process
        instance = replace(instance, pid=process.pid, boot=process.boot, process_ticks=process.ticks, url=event.url)
        instance = replace(instance, server=event.server, health_path=event.health_path, key_host=state.host.name)
        instance = replace(instance, served_name=event.served_name)
        instance = replace(instance, path=event.path, warm=event.warm, sleeps=event.sleeps, tricks=event.tricks)
        instance = replace(instance, adapters=event.adapters, adapter_problems=event.adapter_problems)
        put(state, replace(instance, started=now, last_sign=now))


def spawn_failed(state: HostState, event: events.SpawnFailed, now: float) -> None:
    """Reclaim what the start may have left."""
    if instance := state.find(event.instance, State.STARTING, State.STOPPING):
        incident = Incident(event.reason, event.kind)
        excused = instance.state is State.STARTING and excuse(state, instance, incident)
        if instance.state is State.STARTING and not excused:
            fail(state, instance, incident, now)
        state.effects.append(Reclaim(step(state, instance, Step.EXITED, now)))
        if excused:
            begin_again(state, instance, now)


def sign_of_life(state: HostState, event: events.SignOfLife, now: float) -> None:
    """A start that shows signs of life goes on."""
    if instance := state.find(event.instance, State.STARTING):
        if event.phase and event.phase != instance.phase:
            phases = phases_until(instance, now)
            instance = replace(instance, phases=phases, phase=event.phase, phase_since=now)
        put(state, replace(instance, last_sign=now, progress=event.progress))


def model_described(state: HostState, event: events.ModelDescribed) -> None:
    """Publish the worker's description of its model."""
    if instance := state.instances.get(event.instance):
        put(
            state,
            replace(instance, context=event.model.context, vision=event.model.vision, cache_mb=event.model.cache_mb),
        )


def answered(state: HostState, event: events.Answered, now: float) -> None:
    """The instance is ready."""
    if instance := state.find(event.instance, State.STARTING):
        returned = instance.parks_to
        instance = step(state, replace(instance, ready=now), Step.ANSWERED, now)
        if returned is not None:
            instance = replace(instance, parks_to=None, ram_mb=pinned_mb(instance, returned))
        put(state, replace(instance, phase="", progress=None))
        path = f", {instance.path}" if instance.path not in ("", "plain") else ""
        path = f", from {returned}" if returned else path + mode_text(state, instance)
        decide(state, DecisionKind.READY, instance, f"after {now - instance.started:.3f} s{path}")
        reconcile(state, now)


def start_failed(state: HostState, event: events.StartFailed, now: float) -> None:
    """Stop the worker."""
    if instance := state.find(event.instance, State.STARTING):
        give_up(state, instance, Incident(event.reason, evidence=event.evidence, serves=True), now)


def memory_read(state: HostState, event: events.MemoryRead) -> None:
    """The highest reading counts."""
    instance = state.instances.get(event.instance)
    if instance is not None and event.used_mb > (instance.used_mb or 0):
        put(state, replace(instance, used_mb=event.used_mb))


def fell_back_to_cpu(state: HostState, event: events.FellBackToCpu, now: float) -> None:
    """Stop the worker."""
    if instance := state.find(event.instance, State.READY):
        reason = f"the worker has no process on {', '.join(instance.devices)}: it fell back to the CPU"
        fail_and_stop(state, instance, Incident(reason), now)


def health_check_failed(state: HostState, event: events.HealthCheckFailed, now: float) -> None:
    """A ready worker did not answer:

    (1) fewer than `MISSES_TO_ACT` times: that happens under load;
    (2) it uses no CPU time either (`stuck`): it hangs, and is stopped with its requests;
    (3) it is or may be busy: leave it;
    (4) it is idle: stop it.
    """
    instance = state.find(event.instance, State.READY)
    if instance is None or event.misses < MISSES_TO_ACT:  # (1)
        return
    usage = state.use()
    busy = not usage.known or usage.in_flight.get(instance.id, 0) > 0
    if busy and not event.stuck:  # (3)
        return
    stuck = " and uses no CPU time" if event.stuck else ""
    reason = f"the worker did not answer {event.misses} health checks{stuck}"
    fail_and_stop(state, instance, Incident(reason, died=True), now)  # (2), (4)


def looked(state: HostState, event: events.Looked, now: float) -> None:
    """Whether a worker is busy:

    (1) its engine's count decides;
    (2) without one, connections count as requests if a router with requests in flight fell silent: connections of
        routers that report are idle.
    """
    instance = state.find(event.instance, State.READY, State.DRAINING)
    if instance is None:
        return
    busy = event.connections > 0 and state.reports.any_silent(instance.id)  # (2)
    if event.running is not None:  # (1)
        busy = event.running > 0
    if not busy:
        state.reports.forget_silent(instance.id)
    state.looks[instance.id] = Observation(requested_at=now, at=now, busy=busy)
    reconcile(state, now)


def proved(state: HostState, event: events.Proved, now: float) -> None:
    """A silent worker was sent a request of one token:

    (1) it answered, or answered other requests: it makes progress;
    (2) it did not, and has been silent for too long: stop it; the next request starts another;
    (3) it did not, and has time left: send another.
    """
    instance, function = state.find(event.instance, State.READY), state.functions.get(event.instance)
    proof = state.proofs.get(event.instance)
    if instance is None or function is None or proof is None:
        return
    if event.answered:  # (1)
        state.proofs[instance.id] = replace(proof, answered=now)
        return
    silent = silence_of(state, instance, now)
    if silent is None or not is_hung(silent, full=is_full(state, instance, function), worked=event.worked):  # (3)
        state.proofs[instance.id] = replace(proof, sent=now - PROVE_AGAIN_S)
        return
    reason = (
        f"the worker made no progress for {silent.for_s:.0f} s: it sent no byte, and did not answer a request of"
        " one token"
    )
    fail_and_stop(state, instance, Incident(reason, died=True, hung=True), now)  # (2)


def exited(state: HostState, event: events.Exited, now: float) -> None:
    """Reclaim its memory; start it again with more if it ran out of memory while starting."""
    instance = state.instances.get(event.instance)
    if instance is None or Step.EXITED not in TRANSITIONS[instance.state]:
        return
    if instance.state is State.PLACING and not instance.pid:
        return
    again = False
    if instance.parks_to is not None and instance.state in (State.STARTING, State.PARKING):
        state.switch_off(instance.revision, instance.parks_to, f"the worker {event.description}")
    if instance.state is State.STARTING and instance.parks_to is None:
        kind = _kind_of_start_failure(state, instance, event.evidence)
        reason = f"the worker {event.description} while starting"
        incident = Incident(reason, kind, event.evidence)
        again = excuse(state, instance, incident)
        if not again:
            again = kind is FailureKind.OUT_OF_MEMORY
            fail(state, instance, incident, now)
            if instance.sleeps and not again:  # perhaps because of its sleep mode: the next starts without
                state.switch_off(instance.revision, Tier.SLEEP, reason)
    elif instance.state is not State.STOPPING:
        reason = f"the worker {event.description} while it was {instance.state}"
        fail(state, instance, Incident(reason, evidence=event.evidence, died=True), now)
    decide(state, DecisionKind.EXITED, instance, event.description)
    instance = step(state, instance, Step.EXITED, now)
    state.effects.append(Reclaim(instance))
    if again:
        begin_again(state, instance, now)
    reconcile(state, now)


def parked(state: HostState, event: events.Parked, now: float) -> None:
    """The memory is in its tier. The instance returns at once, if

    (1) a request came meanwhile;
    (2) this was the rehearsal, and no other function has taken the room.

    More may have stayed on its devices than was expected: an instance that waits for the room is placed again.
    """
    instance = state.find(event.instance, State.PARKING)
    if instance is None or event.tier is not instance.parks_to:
        return
    promised_mb = instance.parked_mb
    if event.tier is Tier.SLEEP or event.device_mb:
        instance = replace(instance, parked_mb=event.device_mb)
    instance = replace(instance, parked=event.tier, park_s=event.took_s, ram_mb=event.ram_mb or instance.ram_mb)
    instance = step(state, instance, into(event.tier), now)
    stays = f"{instance.held_mb:,} MiB stay, " if instance.held_mb else ""
    decide(state, DecisionKind.PARKED, instance, f"to {event.tier}: {stays}{event.took_s:.2f} s")
    if instance.held_mb > promised_mb:
        placing = [i for i in state.instances.values() if i.state is State.PLACING]
        for other in [i for i in placing if instance.id in i.waits_for]:
            admit_or_fail(state, other, now)
    _return_if_wanted(state, state.instances[instance.id], now)
    reconcile(state, now)


def _return_if_wanted(state: HostState, instance: Instance, now: float) -> None:
    if is_leaving(instance) or instance.reason not in (None, DrainReason.REHEARSAL):
        return
    function = state.functions[instance.id]
    waiter = state.line.waiter(function, return_need(function, instance), 0.0, now)
    placement = place_waiter(state, waiter, now, returning=instance)
    if isinstance(placement, Placement):
        if instance.reason is None or not placement.waits_for:
            wake(state, instance, placement, now, minimum=instance.reason is DrainReason.REHEARSAL)
    elif instance.reason is None:
        fail(state, instance, Incident(placement.reason, FailureKind.ROOM), now)


def park_failed(state: HostState, event: events.ParkFailed, now: float) -> None:
    """Stop the worker, which may be half-way, and use this tier no more for its revision."""
    if instance := state.find(event.instance, State.PARKING):
        give_up(state, instance, Incident(event.reason), now)


def end_delayed(state: HostState, event: events.EndDelayed) -> None:
    """Show operators what keeps an instance from ending."""
    if instance := state.find(event.instance, State.STOPPING, State.RECLAIMING):
        if instance.problem != event.problem:
            decide(state, DecisionKind.OVERDUE, instance, event.problem)
        put(state, replace(instance, problem=event.problem))


def reclaimed(state: HostState, event: events.Reclaimed, now: float) -> None:
    """The instance is gone."""
    if instance := state.find(event.instance, State.RECLAIMING):
        step(state, instance, Step.RECLAIMED, now)
        reconcile(state, now)


def _kind_of_start_failure(state: HostState, instance: Instance, evidence: Evidence) -> FailureKind:
    """The first start that runs out of memory is started again with more; a second counts as a crash."""
    before = state.failures.of(instance.function, instance.revision)
    if evidence.cause is Cause.OUT_OF_MEMORY and not (before and before.kind is FailureKind.OUT_OF_MEMORY):
        return FailureKind.OUT_OF_MEMORY
    return FailureKind.CRASH
