"""Hosts, what fills their devices, and who goes next. Pure.

The order of leaving is the placement's own (`least_valuable_first`), and so is what protects an instance
(`protection`). Which of them a function really displaces depends on what it needs: the plan of a warm says so.
"""

from cortex.functions.catalogue import Catalogue
from cortex.functions.lifecycle import State
from cortex.platform.record import Device, HostRecord, Instance, SilentHost
from cortex.platform.scheduling.placement import LEAVING, least_valuable_first, protection
from cortex.router.status.failures import trouble
from cortex.router.status.format import mib, some
from cortex.router.status.model import Bar, Departures, Host, HostDetails, Leaving, Segment
from cortex.router.status.snapshot import SILENT_S, FleetSnapshot, Index, key

MOST_DEPARTURES = 8
MOST_KEPT = 3


def hosts(known: FleetSnapshot, index: Index) -> tuple[Host, ...]:
    """Return every host: those with a problem first, then by name. Those that are silent, or cordoned and away, are
    there, too."""
    found = [host(record, known, index) for record in known.fleet.records()]
    gone = known.fleet.cordoned.difference(known.fleet.hosts, known.fleet.silent)
    found += [_away(name) for name in gone]
    return tuple(sorted(found, key=lambda h: h.order))


def host(record: HostRecord, known: FleetSnapshot, index: Index) -> Host:
    """Return one host."""
    cordoned = record.name in known.fleet.cordoned
    silent = known.fleet.silent.get(record.name)
    hung = (f"{path} does not answer" for path in record.silent)
    stuck = (f"{i.function}: {i.problem}" for i in record.instances if i.problem)
    wrong = "; ".join([*filter(None, [record.problem]), *record.problems, *hung, *stuck])
    problem = _silence(silent) if silent else wrong
    mood = "problem" if problem else "cordoned" if cordoned else "ok"
    order = order_of_leaving(record, known, index)
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
        silent_since=silent.since if silent else record.at if known.now - record.at > SILENT_S else None,
    )


def _silence(silent: SilentHost) -> str:
    """Say what is the matter with a host whose record has expired, and what goes on there."""
    serving = len(silent.record.instances)
    goes_on = f"{some(serving, 'instance')} of it can still be reached" if serving else "nothing of it answers"
    return f"its agent does not report: {goes_on}, and nothing is started there"


def _away(name: str) -> Host:
    return Host(
        key=key("host", name), order=f"0{name}", name=name, mood="problem", bars=(), instances=0, in_flight=0,
        problem="cordoned, and away: its agent does not report", next_out="",
    )  # fmt: skip


def bar(device: Device, record: HostRecord, index: Index) -> Bar:
    """Return a device's memory, piece by piece: instances as they came, then what others hold."""
    there = sorted((i for i in record.instances if device.id in i.devices), key=lambda i: (i.created, i.id))
    total = max(device.total_mb, 1)
    segments: list[Segment] = []
    at = 0.0
    for instance in there:
        width = min(instance.memory_mb / total, 1 - at)
        segments.append(_segment(instance, at, width, index))
        at += width
    foreign = min(device.foreign_mb / total, 1 - at)
    if device.foreign_mb:
        held = [h.command or f"pid {h.pid}" for h in record.foreign if h.device == device.id]
        note = f"{mib(device.foreign_mb)} held by processes that are not cortex's: {', '.join(held) or 'unknown'}"
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
    taken = sum(i.memory_mb for i in there) + device.foreign_mb
    return Bar(
        id=device.id,
        name=device.name,
        label=f"GPU {device.index}" if device.index is not None else device.id,
        total_mb=device.total_mb,
        taken_mb=taken,
        free_mb=max(0, device.budget_mb - taken),
        kept_free_mb=device.reserve_mb,
        segments=tuple(segments),
        note=device.note,
        utilization_pct=device.utilization_pct,
        temp_c=device.temp_c,
    )


