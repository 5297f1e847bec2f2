"""A worker's log, from whichever host has it."""

from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Literal

import httpx
from litestar.params import QueryParameter
from msgspec import Struct

from cortex.platform.record import HostRecord
from cortex.router.activation.agents import Agents, AgentUnavailable
from cortex.router.errors import InstanceNotFound, NoCapacity
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue

Run = Literal["current", "previous"]
Grep = Annotated[str, QueryParameter(max_length=200)]


class LogQuery(Struct, frozen=True, kw_only=True):
    """The requested part of a log: its last lines, or the last that contain `grep`."""

    lines: int
    follow: bool = False
    run: Run = "current"
    grep: str = ""


class OpenLog(Struct, frozen=True):
    """An open log and its host."""

    host: str
    answer: httpx.Response

    async def text(self) -> AsyncIterator[bytes]:
        """Yield chunks as they arrive. If the connection to the agent breaks, the log ends."""
        try:
            async for chunk in self.answer.aiter_bytes():
                yield chunk
        except httpx.HTTPError:
            return
        finally:
            await self.answer.aclose()


class WorkerLogs:
    """Opens logs on the hosts that may have them."""

    def __init__(self, catalogue: LiveCatalogue, view: FleetView, agents: Agents) -> None:
        self._catalogue, self._view, self._agents = catalogue, view, agents

    async def of_instance(self, instance: str, query: LogQuery) -> OpenLog:
        """Open the log of an instance. Raises InstanceNotFound or NoCapacity."""

        def has_instance(host: HostRecord) -> bool:
            return any(i.id == instance for i in host.instances) or any(f.instance == instance for f in host.failures)

        hosts = filter(has_instance, self._view.fleet.records())
        return await self._open(hosts, f"/instances/{instance}/logs", query, f"instance '{instance[:64]}'")

    async def of_function(self, name: str, host: str, query: LogQuery) -> OpenLog:
        """Open the log of a function's newest worker: first of hosts with an instance, then of those with a failure,
        then of the rest. Raises FunctionNotFound, InstanceNotFound or NoCapacity."""
        function = self._catalogue.resolve(name).base.id

        def rank(host: HostRecord) -> tuple[bool, bool, str]:
            has = any(i.function == function for i in host.instances)
            failed = any(f.function == function for f in host.failures)
            return (not has, not failed, host.name)

        hosts = sorted((h for h in self._view.fleet.records() if not host or h.name == host), key=rank)
        return await self._open(hosts, "/logs", query, f"'{function}'", function=function)

    async def _open(
        self, hosts: Iterable[HostRecord], path: str, query: LogQuery, subject: str, **more: str
    ) -> OpenLog:
        """Open the log of the first host that has it."""
        away = ""
        parameters = {"lines": query.lines, "follow": int(query.follow), "run": query.run, "grep": query.grep, **more}
        for host in hosts:
            try:
                answer = await self._agents.logs(host, path, parameters)
            except AgentUnavailable as error:
                away = str(error)
                continue
            if answer is not None:
                return OpenLog(host.name, answer)
        if away:
            raise NoCapacity(away, retry_after=5)
        earlier = "an earlier run of " if query.run == "previous" else ""
        raise InstanceNotFound(f"no host has a log of {earlier}{subject}")
