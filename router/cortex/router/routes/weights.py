"""The operators' API for weights and downloads: `/admin/weights`, `/admin/jobs`.

The data comes from the agents; `away` names those that do not answer.
"""

import time
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any, TypeVar

from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery
from msgspec.structs import asdict

from cortex.functions.names import nearest
from cortex.functions.spec import Function
from cortex.platform import clock
from cortex.platform.agent_messages import Remove, Stored
from cortex.platform.fleet import use
from cortex.platform.record import HostRecord
from cortex.platform.scheduling.placement import need
from cortex.router import api_types as api
from cortex.router import context_types as contexts
from cortex.router.activation.agents import AgentRefused, Agents, AgentUnavailable
from cortex.router.activation.load_balancing import hosts_to_ask, why_nowhere
from cortex.router.dialects.core.wire import read
from cortex.router.errors import BadRequest, JobNotFound, NoCapacity, RequestError
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue
from cortex.router.overview.sources import download_views
from cortex.router.routes.hosts import ask_all, hosts_of

Http = Request[Any, Any, Any]
T = TypeVar("T")


def routes(catalogue: LiveCatalogue, view: FleetView, agents: Agents) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/admin/weights", opt={"needs": "status"})
    async def weights(host: FromQuery[str] = "") -> api.WeightsAnswer:
        """List the weights of every host, or of one."""
        hosts = hosts_of(view, host)
        answers, away = await ask_all(hosts, lambda h: agents.list_weights(h))
        saved = {h.name: contexts.list_contexts(h.contexts) for h in hosts}
        return api.WeightsAnswer(weights=(*_weights(answers), *_weights(saved)), away=away)

    @post("/admin/weights/remove", opt={"needs": "admin", "body": api.RemoveRequest}, status_code=200)
    async def remove(request: Http) -> api.RemoveAnswer:
        """Remove weights that are not in use, by function or source, or all that no function declares."""
        data = read(await request.body(), api.RemoveRequest)
        if not data.names and not data.unused:
            raise BadRequest("no weights selected: set `names` or `unused`")
        if saved := [name for name in data.names if name.startswith(f"{contexts.KIND}:")]:
            raise BadRequest(f"{saved[0]}: `cortex kept rm` (`/admin/contexts/remove`) removes conversations")
        aliases = catalogue.catalogue.aliases
        names = tuple(aliases.get(n, n) for n in data.names)
        command = Remove(names, data.unused, data.dry_run)
        hosts = hosts_of(view, data.host)
        for host in hosts if data.unused else ():
            await _update_catalogue(agents, catalogue, host)
        answers, away = await ask_all(hosts, lambda h: agents.remove_weights(h, command))
        remaining = [
            api.RemainingWeights(host=h, name=n, why=w)
            for h, result in answers.items()
            for n, w in result.refusals.items()
        ]
        removed = _weights({h: result.removed for h, result in answers.items()})
        return api.RemoveAnswer(removed=removed, remaining=tuple(remaining), away=away, dry_run=data.dry_run)

    @post("/admin/weights/fetch", opt={"needs": "admin", "body": api.FetchRequest}, status_code=200)
    async def fetch(request: Http) -> api.FetchAnswer:
        """Fetch a function's weights without starting it."""
        data = read(await request.body(), api.FetchRequest)
        function = catalogue.resolve(data.function).base
        chosen = _best(view, function, data.host)
        await _update_catalogue(agents, catalogue, chosen)
        job = await _one(chosen, agents.prefetch(chosen, function))
        return api.FetchAnswer(host=chosen.name, job=job, function=function.id)

    @get("/admin/weights/estimate", opt={"needs": "status"})
    async def estimate(function: FromQuery[str], host: FromQuery[str] = "") -> api.EstimateAnswer:
        """Estimate the memory of a function's instance, also without local weights."""
        spec = catalogue.resolve(function).base
        chosen = _best(view, spec, host)
        result = await _one(chosen, agents.estimate(chosen, spec))
        return api.EstimateAnswer(**asdict(result), host=chosen.name)

    @get("/admin/jobs", opt={"needs": "status"})
    async def jobs(host: FromQuery[str] = "") -> api.JobsAnswer:
        """List the running and recent downloads."""
        answers, away = await ask_all(hosts_of(view, host), lambda h: agents.jobs(h))
        downloads = [d for h, fetches in answers.items() for d in download_views(h, fetches, time.time())]
        return api.JobsAnswer(jobs=tuple(downloads), away=away)

    @post("/admin/jobs/{job:str}/cancel", opt={"needs": "admin"}, status_code=200)
    async def cancel(job: FromPath[str]) -> api.CancelJobAnswer:
        """Cancel a download for all its waiters. The part that was fetched stays."""
        hosts = hosts_of(view, "")
        answers, _ = await ask_all(hosts, lambda h: agents.jobs(h))
        active = {f.id: h for h, fetches in answers.items() for f in fetches if f.alive}
        if job not in active:
            raise JobNotFound(job, nearest(job, active))
        host = next(h for h in hosts if h.name == active[job])
        await _one(host, agents.cancel_job(host, job))
        return api.CancelJobAnswer(host=host.name, job=job)

    return [weights, remove, fetch, estimate, jobs, cancel]


def _weights(stored: Mapping[str, Iterable[Stored]]) -> tuple[api.WeightsView, ...]:
    return tuple(api.WeightsView(**asdict(s), host=host) for host, entries in stored.items() for s in entries)


async def _update_catalogue(agents: Agents, catalogue: LiveCatalogue, host: HostRecord) -> None:
    """Send an agent the current catalogue, from which it derives unused weights and the functions of a download."""
    if host.catalogue != catalogue.digest:
        await _one(host, agents.send_catalogue(host, catalogue.hosted, catalogue.digest))


def _best(view: FleetView, function: Function, host: str) -> HostRecord:
    """Return the named host, or the first candidate for starting the function."""
    if host:
        return hosts_of(view, host)[0]
    fleet, requirement = view.fleet, need(function, None)
    names = hosts_to_ask(requirement, function, fleet, use(fleet), clock.now()).first(1)
    if not names:
        why = why_nowhere(requirement, fleet, use(fleet), clock.now())
        raise NoCapacity(f"no host can run '{function.id}': {why}")
    return fleet.hosts[names[0]]


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
