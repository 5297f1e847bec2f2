"""`/admin/instances`: every worker process of the fleet, and what it wrote, wherever it runs."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import httpx
from litestar import MediaType, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import Parameter
from litestar.response import Stream
from msgspec import to_builtins

from cortex.platform.record import HostRecord
from cortex.router.agents import AgentAway
from cortex.router.refusals import InstanceNotFound, NoCapacity
from cortex.router.runtime import Runtime

Lines = Annotated[int, Parameter(ge=1, le=10_000)]
Run = Literal["current", "previous"]


def routes(runtime: Runtime) -> list[HTTPRouteHandler]:
    """Return the routes about instances."""

    @get("/admin/instances", opt={"needs": "status"})
    async def instances() -> dict[str, Any]:
        """List the instances of all hosts."""
        fleet = runtime.view.fleet
        found = [{**to_builtins(i), "host": h.name} for h in fleet.hosts.values() for i in h.instances]
        return {"instances": found}

    @get("/admin/instances/{instance:str}/logs", opt={"needs": "status"})
    async def instance_logs(instance: str, lines: Lines = 200, follow: bool = False, run: Run = "current") -> Stream:
        """Return what a worker wrote; `follow` goes on until it is gone."""
        hosts = _with_instance(runtime, instance)
        return await logs_of(hosts, f"/instances/{instance}/logs", lines, follow, run, f"instance '{instance[:64]}'")

    @get("/admin/logs", opt={"needs": "status"})
    async def function_logs(
        function: str, host: str = "", lines: Lines = 200, follow: bool = False, run: Run = "current"
    ) -> Stream:
        """Return what the newest worker of a function wrote, also when it is gone by now."""
        id = runtime.directory.find(function).function.id
        hosts = [h for h in _best_first(runtime, id) if not host or h.name == host]
        return await logs_of(hosts, "/logs", lines, follow, run, f"worker of '{id}'", function=id)

    async def logs_of(
        hosts: list[HostRecord], path: str, lines: int, follow: bool, run: str, whose: str, **more: str
    ) -> Stream:
        """Return the log of the first host that has it."""
        away = ""
        asked: dict[str, str | int] = {"lines": lines, "follow": int(follow), "run": run, **more}
        for host in hosts:
            try:
                answer = await runtime.agents.logs(host.address, path, asked)
            except AgentAway as error:
                away = str(error)
                continue
            if answer is not None:
                headers = {"x-cortex-host": host.name, "x-accel-buffering": "no"}
                return Stream(_text(answer), media_type=MediaType.TEXT, headers=headers)
        if away:
            raise NoCapacity(away, retry_after=5)
        raise InstanceNotFound(f"no log of a {whose} is kept" + (" of an earlier run" if run == "previous" else ""))

    return [instances, instance_logs, function_logs]


def _with_instance(runtime: Runtime, instance: str) -> list[HostRecord]:
    def knows(host: HostRecord) -> bool:
        return any(i.id == instance for i in host.instances) or any(f.instance == instance for f in host.failures)

    return [h for h in runtime.view.fleet.hosts.values() if knows(h)]


def _best_first(runtime: Runtime, function: str) -> list[HostRecord]:
    """Return the hosts: those that have an instance now, those where it failed, and the rest."""

    def rank(host: HostRecord) -> tuple[bool, bool, str]:
        has = any(i.function == function for i in host.instances)
        failed = any(f.function == function for f in host.failures)
        return (not has, not failed, host.name)

    return sorted(runtime.view.fleet.hosts.values(), key=rank)


async def _text(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_bytes():
            yield chunk
    except httpx.HTTPError:
        return  # the agent went away: what was read is all there is
    finally:
        await answer.aclose()
