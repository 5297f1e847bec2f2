"""The agent's HTTP API, on port 13131. Everything needs the host's token, or the fleet token, as a bearer token, but
what says that it needs nothing: `/health`, which tells a caller without it less.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from litestar import Litestar, Request, Response, get, post, put
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException, NotAuthorizedException, NotFoundException
from litestar.exceptions.responses import create_exception_response
from litestar.handlers import BaseRouteHandler
from msgspec import to_builtins

from cortex.platform.agent import metrics as agent_metrics
from cortex.platform.agent.legacy import api as seed_api
from cortex.platform.agent.legacy.proxy import Proxy
from cortex.platform.agent.loop import Agent
from cortex.platform.agent_messages import Accepted, CatalogueUpdate, Cool, Ensure, PlacementPlan, PlanRequest, Rejected
from cortex.platform.api_keys import Right
from cortex.platform.blocking_calls import NoAnswer
from cortex.platform.keys import FleetToken
from cortex.platform.log import whence
from cortex.platform.name_lookups import NameLookups
from cortex.platform.record import Held, HostRecord, Instance
from cortex.platform.registry import Registry
from cortex.platform.settings import Settings
from cortex.platform.weights import api as weights_api
from cortex.platform.workers import logs

log = structlog.get_logger()


def create_app(settings: Settings) -> Litestar:
    """Build the agent and its API; the agent lives as long as the application."""
    token = FleetToken(Path(settings.token_file).expanduser())
    registry = Registry.of(settings, token, keeps_indexes=False)
    agent = Agent(settings, token, registry)
    relay = Proxy(agent, token)

    def has_token(connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
        scheme, _space, given = connection.headers.get("authorization", "").partition(" ")
        own = agent.scheduler.record()
        return scheme.lower() == "bearer" and token.opens(given.strip(), own.name, own.address)

    async def fleet_only(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        if handler.opt.get("needs") == Right.NOTHING or connection.scope.get("method") == "OPTIONS":
            return
        if not has_token(connection):
            raise NotAuthorizedException("the token of this host, or of the fleet, is needed as a bearer token")

    @post("/functions/ensure", status_code=200)
    async def ensure(data: Ensure) -> Accepted | Rejected:
        return await agent.ensure(
            data.function,
            force=data.force,
            beside=data.beside,
            evict=data.evict,
            minimum=data.minimum,
            waited_s=data.waited_s,
            turn=data.turn,
        )

    @post("/functions/plan", status_code=200)
    async def plan(data: PlanRequest) -> PlacementPlan | Rejected:
        return await agent.plan(data.function)

    @post("/drain", status_code=200)
    async def drain() -> dict[str, list[str]]:
        return {"instances": await agent.drain()}

    @post("/functions/cool", status_code=200)
    async def cool(data: Cool) -> dict[str, list[str]]:
        return {"instances": await agent.cool(data.function, at_once=data.at_once)}

    @post("/functions/forget", status_code=200)
    async def forget(function: str) -> dict[str, str]:
        await agent.forget(function)
        return {"function": function}

    @put("/catalogue")
    async def heed(data: CatalogueUpdate) -> dict[str, str]:
        await agent.heed(data.catalogue, data.digest)
        return {"digest": data.digest}

    @get("/record")
    async def record() -> HostRecord:
        return agent.record()

    @get("/instances")
    async def instances() -> tuple[Instance, ...]:
        return agent.record().instances

    @get("/instances/{instance_id:str}")
    async def instance(instance_id: str) -> Instance:
        return _known(agent, instance_id)

    @get("/devices")
    async def devices() -> list[dict[str, Any]]:
        return _devices(agent.record(), agent.reading().held)

    @get("/metrics")
    async def metrics() -> Response[bytes]:
        return Response(agent_metrics.text(agent), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def close(_: Litestar) -> None:
        await registry.close()

    return Litestar(
        [
            ensure, plan, cool, forget, drain, heed, record, instances, instance, devices, metrics,
            *logs.routes(agent),
            *weights_api.routes(agent),
            seed_api.routes(agent, relay, settings, has_token),
        ],
        guards=[fleet_only],
        exception_handlers={NoAnswer: _later, Exception: _answered},
        lifespan=[_own_look_ups, lambda _: agent, lambda _: relay],
        on_shutdown=[close],
        openapi_config=None,
        logging_config=None,
    )  # fmt: skip


@asynccontextmanager
async def _own_look_ups(_: Litestar) -> AsyncIterator[None]:
    """Have this loop's look-ups of names hold up nothing else."""
    NameLookups().install(asyncio.get_running_loop())
    yield


def _later(request: Request[Any, Any, Any], error: NoAnswer) -> Response[Any]:
    """Answer that a path does not answer."""
    return Response({"status_code": 503, "detail": str(error)}, status_code=503)


def _answered(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Answer the framework's own errors as it does; of any other, nothing but that there was one."""
    if isinstance(error, HTTPException):
        return create_exception_response(request, error)
    log.error("request_broke", at=whence(error))
    return Response({"status_code": 500, "detail": "the agent made a mistake; its log has where"}, status_code=500)


def _devices(host: HostRecord, held: Iterable[Held]) -> list[dict[str, Any]]:
    """Return every device, who may take how much of it, and which processes are on it."""
    found = []
    for device in host.devices:
        there = {i.id: i.memory_mb for i in host.instances if device.id in i.devices}
        taken = {
            "budget_mb": device.budget_mb,
            "admitted_mb": sum(there.values()),
            "instances": there,
            "processes": [to_builtins(h) for h in held if h.device == device.id],
        }
        found.append({**to_builtins(device), **taken})
    return found


def _known(agent: Agent, instance_id: str) -> Instance:
    found = agent.instance(instance_id)
    if found is None:
        raise NotFoundException(f"no instance '{instance_id[:64]}' on this host")
    return found
