"""Hosts with their devices' memory, and the next evictions. Pure."""

from collections.abc import Iterator

from cortex.functions.lifecycle import PARKED, State
from cortex.platform.record import HostRecord, Instance, SavedContext
from cortex.router.api_types import DeviceView, EvictionCandidate, HostsAnswer, HostView
from cortex.router.overview.hosts import host_view
from cortex.router.overview.snapshot import FleetSnapshot, Index
from cortex.router.overview.wording import reason
from cortex.router.status.failures import trouble
from cortex.router.status.format import key, mib, some
from cortex.router.status.functions import tone
from cortex.router.status.model import Bar, Departures, Host, HostDetails, Leaving, Segment

LATE_S = 5.0
"""Age from which a host's record is late; heartbeats come every two seconds."""
MOST_DEPARTURES = 8
MOST_PROTECTED = 3


def hosts(views: HostsAnswer, index: Index) -> tuple[Host, ...]:
    """Return every host, including silent ones and those cordoned and away: problems first, then by name."""
    entries = [host(view, index) for view in (*views.hosts, *views.silent)]
    silent = {view.name for view in views.silent}
    entries += [_away(name) for name in views.cordoned_and_away if name not in silent]
    return tuple(sorted(entries, key=lambda h: h.order))


def host(view: HostView, index: Index) -> Host:
    """Return one host."""
    hung = (f"{path} does not answer" for path in view.silent)
    stuck = (f"{i.function}: {i.problem}" for i in view.instances if i.problem)
    problems = "; ".join([*filter(None, [view.problem]), *view.problems, *hung, *stuck])
    problem = problems if view.silent_since is None else _silence(view)
    late = view.at if view.now - view.at > LATE_S else None
    return Host(
        key=key("host", view.name),
        order=f"{0 if problem else 1}{view.name}",
        name=view.name,
        mood="problem" if problem else "cordoned" if view.cordoned else "ok",
        problem=problem,
        bars=tuple(bar(device, view, index) for device in view.devices),
        instances=len(view.instances),
        in_flight=view.in_flight,
        next_out=view.evicted_next.function if view.evicted_next else "",
        silent_since=late if view.silent_since is None else view.silent_since,
    )


def _silence(view: HostView) -> str:
    """Describe a host whose record has expired, and what still serves there."""
    serving = len(view.instances)
    reachable = f"{some(serving, 'instance')} can still be reached" if serving else "no instance answers"
    return f"its agent does not report: {reachable}, and nothing is started there"


def _away(name: str) -> Host:
    return Host(
        key=key("host", name), order=f"0{name}", name=name, mood="problem", bars=(), instances=0, in_flight=0,
        problem="cordoned, and away: its agent does not report", next_out="",
    )  # fmt: skip


def bar(device: DeviceView, record: HostRecord, index: Index) -> Bar:
    """Return a device's memory by segment: instances by age, then other processes."""
    placed = sorted((i for i in record.instances if device.id in i.devices), key=lambda i: (i.created, i.id))
    total = max(device.total_mb, 1)
    segments: list[Segment] = []
    at = 0.0
    for instance in placed:
        width = min(instance.held_mb / total, 1 - at)
        segments.append(_segment(instance, at, width, index))
        at += width
    foreign = min(device.foreign_mb / total, 1 - at)
    if device.foreign_mb:
        holders = [h.command or f"pid {h.pid}" for h in record.foreign if h.device == device.id]
        note = f"{mib(device.foreign_mb)} held by processes that are not cortex's: {', '.join(holders) or 'unknown'}"
        segments.append(
            Segment(
                label="foreign",
                tone="foreign",
                source="foreign",
                at=at,
                width=foreign,
                mb=device.foreign_mb,
                measured_mb=device.foreign_mb,
                note=note,
            )
        )
    return Bar(
        id=device.id,
        name=device.name,
        label=f"GPU {device.index}" if device.index is not None else device.id,
        total_mb=device.total_mb,
        used_mb=device.admitted_mb + device.foreign_mb,
        free_mb=device.free_mb,
        reserve_mb=device.reserve_mb,
        segments=tuple(segments),
        note=device.note,
        utilization_pct=device.utilization_pct,
        temp_c=device.temp_c,
    )


