"""From an action that is asked for to its plan: with the agent's word for a warm, from the view for the rest."""

import time

from cortex.functions.names import nearest
from cortex.functions.spec import Engine, Function
from cortex.router.errors import BadRequest, HostNotFound
from cortex.router.runtime import Runtime
from cortex.router.status import plans
from cortex.router.status.hosts import order_of_leaving
from cortex.router.status.model import Leaving
from cortex.router.status.plans import Plan
from cortex.router.status.snapshot import FleetSnapshot, Index

VERBS_ON_FUNCTIONS, VERBS_ON_HOSTS = ("warm", "cool", "pin", "unpin"), ("cordon", "uncordon", "drain")


async def planned(runtime: Runtime, do: str, *, function: str = "", host: str = "") -> Plan:
    """Return what an action would do. Raises BadRequest, FunctionNotFound or HostNotFound."""
    known = sight(runtime)
    index = Index(known.fleet)
    if do in VERBS_ON_FUNCTIONS:
        spec = function_named(runtime, function, index)
        if do == "warm":
            going, refusals = await runtime.activator.plan(runtime.live_catalogue.resolve(spec.id).function)
            return plans.warm(spec, going, refusals, order_on(runtime, going.host) if going else (), known.now)
        if do == "cool":
            return plans.cool(spec, known, index)
        return plans.pin(spec, index) if do == "pin" else plans.unpin(spec, index)
    if do not in VERBS_ON_HOSTS:
        raise BadRequest(f"'{do[:50]}' is none of {', '.join((*VERBS_ON_FUNCTIONS, *VERBS_ON_HOSTS))}")
    record = known.fleet.hosts.get(host)
    if record is None and do == "cordon":
        record = known.fleet.record(host)
    if record is None and (do == "drain" or host not in known.fleet.cordoned):
        raise HostNotFound(host, nearest(host, known.fleet.hosts))
    if record is not None and do == "drain":
        return plans.drain(record, known, index)
    return plans.cordon(host, record) if do == "cordon" else plans.uncordon(host)


def function_named(runtime: Runtime, name: str, index: Index) -> Function:
    """Return a function of the catalogue, or the shell of one that runs although it is not in it any more."""
    if name not in runtime.live_catalogue.catalogue.functions and name in index.placed:
        return Function(id=name, engine=Engine.COMMAND)
    return runtime.live_catalogue.resolve(name).function


def order_on(runtime: Runtime, host: str) -> tuple[Leaving, ...]:
    """Return a host's instances in the order in which they leave when room is needed."""
    known = sight(runtime)
    record = known.fleet.hosts.get(host)
    return order_of_leaving(record, known, Index(known.fleet)) if record else ()


def sight(runtime: Runtime) -> FleetSnapshot:
    """Return what a plan is made of."""
    return FleetSnapshot(
        catalogue=runtime.live_catalogue.catalogue,
        fleet=runtime.fleet(),
        strategy=runtime.settings.eviction.strategy,
        now=time.time(),
    )
