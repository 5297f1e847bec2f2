"""What operators do to functions and hosts: warm, cool, override, forget, cordon, drain."""

import time

from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function
from cortex.platform.agent_messages import Ensure
from cortex.platform.record import Override
from cortex.platform.registry import Registry
from cortex.platform.scheduling.ledger import about
from cortex.router.activation.activator import Activator
from cortex.router.activation.agents import Agents, AgentUnavailable
from cortex.router.errors import BadRequest, RequestError
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue, Target
from cortex.router.start_history import History


async def warm(activator: Activator, catalogue: LiveCatalogue, name: str) -> str:
    """Start an instance unless one exists, ignoring back-off; return its id. Raises RequestError."""
    return await activator.ensure(lambda: catalogue.resolve(name), force=True)


async def cool(agents: Agents, view: FleetView, function: str, *, at_once: bool) -> tuple[list[str], list[str]]:
    """Drain a function's instances. Return their ids, and the hosts whose agent did not answer."""
    draining: list[str] = []
    away: list[str] = []
    for host in view.fleet.records():
        if any(i.function == function for i in host.instances):
            try:
                draining += await agents.cool(host, function, at_once=at_once)
            except AgentUnavailable:
                away.append(host.name)
    return draining, away


async def override(
    registry: Registry, view: FleetView, catalogue: LiveCatalogue, function: Function, **changes: int | bool | None
) -> Function:
    """Override settings of a function until they are reset. Raises RecordUnavailable, BadRequest."""
    current = view.fleet.overrides.get(function.id, Override())
    settings = replace(current, **changes)
    declared = catalogue.declared(function.id) or function
    least = declared.min if settings.min is None else settings.min
    most = declared.max if settings.max is None else settings.max
    if least > most or most < 1:
        raise BadRequest(f"'{function.id}' would have min {least} and max {most}; set min <= max and max >= 1")
    await registry.override(function.id, settings)
    await view.refresh()
    catalogue.override(view.fleet.overrides)
    return catalogue.resolve(function.id).function


async def forget(
    registry: Registry, view: FleetView, agents: Agents, history: History, target: Target
) -> tuple[int, list[str]]:
    """Delete a function's measurements, for all revisions, and its failures with their back-off.

    Return the number of deleted entries, and the hosts that did not answer. Raises RecordUnavailable.
    """
    function, hosts = target.function.id, list(view.fleet.hosts.values())
    revisions = {i.revision for h in hosts for i in h.instances if i.function == function} | {target.revision}
    entries = about(await registry.ledger(), function, revisions)
    await registry.unlearn(entries)
    history.invalidate()
    away = []
    for host in hosts:
        try:
            await agents.forget(host, function)
        except AgentUnavailable:
            away.append(host.name)
    return len(entries), away


async def cordon(registry: Registry, view: FleetView, host: str, *, cordoned: bool) -> None:
    """Exclude a host from new placements, or include it again. Raises RecordUnavailable."""
    await registry.cordon(host, cordoned=cordoned)
    await view.refresh()


async def drain(
    registry: Registry, view: FleetView, catalogue: LiveCatalogue, activator: Activator, agents: Agents, host: str
) -> tuple[list[str], list[str]]:
    """Cordon a host, start its functions on other hosts that have room, and drain its instances.

    Return the moved functions and the draining instances. Raises RecordUnavailable, AgentUnavailable.
    """
    await cordon(registry, view, host, cordoned=True)
    record = view.fleet.hosts[host]
    moved = []
    for function_id in sorted({i.function for i in record.instances if i.state is State.READY}):
        function = catalogue.catalogue.functions.get(function_id)
        if function is not None and await _move(activator, view, function, host):
            moved.append(function_id)
    return moved, list(await agents.drain(record))


async def _move(activator: Activator, view: FleetView, function: Function, source: str) -> bool:
    """Start a function on another host and wait until it is ready there. False if no host accepts it."""
    try:
        accepted = await activator.propose(Ensure(function))
    except RequestError:
        return False
    deadline = time.monotonic() + function.start_timeout_s
    while time.monotonic() < deadline:
        entry = view.instance(accepted.instance)
        if entry is not None and entry[1].state is State.READY:
            return entry[0].name != source
        if view.failure(accepted.instance) is not None:
            return False
        await view.changed(1.0)
    return False
