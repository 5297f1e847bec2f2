"""What operators see and do with weights and their downloads: `/admin/weights`, `/admin/jobs`.

Everything here is the hosts' own: each agent is asked, and one that does not answer is named in `away`.
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
from cortex.router.activation.agents import AgentRefused, AgentUnavailable
from cortex.router.activation.load_balancing import hosts_to_ask, why_nowhere
from cortex.router.errors import BadRequest, HostNotFound, JobNotFound, NoCapacity, RequestError
from cortex.router.runtime import Runtime

T = TypeVar("T")


class Unwanted(Struct, frozen=True):
    """Which weights to remove, and where; no host: everywhere."""

    names: tuple[str, ...] = ()
    unused: bool = False
    dry_run: bool = False
    host: str = ""


class Wanted(Struct, frozen=True):
    """Which function's weights to fetch, and where; no host: where the function would be started."""

    function: str
    host: str = ""


def routes(runtime: Runtime) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/admin/weights", opt={"needs": "status"})
    async def weights(host: str = "") -> dict[str, Any]:
        """List what every host has, or one of them."""
        found, away = await _from_all(_hosts(runtime, host), lambda h: runtime.agents.stored(h))
        rows = [{"host": h, **to_builtins(s)} for h, stored in found.items() for s in stored]
        return {"weights": rows, "away": away}

    @post("/admin/weights/remove", opt={"needs": "admin"}, status_code=200)
    async def remove(data: Unwanted) -> dict[str, Any]:
        """Remove weights that nobody uses: by function or source, or all that no function declares."""
        if not data.names and not data.unused:
            raise BadRequest("say which weights: `names`, or `unused`")
        catalogue = runtime.directory.catalogue
        names = tuple(catalogue.aliases.get(n, n) for n in data.names)
        asked = Remove(names, data.unused, data.dry_run)
        hosts = _hosts(runtime, data.host)
        for one in hosts if data.unused else ():
            await _told(runtime, one)
        found, away = await _from_all(hosts, lambda h: runtime.agents.remove_weights(h, asked))
        rows = [{"host": h, **to_builtins(s)} for h, told in found.items() for s in told.removed]
        kept = [{"host": h, "name": n, "why": w} for h, told in found.items() for n, w in told.kept.items()]
        return {"removed": rows, "kept": kept, "away": away, "dry_run": data.dry_run}

    @post("/admin/weights/fetch", opt={"needs": "admin"}, status_code=200)
    async def fetch(data: Wanted) -> dict[str, Any]:
        """Fetch a function's weights now, without starting it."""
        function = runtime.directory.find(data.function).function
        chosen = _best(runtime, function, data.host)
        await _told(runtime, chosen)
        job = await _one(chosen, runtime.agents.prefetch(chosen, function))
        return {"host": chosen.name, "job": job, "function": function.id}

    @get("/admin/weights/estimate", opt={"needs": "status"})
    async def estimate(function: str, host: str = "") -> dict[str, Any]:
        """Say how much memory an instance of a function will take, also when its weights are nowhere yet."""
        wanted = runtime.directory.find(function).function
        chosen = _best(runtime, wanted, host)
        told = await _one(chosen, runtime.agents.estimate(chosen, wanted))
        return {"host": chosen.name, **to_builtins(told)}

    @get("/admin/jobs", opt={"needs": "status"})
    async def jobs(host: str = "") -> dict[str, Any]:
        """List the downloads that are going on, and those that ended lately."""
        found, away = await _from_all(_hosts(runtime, host), lambda h: runtime.agents.jobs(h))
        return {"jobs": [{"host": h, **j} for h, listed in found.items() for j in listed], "away": away}

    @post("/admin/jobs/{job:str}/cancel", opt={"needs": "admin"}, status_code=200)
    async def cancel(job: str) -> dict[str, str]:
        """Stop a download, whoever waits for it. What has come stays."""
        hosts = _hosts(runtime, "")
        found, _ = await _from_all(hosts, lambda h: runtime.agents.jobs(h))
        known = {j["id"]: h for h, listed in found.items() for j in listed if j["alive"]}
        if job not in known:
            raise JobNotFound(job, nearest(job, known))
        host = next(h for h in hosts if h.name == known[job])
        await _one(host, runtime.agents.cancel_job(host, job))
        return {"host": host.name, "job": job}

    return [weights, remove, fetch, estimate, jobs, cancel]


def _hosts(runtime: Runtime, name: str) -> list[HostRecord]:
    hosts = runtime.view.fleet.hosts
    if not name:
        return [hosts[h] for h in sorted(hosts)]
    if name not in hosts:
        raise HostNotFound(name, nearest(name, hosts))
    return [hosts[name]]


async def _told(runtime: Runtime, host: HostRecord) -> None:
    """See that an agent knows the catalogue as it is now: by it, it judges what is unused and whom a fetch is for."""
    if host.catalogue != runtime.directory.digest:
        catalogue, digest = runtime.directory.catalogue, runtime.directory.digest
        await _one(host, runtime.agents.send_catalogue(host, catalogue, digest))


def _best(runtime: Runtime, function: Function, host: str) -> HostRecord:
    """The host that is named, or the first that would be asked to start a function."""
    if host:
        return _hosts(runtime, host)[0]
    fleet, wanted = runtime.view.fleet, need(function, None)
    names = hosts_to_ask(wanted, function, fleet, use(fleet), clock.now())
    if not names:
        why = why_nowhere(wanted, fleet, use(fleet), clock.now())
        raise NoCapacity(f"no host can run '{function.id}': {why}")
    return fleet.hosts[names[0]]


async def _from_all(
    hosts: Iterable[HostRecord], ask: Callable[[HostRecord], Awaitable[T]]
) -> tuple[dict[str, T], dict[str, str]]:
    """Ask hosts side by side; return their answers, and why the others gave none."""
    asked = list(hosts)
    answers = await asyncio.gather(*(ask(h) for h in asked), return_exceptions=True)
    found: dict[str, T] = {}
    away: dict[str, str] = {}
    for host, answer in zip(asked, answers, strict=True):
        if isinstance(answer, AgentUnavailable | AgentRefused):
            away[host.name] = str(answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found[host.name] = answer
    return found, away


async def _one(host: HostRecord, asking: Awaitable[T]) -> T:
    try:
        return await asking
    except AgentUnavailable as error:
        raise NoCapacity(str(error), retry_after=5) from None
    except AgentRefused as error:
        raise _refusal(host, error) from None


def _refusal(host: HostRecord, error: AgentRefused) -> RequestError:
    said = f"{host.name}: {error}"
    return NoCapacity(said, retry_after=5) if error.status == 503 else BadRequest(said)
