"""The operators' API for weights and downloads: `/admin/weights`, `/admin/jobs`.

The data comes from the agents; `away` names those that do not answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct, to_builtins

from cortex.functions.names import nearest
from cortex.functions.spec import Function
from cortex.platform import clock
from cortex.platform.agent_messages import Remove
from cortex.platform.record import HostRecord, use
from cortex.platform.scheduling.placement import need
from cortex.router.activation.agents import AgentRefused, Agents, AgentUnavailable
from cortex.router.activation.load_balancing import hosts_to_ask, why_nowhere
from cortex.router.errors import BadRequest, HostNotFound, JobNotFound, NoCapacity, RequestError
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue

T = TypeVar("T")


class RemoveBody(Struct, frozen=True):
    """The weights to remove, and the host; no host: all."""

    names: tuple[str, ...] = ()
    unused: bool = False
    dry_run: bool = False
    host: str = ""


class FetchBody(Struct, frozen=True):
    """The function whose weights to fetch, and the host; no host: where the function would start."""

    function: str
    host: str = ""


def routes(catalogue: LiveCatalogue, view: FleetView, agents: Agents) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/admin/weights", opt={"needs": "status"})
    async def weights(host: str = "") -> dict[str, Any]:
        """List the weights of every host, or of one."""
        found, away = await _from_all(_hosts(view, host), lambda h: agents.stored(h))
        rows = [{"host": h, **to_builtins(s)} for h, stored in found.items() for s in stored]
        return {"weights": rows, "away": away}

    @post("/admin/weights/remove", opt={"needs": "admin"}, status_code=200)
    async def remove(data: RemoveBody) -> dict[str, Any]:
        """Remove weights that are not in use, by function or source, or all that no function declares."""
        if not data.names and not data.unused:
            raise BadRequest("no weights selected: set `names` or `unused`")
        aliases = catalogue.catalogue.aliases
        names = tuple(aliases.get(n, n) for n in data.names)
        command = Remove(names, data.unused, data.dry_run)
        hosts = _hosts(view, data.host)
        for host in hosts if data.unused else ():
            await _update_catalogue(agents, catalogue, host)
        found, away = await _from_all(hosts, lambda h: agents.remove_weights(h, command))
        rows = [{"host": h, **to_builtins(s)} for h, result in found.items() for s in result.removed]
        remaining = [{"host": h, "name": n, "why": w} for h, result in found.items() for n, w in result.kept.items()]
        return {"removed": rows, "kept": remaining, "away": away, "dry_run": data.dry_run}

    @post("/admin/weights/fetch", opt={"needs": "admin"}, status_code=200)
    async def fetch(data: FetchBody) -> dict[str, Any]:
        """Fetch a function's weights without starting it."""
        function = catalogue.resolve(data.function).function
        chosen = _best(view, function, data.host)
        await _update_catalogue(agents, catalogue, chosen)
        job = await _one(chosen, agents.prefetch(chosen, function))
        return {"host": chosen.name, "job": job, "function": function.id}

    @get("/admin/weights/estimate", opt={"needs": "status"})
    async def estimate(function: str, host: str = "") -> dict[str, Any]:
        """Estimate the memory of a function's instance, also without local weights."""
        spec = catalogue.resolve(function).function
        chosen = _best(view, spec, host)
        result = await _one(chosen, agents.estimate(chosen, spec))
        return {"host": chosen.name, **to_builtins(result)}

    @get("/admin/jobs", opt={"needs": "status"})
    async def jobs(host: str = "") -> dict[str, Any]:
        """List the running and recent downloads."""
        found, away = await _from_all(_hosts(view, host), lambda h: agents.jobs(h))
        return {"jobs": [{"host": h, **j} for h, listed in found.items() for j in listed], "away": away}

    @post("/admin/jobs/{job:str}/cancel", opt={"needs": "admin"}, status_code=200)
    async def cancel(job: str) -> dict[str, str]:
        """Cancel a download for all its waiters. The part that was fetched stays."""
        hosts = _hosts(view, "")
        found, _ = await _from_all(hosts, lambda h: agents.jobs(h))
        active = {j["id"]: h for h, listed in found.items() for j in listed if j["alive"]}
        if job not in active:
            raise JobNotFound(job, nearest(job, active))
        host = next(h for h in hosts if h.name == active[job])
        await _one(host, agents.cancel_job(host, job))
        return {"host": host.name, "job": job}

    return [weights, remove, fetch, estimate, jobs, cancel]


def _hosts(view: FleetView, name: str) -> list[HostRecord]:
    hosts = view.fleet.hosts
    if not name:
        return [hosts[h] for h in sorted(hosts)]
    if name not in hosts:
        raise HostNotFound(name, nearest(name, hosts))
    return [hosts[name]]


async def _update_catalogue(agents: Agents, catalogue: LiveCatalogue, host: HostRecord) -> None:
    """Send an agent the current catalogue, from which it derives unused weights and the functions of a download."""
    if host.catalogue != catalogue.digest:
        await _one(host, agents.send_catalogue(host, catalogue.catalogue, catalogue.digest))


def _best(view: FleetView, function: Function, host: str) -> HostRecord:
    """Return the named host, or the first candidate for starting the function."""
    if host:
        return _hosts(view, host)[0]
    fleet, requirement = view.fleet, need(function, None)
    names = hosts_to_ask(requirement, function, fleet, use(fleet), clock.now())
    if not names:
        why = why_nowhere(requirement, fleet, use(fleet), clock.now())
        raise NoCapacity(f"no host can run '{function.id}': {why}")
    return fleet.hosts[names[0]]


async def _from_all(
    hosts: Iterable[HostRecord], request: Callable[[HostRecord], Awaitable[T]]
) -> tuple[dict[str, T], dict[str, str]]:
    """Query hosts concurrently; return their answers, and the errors of the others."""
    targets = list(hosts)
    answers = await asyncio.gather(*(request(h) for h in targets), return_exceptions=True)
    found: dict[str, T] = {}
    away: dict[str, str] = {}
    for host, answer in zip(targets, answers, strict=True):
        if isinstance(answer, AgentUnavailable | AgentRefused):
            away[host.name] = str(answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found[host.name] = answer
    return found, away


async def _one(host: HostRecord, request: Awaitable[T]) -> T:
    try:
        return await request
    except AgentUnavailable as error:
        raise NoCapacity(str(error), retry_after=5) from None
    except AgentRefused as error:
        raise _rejection(host, error) from None


def _rejection(host: HostRecord, error: AgentRefused) -> RequestError:
    message = f"{host.name}: {error}"
    return NoCapacity(message, retry_after=5) if error.status == 503 else BadRequest(message)
