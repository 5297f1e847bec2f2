"""A worker's log, from whichever host has it."""

from collections.abc import AsyncIterator
from typing import Annotated, Literal

import httpx
from litestar.params import Parameter
from msgspec import Struct

from cortex.platform.record import HostRecord
from cortex.router.activation.agents import AgentUnavailable
from cortex.router.errors import InstanceNotFound, NoCapacity
from cortex.router.runtime import Runtime

Run = Literal["current", "previous"]
Grep = Annotated[str, Parameter(max_length=200)]


class LogQuery(Struct, frozen=True, kw_only=True):
    """The requested part of a log: its last lines, or the last that contain `grep`."""

    lines: int
    follow: bool = False
    run: Run = "current"
    grep: str = ""


async def log_of_instance(runtime: Runtime, instance: str, query: LogQuery) -> "OpenLog":
    """Open the log of an instance. Raises InstanceNotFound or NoCapacity."""
    hosts = _with_instance(runtime, instance)
    return await _open(runtime, hosts, f"/instances/{instance}/logs", query, f"instance '{instance[:64]}'")


async def log_of_function(runtime: Runtime, function: str, host: str, query: LogQuery) -> "OpenLog":
    """Open the log of a function's newest worker. Raises FunctionNotFound, InstanceNotFound or NoCapacity."""
    id = runtime.live_catalogue.resolve(function).function.id
    hosts = [h for h in _best_first(runtime, id) if not host or h.name == host]
    return await _open(runtime, hosts, "/logs", query, f"'{id}'", function=id)


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


async def _open(
    runtime: Runtime, hosts: list[HostRecord], path: str, query: LogQuery, subject: str, **more: str
) -> OpenLog:
    """Open the log of the first host that has it."""
    away = ""
    parameters = {"lines": query.lines, "follow": int(query.follow), "run": query.run, "grep": query.grep, **more}
    for host in hosts:
        try:
            answer = await runtime.agents.logs(host, path, parameters)
        except AgentUnavailable as error:
            away = str(error)
            continue
        if answer is not None:
            return OpenLog(host.name, answer)
    if away:
        raise NoCapacity(away, retry_after=5)
    raise InstanceNotFound(f"no host has a log of {'an earlier run of ' if query.run == 'previous' else ''}{subject}")


def _with_instance(runtime: Runtime, instance: str) -> list[HostRecord]:
    def has_instance(host: HostRecord) -> bool:
        return any(i.id == instance for i in host.instances) or any(f.instance == instance for f in host.failures)

    return [h for h in runtime.view.fleet.records() if has_instance(h)]


def _best_first(runtime: Runtime, function: str) -> list[HostRecord]:
    """Return the hosts: first those with an instance, then those with a failure, then the rest."""

    def rank(host: HostRecord) -> tuple[bool, bool, str]:
        has = any(i.function == function for i in host.instances)
        failed = any(f.function == function for f in host.failures)
        return (not has, not failed, host.name)

    return sorted(runtime.view.fleet.records(), key=rank)
