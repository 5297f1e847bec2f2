"""`GET /health`: whether this worker process can serve requests, its problems, and the age of its data."""

import math

from cortex.platform.faults import Fault, Faults
from cortex.platform.fleet import Fleet
from cortex.platform.registry import Registry
from cortex.router.api_types import BackgroundFault, Health, HostSilence, NodeCount
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue

MOST_NAMED = 20


def health_report(
    view: FleetView, catalogue: LiveCatalogue, registry: Registry, all_faults: Faults, now: float
) -> Health:
    """Return the health of this worker process."""
    fleet, faults = view.fleet, all_faults.recent()
    unexpected = fleet.silent.keys() - fleet.cordoned
    problems = view.away or catalogue.problem or unexpected or faults or fleet.namesakes
    return Health(
        status="ok" if fleet.hosts and not problems else "degraded",
        nodes=NodeCount(healthy=len(fleet.hosts), total=len(fleet.hosts) + len(fleet.silent)),
        silent=silent(fleet, now),
        record=registry.foreign or ("away" if view.away else "ok"),
        record_read_s_ago=math.ceil(now - fleet.at) if fleet.at else None,
        catalogue=catalogue.problem or "ok",
        background=tuple(background(f, now) for f in faults) or "ok",
        shared_names={n: (fleet.hosts[n].address, other.address) for n, other in fleet.namesakes.items()},
    )


def silent(fleet: Fleet, now: float) -> dict[str, HostSilence]:
    """Return the silent hosts, latest first."""
    latest = sorted(fleet.silent.items(), key=lambda item: -item[1].since)[:MOST_NAMED]
    return {n: HostSilence(silent_s=math.ceil(now - h.since), serving=len(h.record.instances)) for n, h in latest}


def background(fault: Fault, now: float) -> BackgroundFault:
    """Return a background task's last exception, its count and its age."""
    return BackgroundFault(work=fault.work, error=fault.kind, count=fault.count, failed_s_ago=math.ceil(now - fault.at))
