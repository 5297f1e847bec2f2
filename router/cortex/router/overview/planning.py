"""The plan of an action: from the agent for a warm, from the fleet view for all others."""

from cortex.functions.names import nearest
from cortex.functions.spec import Function
from cortex.platform.fleet import Fleet
from cortex.router.activation.proposer import Proposer
from cortex.router.errors import BadRequest, HostNotFound
from cortex.router.live_catalogue import LiveCatalogue
from cortex.router.overview import plans
from cortex.router.overview.functions import placeholder
from cortex.router.overview.snapshot import Index
from cortex.router.overview.sources import Sources
from cortex.router.plan_types import Action, Plan

ON_FUNCTIONS = (Action.WARM, Action.COOL, Action.PIN, Action.UNPIN)
ON_HOSTS = (Action.CORDON, Action.UNCORDON, Action.DRAIN)


class Planner:
    """Plans actions on functions and hosts."""

    def __init__(self, catalogue: LiveCatalogue, sources: Sources, proposer: Proposer) -> None:
        self._catalogue, self._sources, self._proposer = catalogue, sources, proposer

    async def on_function(self, action: str, name: str) -> Plan:
        """Return what an action on a function would do. Raises BadRequest or FunctionNotFound."""
        if action not in ON_FUNCTIONS:
            raise BadRequest(f"'{action[:50]}' has no plan: use {', '.join(ON_FUNCTIONS)}")
        snapshot = self._sources.now()
        index = Index(snapshot)
        function = function_named(name, self._catalogue, index)
        match action:
            case Action.COOL:
                return plans.cool(function, snapshot, index)
            case Action.PIN:
                return plans.pin(function, snapshot, index)
            case Action.UNPIN:
                return plans.unpin(function, snapshot, index)
        placement, refusals = await self._proposer.plan(self._catalogue.resolve(function.id).base)
        snapshot = self._sources.now()
        return plans.warm(function, placement, refusals, snapshot, Index(snapshot))

    async def on_host(self, action: str, host: str) -> Plan:
        """Return what an action on a host would do. Raises BadRequest or HostNotFound."""
        snapshot = self._sources.now()
        check_host(action, host, snapshot.fleet)
        index = Index(snapshot)
        if action == Action.DRAIN:
            return plans.drain(snapshot.fleet.hosts[host], snapshot, index)
        return plans.cordon(host, snapshot, index) if action == Action.CORDON else plans.uncordon(host, snapshot)


def check_host(action: str, host: str, fleet: Fleet) -> None:
    """Check that an action on a host is possible: only a host that reports can be drained, a silent one can be
    cordoned, and a cordon can be lifted from a host that is away. Raises BadRequest or HostNotFound."""
    if action not in ON_HOSTS:
        raise BadRequest(f"unknown action '{action[:50]}': use {', '.join(ON_HOSTS)}")
    exists = host in fleet.hosts or (action == Action.CORDON and host in fleet.silent)
    if not exists and (action == Action.DRAIN or host not in fleet.cordoned):
        raise HostNotFound(host, nearest(host, fleet.hosts))


def function_named(name: str, catalogue: LiveCatalogue, index: Index) -> Function:
    """Return a function of the catalogue, or a placeholder for a running one that is no longer in it."""
    if name not in catalogue.catalogue.functions and name in index.placed:
        return placeholder(name)
    return catalogue.resolve(name).function
