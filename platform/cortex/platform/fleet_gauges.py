"""Gauges of the record: hosts, instances, devices and waiting requests. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping

from cortex.platform import metrics
from cortex.platform.fleet import Fleet, use
from cortex.platform.meter import Count
from cortex.platform.record import Device, HostRecord


def fleet_gauges(fleet: Fleet, jobs: Mapping[tuple[str, str], int], now: float) -> Iterable[Count]:
    """Return all gauges of the fleet."""
    usage = use(fleet)
    yield Count(metrics.ROUTERS.name, (), len(fleet.routers))
    cordoned = len(fleet.cordoned & fleet.hosts.keys())
    yield Count(metrics.HOSTS.name, ("open",), len(fleet.hosts) - cordoned)
    yield Count(metrics.HOSTS.name, ("cordoned",), cordoned)
    for function, number in usage.waiting.items():
        yield Count(metrics.MODEL_QUEUE.name, (function,), number)
    for host in fleet.hosts.values():
        yield Count(metrics.HOST_AGE.name, (host.name,), round(max(0.0, now - host.at), 3))
        yield from _instances(host, usage.in_flight)
        for device in host.devices:
            yield from _device(host, device)
        if host.tiers:
            yield Count(metrics.PARK_RAM.name, (host.name, "budget"), host.park_ram_mb)
            yield Count(metrics.PARK_RAM.name, (host.name, "held"), sum(i.ram_mb for i in host.instances))
        for failure in host.failures:
            if failure.retry_at > now:
                yield Count(metrics.BACKOFF.name, (host.name, failure.function), 1)
    for (queue, state), number in jobs.items():
        yield Count(metrics.JOBS.name, (queue, state), number)


def _instances(host: HostRecord, in_flight: Mapping[str, int]) -> Iterable[Count]:
    states = Counter((i.function, str(i.state)) for i in host.instances)
    for (function, state), number in states.items():
        yield Count(metrics.INSTANCES.name, (host.name, function, state), number)
    busy: Counter[str] = Counter()
    for instance in host.instances:
        busy[instance.function] += in_flight.get(instance.id, 0)
    for function, number in busy.items():
        yield Count(metrics.MODEL_IN_FLIGHT.name, (host.name, function), number)


def _device(host: HostRecord, device: Device) -> Iterable[Count]:
    where = (host.name, device.id)
    kinds = {
        "total": device.total_mb,
        "budget": device.budget_mb,
        "admitted": sum(i.held_mb for i in host.instances if device.id in i.devices),
        "foreign": device.foreign_mb,
    }
    if device.used_mb is not None:
        kinds["used"] = device.used_mb
        yield Count(metrics.VRAM_USED.name, where, device.used_mb)
        yield Count(metrics.VRAM_FREE.name, where, max(0, device.total_mb - device.used_mb))
    for kind, memory_mb in kinds.items():
        yield Count(metrics.DEVICE_MEMORY.name, (*where, kind), memory_mb)
    if device.utilization_pct is not None:
        yield Count(metrics.UTILIZATION.name, where, device.utilization_pct)
    if device.temp_c is not None:
        yield Count(metrics.TEMPERATURE.name, where, device.temp_c)
    if device.energy_mj is not None:
        yield Count(metrics.DEVICE_ENERGY.name, where, device.energy_mj / 1000)
