"""The agent's HTTP API, on port 13131. Every route needs the host's token or the fleet token as a bearer token, except
`/health`, which gives less detail without one; what the agent offers to its neighbours is open to their token, too.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from litestar import Litestar, Request, Response, get, post, put
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException, NotAuthorizedException, NotFoundException
from litestar.exceptions.responses import create_exception_response
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath, FromQuery
from litestar.response import Stream
from msgspec import to_builtins

from cortex.platform.agent import metrics as agent_metrics
from cortex.platform.agent.legacy import api as legacy_api
from cortex.platform.agent.legacy.proxy import Proxy
from cortex.platform.agent.loop import Agent
from cortex.platform.agent.pace import Pace
from cortex.platform.agent.routes import contexts, logs, offers, weights
from cortex.platform.agent.routes.body import read
from cortex.platform.agent_messages import (
    Accepted,
    AdapterState,
    CatalogueUpdate,
    Cool,
    Ensure,
    EnsureAdapter,
    PlacementPlan,
    PlanRequest,
    Rejected,
)
from cortex.platform.api_keys import Right
from cortex.platform.blocking_calls import NoAnswer
from cortex.platform.keys import HostToken
from cortex.platform.log import whence
from cortex.platform.name_lookups import NameLookups
from cortex.platform.record import Held, HostRecord, Instance
from cortex.platform.registry import Registry
from cortex.platform.settings import Settings

log = structlog.get_logger()
Http = Request[Any, Any, Any]


def create_app(settings: Settings) -> Litestar:
    """Build the agent and its API; the agent lives as long as the application."""
    token = HostToken.of(settings)
    registry = Registry.of(settings, token, keeps_indexes=False)
    agent = Agent(settings, token, registry)
    proxy = Proxy(agent, token)
    pace = Pace(settings.agent.offer_mb_s * offers.MIB)

    def bearer_of(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
        scheme, _space, bearer = connection.headers.get("authorization", "").partition(" ")
        return bearer.strip() if scheme.lower() == "bearer" else ""

    def has_token(connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
        return token.opens(bearer_of(connection), agent.scheduler.record().address)

    async def fleet_only(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        if handler.opt.get("needs") == Right.NOTHING or connection.scope.get("method") == "OPTIONS":
            return
        address = agent.scheduler.record().address
        if handler.opt.get("needs") == offers.NEIGHBOUR and token.opens_offers(bearer_of(connection), address):
            return
        if handler.opt.get("needs") == contexts.CONTEXT and token.opens_context(
            bearer_of(connection), connection.path_params["context_id"]
        ):
            return
        if not has_token(connection):
            raise NotAuthorizedException("the token of this host, or of the fleet, is needed as a bearer token")

    @post("/functions/ensure", status_code=200)
    async def ensure(request: Http) -> Accepted | Rejected:
        return await agent.ensure(await read(request, Ensure))

    @post("/functions/adapter", status_code=200)
    async def ensure_adapter(request: Http) -> AdapterState:
        return await agent.ensure_adapter(await read(request, EnsureAdapter))

    @post("/functions/plan", status_code=200)
    async def plan(request: Http) -> PlacementPlan | Rejected:
        return await agent.plan((await read(request, PlanRequest)).function)

    @post("/drain", status_code=200)
    async def drain() -> dict[str, list[str]]:
        return {"instances": await agent.drain()}

    @post("/functions/cool", status_code=200)
    async def cool(request: Http) -> dict[str, list[str]]:
        data = await read(request, Cool)
        return {"instances": await agent.cool(data.function, at_once=data.at_once, park=data.park)}

    @post("/functions/forget", status_code=200)
    async def forget(function: FromQuery[str]) -> dict[str, str]:
        await agent.forget(function)
        return {"function": function}

    @put("/catalogue")
    async def apply_catalogue(request: Http) -> dict[str, str]:
        data = await read(request, CatalogueUpdate)
        await agent.apply_catalogue(data.catalogue, data.digest)
        return {"digest": data.digest}

    @get("/record")
    async def record() -> HostRecord:
        return agent.record()

    @get("/instances")
    async def instances() -> tuple[Instance, ...]:
        return agent.record().instances

    @get("/instances/{instance_id:str}")
    async def instance(instance_id: FromPath[str]) -> Instance:
        return _instance(agent, instance_id)

    @get("/devices")
    async def devices() -> list[dict[str, Any]]:
        return _devices(agent.record(), agent.reading().held)

    @get("/events")
    async def events() -> Stream:
        """Return the last events of the scheduler as JSON lines: see `scheduling/event_log.py`."""

        async def chunks() -> AsyncIterator[bytes]:
            for chunk in agent.event_log.export():
                yield chunk

        return Stream(chunks(), media_type="application/jsonl")

    @get("/metrics")
    async def metrics() -> Response[bytes]:
        return Response(agent_metrics.text(agent), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def close(_: Litestar) -> None:
        await registry.close()

    return Litestar(
        [
            ensure, ensure_adapter, plan, cool, forget, drain, apply_catalogue, record, instances, instance, devices,
            events, metrics,
            *logs.routes(agent),
            *weights.routes(agent),
            *offers.routes(agent, pace),
            *contexts.routes(agent, pace),
            legacy_api.routes(agent, proxy, settings, has_token),
        ],
        guards=[fleet_only],
        exception_handlers={NoAnswer: _unavailable, Exception: error_response},
        lifespan=[_own_name_lookups, lambda _: agent, lambda _: proxy],
        on_shutdown=[close],
        openapi_config=None,
        logging_config=None,
    )  # fmt: skip


@asynccontextmanager
async def _own_name_lookups(_: Litestar) -> AsyncIterator[None]:
    """Look up names in separate threads, so that a slow one does not block the loop."""
    NameLookups().install(asyncio.get_running_loop())
    yield


def _unavailable(request: Request[Any, Any, Any], error: NoAnswer) -> Response[Any]:
    """Return 503: a path on the host does not answer."""
    return Response({"status_code": 503, "detail": str(error)}, status_code=503)


def error_response(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Return the framework's response for its own errors, and a plain 500 for any other."""
    if isinstance(error, HTTPException):
        return create_exception_response(request, error)
    log.error("request_failed", at=whence(error))
    return Response(
        {"status_code": 500, "detail": "internal error; see `request_failed` in the agent's log"}, status_code=500
    )


def _devices(host: HostRecord, held: Iterable[Held]) -> list[dict[str, Any]]:
    """Return every device, with its budget, the memory of its instances, and its processes."""
    entries = []
    for device in host.devices:
        instances = {i.id: i.held_mb for i in host.instances if device.id in i.devices}
        usage = {
            "budget_mb": device.budget_mb,
            "admitted_mb": sum(instances.values()),
            "instances": instances,
            "processes": [to_builtins(h) for h in held if h.device == device.id],
        }
        entries.append({**to_builtins(device), **usage})
    return entries


def _instance(agent: Agent, instance_id: str) -> Instance:
    instance = agent.instance(instance_id)
    if instance is None:
        raise NotFoundException(f"no instance '{instance_id[:64]}' on this host")
    return instance
