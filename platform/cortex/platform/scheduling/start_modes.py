"""Start modes: whether an instance is started fast or in full, and what follows when its tricks fail. Pure.

A start that a request waits for is fast, and the others are full. An instance that was started fast is replaced by a
full start in a quiet moment: `upgrades.py`.
"""

from msgspec.structs import replace

from cortex.functions.launch import StartMode, Trick, fast_tricks
from cortex.functions.lifecycle import COMING, State
from cortex.functions.spec import Function, Start
from cortex.platform.record import Cause, DrainReason, FailureKind, HostRecord, Instance
from cortex.platform.scheduling.failures import Incident
from cortex.platform.scheduling.ledger import Entry
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.platform.scheduling.state import HostState
from cortex.platform.scheduling.steps import abandon, decide, drop, predecessor, stop

WORTH_S, WORTH_SHARE = 2.0, 1.25
"""A fast start has to save this many seconds, and a full one has to take this many times as long."""

SUSPICIOUS = frozenset({Cause.UNKNOWN, Cause.BAD_ARGUMENT, Cause.CONTEXT_TOO_LARGE})
"""Causes of a crash for which a trick may be to blame."""


def choose(
    start: Start, *, has_modes: bool, fast_left: bool, full_failed: bool, waits: bool, fast_s: float, full_s: float
) -> StartMode | None:
    """Return the mode of a start; None: the engine has one set of settings.

    (1) the engine has one set of settings;
    (2) the function says it, and for a fast start a trick is left;
    (3) every trick of a fast start has failed: full;
    (4) the full start has failed where the fast one had not: fast;
    (5) no request waits for it: full;
    (6) a full start was measured (`full_s`), and takes hardly longer than a fast one: full;
    (7) otherwise fast.
    """
    if not has_modes:  # (1)
        return None
    if start is Start.FULL or not fast_left:  # (2), (3)
        return StartMode.FULL
    if start is Start.FAST or full_failed:  # (2), (4)
        return StartMode.FAST
    if not waits:  # (5)
        return StartMode.FULL
    if full_s and (full_s - fast_s < WORTH_S or full_s < WORTH_SHARE * fast_s):  # (6)
        return StartMode.FULL
    return StartMode.FAST  # (7)


def mode_of(state: HostState, instance: Instance, *, waits: bool) -> StartMode | None:
    """Return the mode in which an instance is to be started on its devices."""
    function = state.functions[instance.id]
    possible = possible_tricks(state.host, function) if is_on_gpus(state.host, instance) else ()
    if instance.replaces:
        return StartMode.FULL
    off = state.tricks_off(instance.revision)
    entry, version = state.ledger.get(instance.revision), state.host.engines.get(function.engine, "")
    return choose(
        function.start,
        has_modes=bool(possible),
        fast_left=any(t not in off for t in possible),
        full_failed=StartMode.FULL in off,
        waits=waits,
        fast_s=measured_s(entry, StartMode.FAST, version),
        full_s=measured_s(entry, StartMode.FULL, version),
    )


def possible_tricks(host: HostRecord, function: Function) -> tuple[Trick, ...]:
    """Return the tricks of a fast start on the GPUs of a host."""
    return fast_tricks(function, host.engines.get(function.engine, ""))


def is_on_gpus(host: HostRecord, instance: Instance) -> bool:
    """Whether all devices of an instance are GPUs; before it is placed, whether its host has any."""
    kinds = {d.kind for d in host.devices if not instance.devices or d.id in instance.devices}
    return kinds == {"gpu"} or (not instance.devices and "gpu" in kinds)


def measured_s(entry: Entry | None, mode: StartMode, version: str) -> float:
    """Return the usual seconds of a start in a mode by a version of the engine; 0: not measured."""
    times = entry.modes.get(mode) if entry else None
    return times.usual_s if times and times.version == version else 0.0


def mode_text(state: HostState, instance: Instance) -> str:
    """Return the mode of a start as text, with the time of a full start where a fast one was measured against it."""
    if instance.start_mode is None:
        return ""
    if instance.start_mode is StartMode.FULL:
        return ", full"
    version = state.host.engines.get(state.functions[instance.id].engine, "")
    full_s = measured_s(state.ledger.get(instance.revision), StartMode.FULL, version)
    return f", fast ({', '.join(instance.tricks)})" + (f" instead of about {full_s:.0f} s" if full_s else "")


# Failed starts.


def excuse(state: HostState, instance: Instance, incident: Incident) -> bool:
    """Return whether a failed start does not count as a failure of its function. What may have caused a crash is
    switched off for its revision:

    (1) it crashed, and used tricks: they are switched off;
    (2) it crashed in full, and was to replace an instance that was started fast, or might have been started fast: full
        starts are switched off;
    (3) it lacked room beside the instance that it was to replace, or its process could not be started: it is tried
        again later.
    """
    why, off = incident.reason, instance.tricks
    if incident.kind is not FailureKind.CRASH or not instance.pid:  # (3)
        return predecessor(state, instance) is not None
    suspicious = incident.evidence.cause in SUSPICIOUS and not incident.serves
    if not off or not suspicious:  # (2)
        off = (StartMode.FULL,) if instance.replaces or (suspicious and _is_fast_left(state, instance)) else ()
    if not off:
        return False
    state.switch_tricks_off(instance.revision, off, why)
    decide(state, DecisionKind.TRICK_FAILED, instance, f"{', '.join(off)}: {why}")
    return True


def _is_fast_left(state: HostState, instance: Instance) -> bool:
    """Whether an instance was started in full though its function may be started fast, with a trick that has not
    failed."""
    function, off = state.functions[instance.id], state.tricks_off(instance.revision)
    may_be_fast = instance.start_mode is StartMode.FULL and function.start is not Start.FULL
    return may_be_fast and any(t not in off for t in possible_tricks(state.host, function))


# Full starts beside the instances that they are to replace.


def is_spare(state: HostState, instance: Instance) -> bool:
    """Whether an instance is only a full start beside the one that it is to replace, and gives way to any other."""
    return instance.state in COMING and predecessor(state, instance) is not None


def without_spares(state: HostState, host: HostRecord) -> HostRecord:
    """Return a host on which full starts that give way are leaving."""
    spares = {i.id: i for i in state.instances.values() if is_spare(state, i)}
    if not spares:
        return host
    leaving = {s.id: replace(s, state=State.STOPPING) for s in spares.values() if s.state is State.STARTING}
    return replace(
        host, instances=tuple(leaving.get(i.id, i) for i in host.instances if i.id in leaving or i.id not in spares)
    )


def give_way(state: HostState, instance: Instance, now: float) -> None:
    """End full starts on the devices of another instance that starts there: they would hold its room or its lane."""
    for spare in [i for i in state.instances.values() if is_spare(state, i)]:
        if spare.id != instance.id and set(spare.devices).intersection(instance.devices):
            end_spare(state, spare, instance.function, now)


def end_spare(state: HostState, spare: Instance, cause: str, now: float) -> None:
    """End a full start beside the instance that it was to replace, which stays."""
    if not is_spare(state, spare):
        return
    drop(state, spare)
    if spare.state is State.STARTING:
        stop(state, spare, now, DrainReason.EVICTED, cause)
    else:
        decide(state, DecisionKind.ABANDONED, spare, f"for {cause}")
        abandon(state, spare, now)
