"""`/admin/instances`: every worker process of the fleet, and what it wrote, wherever it runs.

What a worker writes may hold prompts: it is for admins, as on the status page.
"""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import httpx
from litestar import MediaType, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import Parameter
from litestar.response import Stream
from msgspec import Struct, to_builtins

from cortex.platform.record import HostRecord
from cortex.router.activation.agents import AgentUnavailable
from cortex.router.errors import InstanceNotFound, NoCapacity
from cortex.router.runtime import Runtime

Lines = Annotated[int, Parameter(ge=1, le=10_000)]
Run = Literal["current", "previous"]
Text = Annotated[str, Parameter(max_length=200)]


def routes(runtime: Runtime) -> list[HTTPRouteHandler]:
    """Return the routes about instances."""

    @get("/admin/instances", opt={"needs": "status"})
    async def instances() -> dict[str, Any]:
        """List the instances of all hosts."""
        found = [{**to_builtins(i), "host": h.name} for h in runtime.fleet().records() for i in h.instances]
        return {"instances": found}

    @get("/admin/instances/{instance:str}/logs", opt={"needs": "admin"})
    async def instance_logs(
        instance: str, lines: Lines = 200, follow: bool = False, run: Run = "current", grep: Text = ""
    ) -> Stream:
        """Return what a worker wrote, or its lines with a text; `follow` goes on until it is gone."""
        asked = LogQuery(lines=lines, follow=follow, run=run, grep=grep)
        return _streamed(await log_of_instance(runtime, instance, asked))

    @get("/admin/logs", opt={"needs": "admin"})
    async def function_logs(
        function: str,
        host: str = "",
        lines: Lines = 200,
        follow: bool = False,
        run: Run = "current",
        grep: Text = "",
    ) -> Stream:
        """Return what the newest worker of a function wrote, also when it is gone by now."""
        asked = LogQuery(lines=lines, follow=follow, run=run, grep=grep)
        return _streamed(await log_of_function(runtime, function, host, asked))

    return [instances, instance_logs, function_logs]


class LogQuery(Struct, frozen=True, kw_only=True):
    """What of a log is wanted: its last lines, or the last of those with a text."""

    lines: int
    follow: bool = False
    run: Run = "current"
    grep: str = ""


async def log_of_instance(runtime: Runtime, instance: str, asked: LogQuery) -> "Opened":
    """Open the log of an instance. Raises InstanceNotFound or NoCapacity."""
    hosts = _with_instance(runtime, instance)
    return await _opened(runtime, hosts, f"/instances/{instance}/logs", asked, f"instance '{instance[:64]}'")


async def log_of_function(runtime: Runtime, function: str, host: str, asked: LogQuery) -> "Opened":
    """Open the log of a function's newest worker. Raises FunctionNotFound, InstanceNotFound or NoCapacity."""
    id = runtime.live_catalogue.resolve(function).function.id
    hosts = [h for h in _best_first(runtime, id) if not host or h.name == host]
    return await _opened(runtime, hosts, "/logs", asked, f"'{id}'", function=id)


class Opened(Struct, frozen=True):
    """A log, to be read and closed, and the host it is on."""

    host: str
    answer: httpx.Response

    async def text(self) -> AsyncIterator[bytes]:
        """Yield it as it comes. When the agent goes away, what was read is all there is."""
        try:
            async for chunk in self.answer.aiter_bytes():
                yield chunk
        except httpx.HTTPError:
            return
        finally:
            await self.answer.aclose()


async def _opened(
    runtime: Runtime, hosts: list[HostRecord], path: str, asked: LogQuery, whose: str, **more: str
) -> Opened:
    """Open the log of the first host that has it."""
    away = ""
    query = {"lines": asked.lines, "follow": int(asked.follow), "run": asked.run, "grep": asked.grep, **more}
    for host in hosts:
        try:
            answer = await runtime.agents.logs(host, path, query)
        except AgentUnavailable as error:
            away = str(error)
            continue
        if answer is not None:
            return Opened(host.name, answer)
    if away:
        raise NoCapacity(away, retry_after=5)
    raise InstanceNotFound(f"no host has a log of {'an earlier run of ' if asked.run == 'previous' else ''}{whose}")


def _streamed(log: Opened) -> Stream:
    headers = {"x-cortex-host": log.host, "x-accel-buffering": "no"}
    return Stream(log.text(), media_type=MediaType.TEXT, headers=headers)


def _with_instance(runtime: Runtime, instance: str) -> list[HostRecord]:
    def knows(host: HostRecord) -> bool:
        return any(i.id == instance for i in host.instances) or any(f.instance == instance for f in host.failures)

    return [h for h in runtime.view.fleet.records() if knows(h)]


def _best_first(runtime: Runtime, function: str) -> list[HostRecord]:
    """Return the hosts: those that have an instance now, those where it failed, and the rest."""

    def rank(host: HostRecord) -> tuple[bool, bool, str]:
        has = any(i.function == function for i in host.instances)
        failed = any(f.function == function for f in host.failures)
        return (not has, not failed, host.name)

    return sorted(runtime.view.fleet.records(), key=rank)
