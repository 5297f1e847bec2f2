"""Hosts, their devices' memory, and the eviction order. Pure.

The order (`least_valuable_first`) and the protection of instances (`protection`) are those of the placement. Which
instances a function actually evicts depends on its requirements; the plan of a warm shows them.
"""

from cortex.functions.catalogue import Catalogue
from cortex.functions.lifecycle import State
from cortex.platform.record import Device, HostRecord, Instance, SilentHost
from cortex.platform.scheduling.eviction import least_valuable_first, protection
from cortex.platform.scheduling.placement import LEAVING
from cortex.platform.scheduling.reaping import reap_at
from cortex.router.status.failures import trouble
from cortex.router.status.format import mib, some
from cortex.router.status.model import Bar, Departures, Host, HostDetails, Leaving, Segment
from cortex.router.status.snapshot import SILENT_S, FleetSnapshot, Index, key

MOST_DEPARTURES = 8
MOST_PROTECTED = 3


def hosts(snapshot: FleetSnapshot, index: Index) -> tuple[Host, ...]:
    """Return every host, including silent ones and those cordoned and away: problems first, then by name."""
    entries = [host(record, snapshot, index) for record in snapshot.fleet.records()]
    away = snapshot.fleet.cordoned.difference(snapshot.fleet.hosts, snapshot.fleet.silent)
    entries += [_away(name) for name in away]
    return tuple(sorted(entries, key=lambda h: h.order))


def host(record: HostRecord, snapshot: FleetSnapshot, index: Index) -> Host:
    """Return one host."""
    cordoned = record.name in snapshot.fleet.cordoned
    silent = snapshot.fleet.silent.get(record.name)
    hung = (f"{path} does not answer" for path in record.silent)
    stuck = (f"{i.function}: {i.problem}" for i in record.instances if i.problem)
    problems = "; ".join([*filter(None, [record.problem]), *record.problems, *hung, *stuck])
    problem = _silence(silent) if silent else problems
    mood = "problem" if problem else "cordoned" if cordoned else "ok"
    order = eviction_order(record, snapshot, index)
    first = next((leaving.function for leaving in order if not leaving.protected), "")
    return Host(
        key=key("host", record.name),
        order=f"{0 if problem else 1}{record.name}",
        name=record.name,
        mood=mood,
        problem=problem,
        bars=tuple(bar(device, record, index) for device in record.devices),
        instances=len(record.instances),
        in_flight=sum(index.in_flight(i) for i in record.instances),
        next_out="" if silent else first,
        silent_since=silent.since if silent else record.at if snapshot.now - record.at > SILENT_S else None,
    )


def _silence(silent: SilentHost) -> str:
    """Describe a host whose record has expired, and what still serves there."""
    serving = len(silent.record.instances)
    reachable = f"{some(serving, 'instance')} can still be reached" if serving else "no instance answers"
    return f"its agent does not report: {reachable}, and nothing is started there"


def _away(name: str) -> Host:
    return Host(
        key=key("host", name), order=f"0{name}", name=name, mood="problem", bars=(), instances=0, in_flight=0,
        problem="cordoned, and away: its agent does not report", next_out="",
    )  # fmt: skip


def bar(device: Device, record: HostRecord, index: Index) -> Bar:
    """Return a device's memory by segment: instances by age, then other processes."""
    placed = sorted((i for i in record.instances if device.id in i.devices), key=lambda i: (i.created, i.id))
    total = max(device.total_mb, 1)
    segments: list[Segment] = []
    at = 0.0
    for instance in placed:
        width = min(instance.memory_mb / total, 1 - at)
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
    used = sum(i.memory_mb for i in placed) + device.foreign_mb
    return Bar(
        id=device.id,
        name=device.name,
        label=f"GPU {device.index}" if device.index is not None else device.id,
        total_mb=device.total_mb,
        used_mb=used,
        free_mb=max(0, device.budget_mb - used),
        reserve_mb=device.reserve_mb,
        segments=tuple(segments),
        note=device.note,
        utilization_pct=device.utilization_pct,
        temp_c=device.temp_c,
    )


