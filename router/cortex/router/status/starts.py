"""Starts in progress. Pure."""

from cortex.functions.lifecycle import COMING
from cortex.router.api_types import FunctionView, InstanceView
from cortex.router.overview.snapshot import FleetSnapshot, Index
from cortex.router.overview.wording import step
from cortex.router.status.format import key
from cortex.router.status.model import Start

SHORT_S = 0.05
SILENT_START_S = 20.0
"""Time without a sign of life after which a start is shown as silent; it fails much later."""


def starts(functions: tuple[FunctionView, ...], snapshot: FleetSnapshot, index: Index) -> tuple[Start, ...]:
    """Return every start in progress, oldest first."""
    coming = [(f, i) for f in functions for i in f.instances if i.state in COMING and not f.variant_of]
    return tuple(_start(f, i, snapshot, index) for f, i in sorted(coming, key=lambda c: (c[1].created, c[1].id)))


def _start(function: FunctionView, instance: InstanceView, snapshot: FleetSnapshot, index: Index) -> Start:
    entry = index.starts.get(instance.revision)
    last_sign = max(instance.last_sign, instance.since, instance.started)
    victims = (index.instances.get(i) for i in instance.waits_for)
    return Start(
        key=key("start", instance.id),
        function=instance.function,
        instance=instance.id,
        host=instance.host,
        state=str(instance.state),
        phase=step(instance),
        share=instance.progress,
        phases=tuple((name, seconds) for name, seconds in instance.phases.items() if seconds >= SHORT_S),
        since=instance.started or instance.created,
        expected_s=(entry.start_s or None) if entry else None,
        ends=ends(instance),
        waiting=index.usage.waiting.get(function.id, 0),
        waits_for=tuple(dict.fromkeys(v.function for v in victims if v is not None)),
        silent_since=last_sign if snapshot.now - last_sign > SILENT_START_S else None,
    )


def ends(instance: InstanceView) -> float | None:
    """Return when a start should end, or its download, if the rest of the start is unknown."""
    return instance.fetched_at if instance.ready_at is None else instance.ready_at