def _segment(instance: Instance, at: float, width: float, index: Index) -> Segment:
    measured = instance.used_mb is not None and instance.parked is None
    each = round((instance.used_mb or 0) / max(1, len(instance.devices))) if measured else None
    in_flight = index.in_flight(instance)
    source = "kept" if instance.state in PARKED else instance.memory_from or "reserved"
    details = [f"{mib(instance.held_mb)} {source}"]
    if each is not None:
        details.append(f"{mib(each)} seen in use")
    details.append(
        f"{in_flight} in flight" if in_flight else "idle" if instance.state is State.READY else str(instance.state)
    )
    if instance.yields_to:
        details.append(f"closing for the turn of {instance.yields_to}")
    return Segment(
        label=instance.function,
        tone=tone(instance, index),
        source=instance.memory_from or "declared",
        at=at,
        width=width,
        mb=instance.held_mb,
        measured_mb=each,
        note=f"{instance.function}: {', '.join(details)}",
    )


def leaving(candidate: EvictionCandidate, view: HostView) -> Leaving:
    """Return one entry of a host's eviction order."""
    protected = candidate.protection
    return Leaving(
        host=view.name,
        function=candidate.function,
        instance=candidate.instance,
        mb=candidate.memory_mb,
        idle_since=candidate.idle_since,
        reaped_at=candidate.reap_at,
        why=f"not now: {protected}" if protected else reason(candidate, view.strategy),
        rank=candidate.rank,
        protected=protected,
    )


def departures(views: HostsAnswer, strategy: str, index: Index) -> Departures:
    """Return the first instance in eviction order on each host, fullest host first."""
    fullest = sorted(views.hosts, key=lambda h: (-_fullness(h), h.name))
    fullest_first = [leaving(view.eviction_order[0], view) for view in fullest if view.eviction_order]
    ordered = [entry for entry in fullest_first if not entry.protected]
    return Departures(
        strategy=strategy,
        warm=any(i.state is State.READY for i in index.instances.values()),
        first=tuple(ordered[:MOST_DEPARTURES]),
        more=max(0, len(ordered) - MOST_DEPARTURES),
        protected=() if ordered else tuple(fullest_first[:MOST_PROTECTED]),
    )


def _fullness(view: HostView) -> float:
    budget = sum(d.budget_mb for d in view.devices)
    return sum(d.admitted_mb + d.foreign_mb for d in view.devices) / max(1, budget)


def details(record: HostRecord, snapshot: FleetSnapshot, index: Index) -> HostDetails:
    """Return everything about one host."""
    view = host_view(record, snapshot, index)
    foreign = tuple(
        f"{h.command or 'unknown'} (pid {h.pid}, {mib(h.memory_mb) if h.memory_mb is not None else 'size unknown'})"
        for h in record.foreign
    )
    return HostDetails(
        host=host(view, index),
        address=record.address,
        version=record.version,
        engines=tuple(sorted(record.engines.items())),
        labels=record.labels,
        order=tuple(leaving(candidate, view) for candidate in view.eviction_order),
        foreign=foreign,
        saved=tuple(saved_conversations(record)),
        troubles=tuple(trouble(record, failure) for failure in sorted(record.failures, key=lambda f: -f.at)),
    )


def saved_conversations(record: HostRecord) -> Iterator[str]:
    """Yield what a host has saved of each function, and the functions of which it saves nothing, with the reason."""
    by_function: dict[str, list[SavedContext]] = {}
    for context in record.contexts:
        by_function.setdefault(context.function, []).append(context)
    for function, contexts in sorted(by_function.items()):
        size = mib(sum(c.size for c in contexts) / 1024**2)
        yield f"{function}: {some(len(contexts), 'conversation')}, {sum(c.tokens for c in contexts):,} tokens, {size}"
    for function, why in sorted(record.contexts_off.items()):
        yield f"{function}: none is saved: {why}"