def _segment(instance: Instance, at: float, width: float, index: Index) -> Segment:
    each = round(instance.used_mb / max(1, len(instance.devices))) if instance.used_mb is not None else None
    flying = index.in_flight(instance)
    said = [f"{mib(instance.memory_mb)} {instance.memory_from or 'reserved'}"]
    if each is not None:
        said.append(f"{mib(each)} seen in use")
    said.append(f"{flying} in flight" if flying else "idle" if instance.state is State.READY else str(instance.state))
    if instance.yields_to:
        said.append(f"closing for the turn of {instance.yields_to}")
    return Segment(
        label=instance.function,
        tone=index.tone(instance),
        source=instance.memory_from or "declared",
        at=at,
        width=width,
        mb=instance.memory_mb,
        measured_mb=each,
        note=f"{instance.function}: {', '.join(said)}",
    )


def order_of_leaving(record: HostRecord, known: FleetSnapshot, index: Index) -> tuple[Leaving, ...]:
    """Return a host's instances in the order in which they would be evicted; those that may not be, last."""
    there = [i for i in record.instances if i.state not in LEAVING]
    ordered = least_valuable_first(there, index.usage, strategy=known.strategy)
    guarded = {i.id: protection(i, index.usage, known.now) for i in ordered}
    free = [i for i in ordered if not guarded[i.id]]
    kept = [i for i in ordered if guarded[i.id]]
    return tuple(
        _leaving(instance, rank, record.name, guarded[instance.id], known, index)
        for rank, instance in enumerate((*free, *kept), 1)
    )


def _leaving(instance: Instance, rank: int, host: str, protected: str, known: FleetSnapshot, index: Index) -> Leaving:
    last = index.usage.last_used(instance)
    if protected:
        why = f"not now: {protected}"
    elif known.strategy == "priority":
        why = f"priority {instance.priority}, then least recently used"
    else:
        why = "least recently used" if rank == 1 else f"used later than {rank - 1} other{'s' if rank > 2 else ''}"
    return Leaving(
        host=host,
        function=instance.function,
        instance=instance.id,
        mb=instance.memory_mb * max(1, len(instance.devices)),
        idle_since=last,
        reaped_at=None if protected else reaped_at(instance, known.catalogue, index),
        why=why,
        rank=rank,
        protected=protected,
    )


def reaped_at(instance: Instance, catalogue: Catalogue, index: Index) -> float | None:
    """Return when an idle instance is let go by itself; None while it is in use, or when it never is."""
    function = catalogue.functions.get(instance.function)
    if function is None or instance.state is not State.READY:
        return None
    if instance.pinned or function.pinned or function.min:
        return None
    if index.in_flight(instance):
        return None
    return index.usage.last_used(instance) + function.idle_after_s


def departures(known: FleetSnapshot, index: Index) -> Departures:
    """Return who would go first on each host, fullest host first."""
    fullest = sorted(known.fleet.hosts.values(), key=lambda h: (-_fullness(h), h.name))
    orders = (order_of_leaving(record, known, index) for record in fullest)
    fullest_first = [order[0] for order in orders if order]
    ordered = [leaving for leaving in fullest_first if not leaving.protected]
    return Departures(
        strategy=known.strategy,
        warm=any(i.state is State.READY for i in index.instances.values()),
        first=tuple(ordered[:MOST_DEPARTURES]),
        more=max(0, len(ordered) - MOST_DEPARTURES),
        kept=() if ordered else tuple(fullest_first[:MOST_KEPT]),
    )


def _fullness(record: HostRecord) -> float:
    budget = sum(d.budget_mb for d in record.devices)
    taken = sum(i.memory_mb * max(1, len(i.devices)) for i in record.instances)
    return (taken + sum(d.foreign_mb for d in record.devices)) / max(1, budget)


def details(record: HostRecord, known: FleetSnapshot, index: Index) -> HostDetails:
    """Return everything about one host."""
    foreign = tuple(
        f"{h.command or 'unknown'} (pid {h.pid}, {mib(h.memory_mb) if h.memory_mb is not None else 'size unknown'})"
        for h in record.foreign
    )
    return HostDetails(
        host=host(record, known, index),
        address=record.address,
        version=record.version,
        engines=tuple(sorted(record.engines.items())),
        labels=record.labels,
        order=order_of_leaving(record, known, index),
        foreign=foreign,
        troubles=tuple(trouble(record, failure) for failure in sorted(record.failures, key=lambda f: -f.at)),
    )