def _segment(instance: Instance, at: float, width: float, index: Index) -> Segment:
    each = round(instance.used_mb / max(1, len(instance.devices))) if instance.used_mb is not None else None
    in_flight = index.in_flight(instance)
    details = [f"{mib(instance.memory_mb)} {instance.memory_from or 'reserved'}"]
    if each is not None:
        details.append(f"{mib(each)} seen in use")
    details.append(
        f"{in_flight} in flight" if in_flight else "idle" if instance.state is State.READY else str(instance.state)
    )
    if instance.yields_to:
        details.append(f"closing for the turn of {instance.yields_to}")
    return Segment(
        label=instance.function,
        tone=index.tone(instance),
        source=instance.memory_from or "declared",
        at=at,
        width=width,
        mb=instance.memory_mb,
        measured_mb=each,
        note=f"{instance.function}: {', '.join(details)}",
    )


def eviction_order(record: HostRecord, snapshot: FleetSnapshot, index: Index) -> tuple[Leaving, ...]:
    """Return a host's instances in eviction order, protected ones last."""
    candidates = [i for i in record.instances if i.state not in LEAVING]
    ordered = least_valuable_first(candidates, index.usage, strategy=snapshot.strategy)
    protections = {i.id: protection(i, index.usage, snapshot.now) for i in ordered}
    evictable = [i for i in ordered if not protections[i.id]]
    protected = [i for i in ordered if protections[i.id]]
    return tuple(
        _leaving(instance, rank, record.name, protections[instance.id], snapshot, index)
        for rank, instance in enumerate((*evictable, *protected), 1)
    )


def _leaving(
    instance: Instance, rank: int, host: str, protected: str, snapshot: FleetSnapshot, index: Index
) -> Leaving:
    last = index.usage.last_used(instance)
    if protected:
        why = f"not now: {protected}"
    elif snapshot.strategy == "priority":
        why = f"priority {instance.priority}, then least recently used"
    else:
        why = "least recently used" if rank == 1 else f"used later than {rank - 1} other{'s' if rank > 2 else ''}"
    return Leaving(
        host=host,
        function=instance.function,
        instance=instance.id,
        mb=instance.memory_mb * max(1, len(instance.devices)),
        idle_since=last,
        reaped_at=None if protected else reaped_at(instance, snapshot.catalogue, index),
        why=why,
        rank=rank,
        protected=protected,
    )


def reaped_at(instance: Instance, catalogue: Catalogue, index: Index) -> float | None:
    """Return when an idle instance is reaped; None while it is in use or needed."""
    function = catalogue.functions.get(instance.function)
    if function is None:
        return None
    return reap_at(instance, function, index.usage, (i for _, i in index.placed.get(function.id, ())))


def departures(snapshot: FleetSnapshot, index: Index) -> Departures:
    """Return the first instance in eviction order on each host, fullest host first."""
    fullest = sorted(snapshot.fleet.hosts.values(), key=lambda h: (-_fullness(h), h.name))
    orders = (eviction_order(record, snapshot, index) for record in fullest)
    fullest_first = [order[0] for order in orders if order]
    ordered = [leaving for leaving in fullest_first if not leaving.protected]
    return Departures(
        strategy=snapshot.strategy,
        warm=any(i.state is State.READY for i in index.instances.values()),
        first=tuple(ordered[:MOST_DEPARTURES]),
        more=max(0, len(ordered) - MOST_DEPARTURES),
        protected=() if ordered else tuple(fullest_first[:MOST_PROTECTED]),
    )


def _fullness(record: HostRecord) -> float:
    budget = sum(d.budget_mb for d in record.devices)
    used = sum(i.memory_mb * max(1, len(i.devices)) for i in record.instances)
    return (used + sum(d.foreign_mb for d in record.devices)) / max(1, budget)


def details(record: HostRecord, snapshot: FleetSnapshot, index: Index) -> HostDetails:
    """Return everything about one host."""
    foreign = tuple(
        f"{h.command or 'unknown'} (pid {h.pid}, {mib(h.memory_mb) if h.memory_mb is not None else 'size unknown'})"
        for h in record.foreign
    )
    return HostDetails(
        host=host(record, snapshot, index),
        address=record.address,
        version=record.version,
        engines=tuple(sorted(record.engines.items())),
        labels=record.labels,
        order=eviction_order(record, snapshot, index),
        foreign=foreign,
        troubles=tuple(trouble(record, failure) for failure in sorted(record.failures, key=lambda f: -f.at)),
    )
