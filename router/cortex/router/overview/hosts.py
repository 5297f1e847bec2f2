"""Hosts, their devices' memory, and the order of eviction. Pure.

The order (`least_valuable_first`) and the protection of instances (`protection`) are those of the placement. Which
instances a function actually evicts depends on its requirements; the plan of a warm has them.
"""

from collections.abc import Iterator

from msgspec.structs import asdict

from cortex.platform.fleet import Fleet
from cortex.platform.record import Device, HostRecord, Instance
from cortex.platform.scheduling.eviction import least_valuable_first, protection
from cortex.platform.scheduling.parking import is_leaving
from cortex.router.api_types import DeviceView, EvictionCandidate, HostsAnswer, HostView
from cortex.router.overview.functions import instance_reap_at
from cortex.router.overview.snapshot import FleetSnapshot, Index


def host_views(snapshot: FleetSnapshot, index: Index) -> HostsAnswer:
    """Return the hosts that report, the silent ones, and the cordoned ones that do not report, each by name."""
    return HostsAnswer(
        hosts=tuple(reporting_hosts(snapshot, index)),
        silent=tuple(silent_hosts(snapshot, index)),
        cordoned_and_away=cordoned_and_away(snapshot.fleet),
    )


def reporting_hosts(snapshot: FleetSnapshot, index: Index) -> Iterator[HostView]:
    """Yield the hosts that report, by name."""
    return (host_view(host, snapshot, index) for _, host in sorted(snapshot.fleet.hosts.items()))


def silent_hosts(snapshot: FleetSnapshot, index: Index) -> Iterator[HostView]:
    """Yield the silent hosts, by name."""
    return (host_view(host.record, snapshot, index) for _, host in sorted(snapshot.fleet.silent.items()))


def cordoned_and_away(fleet: Fleet) -> tuple[str, ...]:
    """Return the cordoned hosts that do not report, by name."""
    return tuple(sorted(fleet.cordoned.difference(fleet.hosts)))


def host_view(record: HostRecord, snapshot: FleetSnapshot, index: Index) -> HostView:
    """Return one host."""
    fleet = snapshot.fleet
    away = fleet.silent.get(record.name)
    return HostView(
        **asdict(record) | {"devices": tuple(device_view(d, record) for d in record.devices)},
        now=snapshot.now,
        silent_since=away.since if away else None,
        cordoned=record.name in fleet.cordoned,
        in_flight=sum(index.in_flight(i) for i in record.instances),
        strategy=snapshot.strategy,
        eviction_order=() if away else eviction_order(record, snapshot, index),
        namesake=fleet.namesakes.get(record.name),
    )


def device_view(device: Device, record: HostRecord) -> DeviceView:
    """Return a device with the sums of its memory."""
    admitted = sum(i.held_mb for i in record.instances if device.id in i.devices)
    free = max(0, device.budget_mb - device.foreign_mb - admitted)
    return DeviceView(**asdict(device), admitted_mb=admitted, free_mb=free)


def eviction_order(record: HostRecord, snapshot: FleetSnapshot, index: Index) -> tuple[EvictionCandidate, ...]:
    """Return a host's instances in eviction order, protected ones last."""
    candidates = [i for i in record.instances if not is_leaving(i)]
    ordered = least_valuable_first(candidates, index.usage, snapshot.now, strategy=snapshot.strategy)
    protections = {i.id: str(protection(i, index.usage, snapshot.now) or "") for i in ordered}
    evictable = [i for i in ordered if not protections[i.id]]
    protected = [i for i in ordered if protections[i.id]]
    return tuple(
        _candidate(instance, rank, protections[instance.id], snapshot, index)
        for rank, instance in enumerate((*evictable, *protected), 1)
    )


def _candidate(
    instance: Instance, rank: int, protected: str, snapshot: FleetSnapshot, index: Index
) -> EvictionCandidate:
    return EvictionCandidate(
        rank=rank,
        instance=instance.id,
        function=instance.function,
        memory_mb=instance.held_mb * max(1, len(instance.devices)),
        idle_since=index.usage.last_used(instance),
        priority=instance.priority,
        protection=protected,
        reap_at=None if protected else instance_reap_at(instance, snapshot, index),
    )
