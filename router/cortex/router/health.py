"""`GET /health`: whether requests can be served, what is amiss, and how old what this worker process knows is."""

import math
from typing import Any

from cortex.platform.faults import Fault
from cortex.platform.record import Fleet
from cortex.router.runtime import Runtime

MOST_NAMED = 20


def standing(runtime: Runtime, now: float) -> dict[str, Any]:
    """Return what this worker process says of itself."""
    fleet, view, faults = runtime.view.fleet, runtime.view, runtime.faults.recent()
    worried = fleet.silent.keys() - fleet.cordoned
    well = fleet.hosts and not (view.away or runtime.directory.problem or worried or faults or fleet.namesakes)
    return {
        "status": "ok" if well else "degraded",
        "nodes": {"healthy": len(fleet.hosts), "total": len(fleet.hosts) + len(fleet.silent)},
        "silent": silent(fleet, now),
        "record": runtime.registry.foreign or ("away" if view.away else "ok"),
        "record_read_s_ago": math.ceil(now - fleet.at) if fleet.at else None,
        "catalogue": runtime.directory.problem or "ok",
        "background": [background(f, now) for f in faults] or "ok",
        "shared_names": {n: [fleet.hosts[n].address, other.address] for n, other in fleet.namesakes.items()},
    }


def silent(fleet: Fleet, now: float) -> dict[str, dict[str, int]]:
    """Return the silent hosts, those first that fell silent last: for how long, and how many instances of theirs still
    answer."""
    latest = sorted(fleet.silent.items(), key=lambda named: -named[1].since)[:MOST_NAMED]
    return {n: {"silent_s": math.ceil(now - h.since), "serving": len(h.record.instances)} for n, h in latest}


def background(fault: Fault, now: float) -> dict[str, Any]:
    """Return which background work raised what, how often, and when last."""
    return {"work": fault.work, "error": fault.kind, "count": fault.count, "failed_s_ago": math.ceil(now - fault.at)}
