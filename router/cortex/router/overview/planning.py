"""The plan of an action: from the agent for a warm, from the fleet view for all others."""

import time

from cortex.functions.names import nearest
from cortex.functions.spec import Engine, Function
from cortex.router.errors import BadRequest, HostNotFound
from cortex.router.overview.snapshot import FleetSnapshot, Index
from cortex.router.runtime import Runtime
from cortex.router.status import plans
from cortex.router.status.hosts import eviction_order
from cortex.router.status.model import Leaving
from cortex.router.status.plans import Plan

VERBS_ON_FUNCTIONS, VERBS_ON_HOSTS = ("warm", "cool", "pin", "unpin"), ("cordon", "uncordon", "drain")


async def plan_action(runtime: Runtime, do: str, *, function: str = "", host: str = "") -> Plan:
    """Return what an action would do. Raises BadRequest, FunctionNotFound or HostNotFound."""
    snapshot = take_snapshot(runtime)
    index = Index(snapshot.fleet)
    if do in VERBS_ON_FUNCTIONS:
        spec = function_named(runtime, function, index)
        if do == "warm":
            placement, refusals = await runtime.activator.plan(runtime.live_catalogue.resolve(spec.id).function)
            return plans.warm(
                spec, placement, refusals, eviction_order_on(runtime, placement.host) if placement else (), snapshot.now
            )
        if do == "cool":
            return plans.cool(spec, snapshot, index)
        return plans.pin(spec, index) if do == "pin" else plans.unpin(spec, index)
    if do not in VERBS_ON_HOSTS:
        raise BadRequest(f"unknown action '{do[:50]}': use {', '.join((*VERBS_ON_FUNCTIONS, *VERBS_ON_HOSTS))}")
    record = snapshot.fleet.hosts.get(host)
    if record is None and do == "cordon":
        record = snapshot.fleet.record(host)
    if record is None and (do == "drain" or host not in snapshot.fleet.cordoned):
        raise HostNotFound(host, nearest(host, snapshot.fleet.hosts))
    if record is not None and do == "drain":
        return plans.drain(record, snapshot, index)
    return plans.cordon(host, record) if do == "cordon" else plans.uncordon(host)


def function_named(runtime: Runtime, name: str, index: Index) -> Function:
    """Return a function of the catalogue, or a placeholder for a running one that is no longer in it."""
    if name not in runtime.live_catalogue.catalogue.functions and name in index.placed:
        return Function(id=name, engine=Engine.COMMAND)
    return runtime.live_catalogue.resolve(name).function


def eviction_order_on(runtime: Runtime, host: str) -> tuple[Leaving, ...]:
    """Return a host's instances in eviction order."""
    snapshot = take_snapshot(runtime)
    record = snapshot.fleet.hosts.get(host)
    return eviction_order(record, snapshot, Index(snapshot.fleet)) if record else ()


def take_snapshot(runtime: Runtime) -> FleetSnapshot:
    """Return the data that plans need."""
    return FleetSnapshot(
        catalogue=runtime.live_catalogue.catalogue,
        fleet=runtime.fleet(),
        strategy=runtime.settings.eviction.strategy,
        now=time.time(),
    )
