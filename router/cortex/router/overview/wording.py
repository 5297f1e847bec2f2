"""Sentences that the page and the command line share. Pure."""

import re

from cortex.functions.launch import StartMode
from cortex.functions.lifecycle import PARKED
from cortex.functions.spec import Start
from cortex.router.api_types import EvictionCandidate, FunctionView, InstanceView
from cortex.router.plan_types import Eviction, Move, Outcome

_REMAINING = re.compile(r", \d+ s left$")


def step(instance: InstanceView) -> str:
    """Return the phase of a start, without its own remaining time if the end of the start or download is known."""
    if instance.phase == instance.state:
        return ""
    ends = instance.ready_at is not None or instance.fetched_at is not None
    return _REMAINING.sub("", instance.phase) if ends else instance.phase


def retention(function: FunctionView) -> str:
    """Return why idling does not end the instances of a function that is not pinned; empty if it does."""
    count = f"at least {function.min} kept warm" if function.min else ""
    if function.warm:
        windows = ", ".join(function.warm)
        return f"{count} in these hours: {windows}" if count else f"kept warm {windows}"
    return count or ("kept warm in free room" if function.baseline else "")


def reason(candidate: EvictionCandidate | Eviction, strategy: str) -> str:
    """Return why an instance has its place in the order of eviction."""
    if strategy == "priority":
        return f"priority {candidate.priority}, then least recently used"
    before = candidate.rank - 1
    return f"used later than {before} other{'s' if before > 1 else ''}" if before else "least recently used"


def eviction_reason(eviction: Eviction, strategy: str) -> str:
    """Return why a start evicts this instance; empty if the order has changed since."""
    if not eviction.rank:
        return ""
    return reason(eviction, strategy) + ("; earlier ones do not free enough memory" if eviction.rank > 1 else "")


def departure(eviction: Eviction) -> str:
    """Return where an evicted instance goes, if not away, and how long its return from there took."""
    tier = [f"to {eviction.tier}"] if eviction.tier else []
    return ", ".join([*tier, *([f"back in {eviction.return_s:.1f} s"] if eviction.return_s else [])])


def start_lines(function: FunctionView) -> list[str]:
    """Return what starts take by mode, and what keeps one from being fast or full; nothing where all are alike."""
    pinned = [] if function.start == Start.AUTO else [f'start = "{function.start}"']
    times = [
        f"{t.mode} {t.usual_s:.1f} s on {t.device} ({t.starts} measured, {t.version})" for t in function.start_times
    ]
    off = [f"{trick_text(trick)} on {host}: {why}" for host, trick, why in function.tricks_off]
    return [*pinned, *times, *off] if times or off else []


def trick_text(trick: str) -> str:
    """Return what a trick that failed means for the next starts."""
    return "without a full one after a fast one" if trick == StartMode.FULL else f"without '{trick}'"


def start_text(instance: InstanceView) -> str:
    """Return how an instance was started, as far as that is special: its mode, or what it is to replace."""
    if instance.replaces and not instance.ready:
        return f"full, to replace {instance.replaces}"
    return str(instance.start_mode or "")


def parked_text(instance: InstanceView) -> str:
    """Return what a parked instance holds, and how long its last return took."""
    held = [f"{instance.held_mb} MiB on each device"] if instance.held_mb else []
    held += [f"{instance.ram_mb} MiB of RAM"] if instance.ram_mb else []
    back_s = instance.return_s.get(instance.parked) if instance.parked else None
    return ", ".join([*held, *([f"back in {back_s:.1f} s"] if back_s else [])])


def unparkable_lines(function: FunctionView) -> list[str]:
    """Say by which tiers a function's instances are no longer parked, and why."""
    return [f"by {tier} on {host}: {why}" for host, tier, why in function.unparkable]


def parked_lines(function: FunctionView) -> list[str]:
    """Return a line for each parked instance of a function."""
    return [f"{i.state} on {i.host}: {parked_text(i)}" for i in function.instances if i.state in PARKED]


def outcome(move: Move) -> str:
    """Return what becomes of a function when its host is drained."""
    match move.outcome:
        case Outcome.MOVES:
            where = f", where {' and '.join(move.evicts)} would be evicted" if move.evicts else ""
            return f"moves to {move.to}{where}; {activity(move.in_flight)}"
        case Outcome.COLD:
            return f"no other host has room, so it goes cold; {activity(move.in_flight)}"
        case Outcome.STOPS:
            return f"not in the catalogue any more, so it stops; {activity(move.in_flight)}"
    return "its start is cancelled"


def activity(in_flight: int, state: str = "ready") -> str:
    """Return what an instance does that is to end."""
    if in_flight:
        return f"{in_flight} request{'s' if in_flight > 1 else ''} in flight, which may finish"
    return "idle" if state == "ready" else state
