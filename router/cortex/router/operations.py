"""What operators do to functions and hosts: warm, cool, override, forget, cordon, drain."""

import contextlib
import time

from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function
from cortex.platform.agent_messages import Accepted
from cortex.platform.record import Override
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.scheduling.ledger import about
from cortex.router.activation.activator import CLAIMED_ELSEWHERE_S, Activator
from cortex.router.activation.agents import Agents, AgentUnavailable
from cortex.router.errors import BadRequest, RequestError
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue, Target
from cortex.router.start_history import History


class Operations:
    """Functions are named by id or alias. Every operation on one raises FunctionNotFound. What is done to instances is
    done to those that serve it, which a variant shares with its base."""

    def __init__(
        self,
        registry: Registry,
        view: FleetView,
        catalogue: LiveCatalogue,
        activator: Activator,
        agents: Agents,
        history: History,
    ) -> None:
        self._registry, self._view, self._catalogue = registry, view, catalogue
        self._activator, self._agents, self._history = activator, agents, history

    async def warm(self, name: str) -> str:
        """Start an instance unless one exists, ignoring back-off; return its id. Raises RequestError."""
        return await self._activator.ensure(lambda: self._catalogue.resolve(name), force=True)

    async def cool(self, name: str, *, at_once: bool, park: bool = False) -> tuple[list[str], list[str]]:
        """Drain a function's instances, which then stop or are parked. Return their ids, and the hosts away."""
        function = self._catalogue.resolve(name).base.id
        draining: list[str] = []
        away: list[str] = []
        for host in self._view.fleet.records():
            if any(i.function == function for i in host.instances):
                try:
                    draining += await self._agents.cool(host, function, at_once=at_once, park=park)
                except AgentUnavailable:
                    away.append(host.name)
        await self._show_ends()
        return draining, away

    async def override(self, name: str, **changes: int | bool | None) -> Function:
        """Override settings of a function until they are reset. Raises RecordUnavailable, BadRequest."""
        function = self._catalogue.resolve(name).function
        settings = replace(self._view.fleet.overrides.get(function.id, Override()), **changes)
        if function.variant_of and settings.max is not None:
            raise BadRequest(
                f"'{function.id}' is a variant: set max of '{function.variant_of}', which has the instances"
            )
        declared = self._catalogue.declaration(function.id) or function
        least = declared.min if settings.min is None else settings.min
        most = declared.max if settings.max is None else settings.max
        if least > most or most < 1:
            raise BadRequest(f"'{function.id}' would have min {least} and max {most}; set min <= max and max >= 1")
        await self._registry.override(function.id, settings)
        await self._view.refresh()
        self._catalogue.override(self._view.fleet.overrides)
        target = self._catalogue.resolve(function.id)
        await self._send_settings(target.base.id)
        return target.function

    async def _send_settings(self, function: str) -> None:
        """Send the catalogue to the hosts of a function: an instance that is pinned must not be closed meanwhile. An
        agent that is away gets it with the next sweep."""
        hosts = self._view.fleet.hosts.values() if self._catalogue.is_deliberate else ()
        for host in [h for h in hosts if any(i.function == function for i in h.instances)]:
            with contextlib.suppress(AgentUnavailable):
                await self._agents.send_catalogue(host, self._catalogue.hosted, self._catalogue.digest)

    async def forget(self, name: str) -> tuple[str, int, list[str]]:
        """Delete a function's measurements, for all revisions, and its failures with their back-off.

        Return its id, the number of deleted entries, and the hosts that did not answer. Raises RecordUnavailable.
        """
        target, hosts = self._catalogue.resolve(name), list(self._view.fleet.hosts.values())
        function = target.base.id
        revisions = {i.revision for h in hosts for i in h.instances if i.function == function} | {target.revision}
        entries = about(await self._registry.ledger(), function, revisions)
        await self._registry.unlearn(entries)
        self._history.invalidate()
        away = []
        for host in hosts:
            try:
                await self._agents.forget(host, function)
            except AgentUnavailable:
                away.append(host.name)
        return function, len(entries), away

    async def cordon(self, host: str, *, cordoned: bool) -> None:
        """Exclude a host from new placements, or include it again. Raises RecordUnavailable."""
        await self._registry.cordon(host, cordoned=cordoned)
        await self._view.refresh()

    async def drain(self, host: str) -> tuple[list[str], list[str]]:
        """Cordon a host, start its functions on other hosts that have room, and drain its instances.

        Return the moved functions and the draining instances. Raises RecordUnavailable, AgentUnavailable.
        """
        await self.cordon(host, cordoned=True)
        record = self._view.fleet.hosts[host]
        moved = []
        for function_id in sorted({i.function for i in record.instances if i.state is State.READY}):
            target = self._catalogue.get(function_id)
            if target is not None and await self._move(target, host):
                moved.append(function_id)
        draining = list(await self._agents.drain(record))
        await self._show_ends()
        return moved, draining

    async def _show_ends(self) -> None:
        """Read what agents have published before they answered, so that the next look shows it."""
        with contextlib.suppress(RecordUnavailable):
            await self._view.refresh()

    async def _move(self, target: Target, source: str) -> bool:
        """Start a function on another host and wait until it is ready there. False if no host accepts it."""
        deadline = time.monotonic() + target.base.start_timeout_s
        accepted: Accepted | None = None
        while time.monotonic() < deadline:
            if accepted is None:
                try:
                    accepted = await self._activator.move(target, source)
                except RequestError:
                    return False
                if accepted is None:
                    await self._view.wait_for_change(CLAIMED_ELSEWHERE_S)
                    continue
            entry = self._view.instance(accepted.instance)
            if entry is not None and entry[1].state is State.READY:
                return entry[0].name != source
            if self._view.failure(accepted.instance) is not None:
                return False
            await self._view.wait_for_change(1.0)
        return False
