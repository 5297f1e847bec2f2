"""Starts in progress, and their expected ends. Pure."""

import re

from cortex.functions.lifecycle import COMING, State
from cortex.platform.record import HostRecord, Instance
from cortex.router.overview.snapshot import FleetSnapshot, Index, key
from cortex.router.status.model import Start

SHORT_S = 0.05
_LEFT = re.compile(r", \d+ s left$")
SILENT_START_S = 20.0
"""Time without a sign of life after which a start is shown as silent; it fails much later."""


def starts(snapshot: FleetSnapshot, index: Index) -> tuple[Start, ...]:
    """Return every start in progress, oldest first."""
    entries = [
        (instance.created, instance.id, _start(host, instance, snapshot, index))
        for pairs in index.placed.values()
        for host, instance in pairs
        if instance.state in COMING
    ]
    return tuple(start for *_, start in sorted(entries, key=lambda f: f[:2]))


def _start(host: HostRecord, instance: Instance, snapshot: FleetSnapshot, index: Index) -> Start:
    entry, end = snapshot.starts.get(instance.revision), ends(host.name, instance, snapshot)
    last_sign = max(instance.last_sign, instance.since, instance.started)
    victims = (index.instances.get(i) for i in instance.waits_for)
    return Start(
        key=key("start", instance.id),
        function=instance.function,
        instance=instance.id,
        host=host.name,
        state=str(instance.state),
        phase=step(instance, end),
        share=instance.progress,
        phases=tuple((name, seconds) for name, seconds in instance.phases.items() if seconds >= SHORT_S),
        since=instance.started or instance.created,
        expected_s=(entry.start_s or None) if entry else None,
        ends=end,
        waiting=index.usage.waiting.get(instance.function, 0),
        waits_for=tuple(dict.fromkeys(v.function for v in victims if v is not None)),
        silent_since=last_sign if snapshot.now - last_sign > SILENT_START_S else None,
    )


def step(instance: Instance, end: float | None) -> str:
    """Return a start's phase; without its remaining time if `end` is shown separately."""
    if instance.phase == instance.state:
        return ""
    return _LEFT.sub("", instance.phase) if end is not None else instance.phase


def ends(host: str, instance: Instance, snapshot: FleetSnapshot) -> float | None:
    """Return when an instance should be ready: from earlier starts and, during a download, from its rate.

    Without an earlier start, the download's end is returned.
    """
    entry = snapshot.starts.get(instance.revision)
    start_s = entry.start_s if entry else 0.0
    if instance.state is State.FETCHING:
        jobs = (j for j in snapshot.jobs or () if j.host == host and instance.function in j.functions)
        fetch_end = next((j.ends for j in jobs if j.ends is not None), None)
        return None if fetch_end is None else fetch_end + start_s
    if instance.state is State.STARTING and start_s:
        return instance.started + start_s
    return None
