"""Starts in progress, and when they should be over. Pure."""

import re

from cortex.functions.lifecycle import COMING, State
from cortex.platform.record import HostRecord, Instance
from cortex.router.status.model import Start
from cortex.router.status.snapshot import FleetSnapshot, Index, key

PASSED_S = 0.05
_LEFT = re.compile(r", \d+ s left$")
SILENT_START_S = 20.0
"""A start without a sign of life for so long is shown as silent, long before it counts as failed."""


def starts(known: FleetSnapshot, index: Index) -> tuple[Start, ...]:
    """Return every start in progress, the oldest first."""
    found = [
        (instance.created, instance.id, _start(host, instance, known, index))
        for pairs in index.placed.values()
        for host, instance in pairs
        if instance.state in COMING
    ]
    return tuple(start for *_, start in sorted(found, key=lambda f: f[:2]))


def _start(host: HostRecord, instance: Instance, known: FleetSnapshot, index: Index) -> Start:
    entry, over = known.starts.get(instance.revision), ends(host.name, instance, known)
    signs = max(instance.last_sign, instance.since, instance.started)
    victims = (index.instances.get(i) for i in instance.waits_for)
    return Start(
        key=key("start", instance.id),
        function=instance.function,
        instance=instance.id,
        host=host.name,
        state=str(instance.state),
        phase=step(instance, over),
        share=instance.progress,
        passed=tuple((name, seconds) for name, seconds in instance.phases.items() if seconds >= PASSED_S),
        since=instance.started or instance.created,
        expected_s=(entry.start_s or None) if entry else None,
        ends=over,
        waiting=index.usage.waiting.get(instance.function, 0),
        waits_for=tuple(dict.fromkeys(v.function for v in victims if v is not None)),
        silent_since=signs if known.now - signs > SILENT_START_S else None,
    )


def step(instance: Instance, over: float | None) -> str:
    """Return what a start is at, beside its state; without the time left where that is shown by itself."""
    if instance.phase == instance.state:
        return ""
    return _LEFT.sub("", instance.phase) if over is not None else instance.phase


def ends(host: str, instance: Instance, known: FleetSnapshot) -> float | None:
    """Return when an instance should be up: by what earlier starts took and, while its weights come, by their rate.

    A function that never started before is only known to be fetched by then.
    """
    entry = known.starts.get(instance.revision)
    takes = entry.start_s if entry else 0.0
    if instance.state is State.FETCHING:
        jobs = (j for j in known.jobs or () if j.host == host and instance.function in j.functions)
        fetched = next((j.ends for j in jobs if j.ends is not None), None)
        return None if fetched is None else fetched + takes
    if instance.state is State.STARTING and takes:
        return instance.started + takes
    return None
