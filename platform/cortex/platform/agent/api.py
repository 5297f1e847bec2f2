"""The agent's HTTP API, on port 13131. Everything but `/health` needs the fleet token as a bearer token."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from litestar import Litestar, Response, get, post, put
from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException, NotFoundException
from litestar.handlers import BaseRouteHandler
from msgspec import to_builtins

from cortex.platform.agent import metrics as agent_metrics
from cortex.platform.agent import seed_api
from cortex.platform.agent.loop import Agent
from cortex.platform.agent.relay import Relay
from cortex.platform.agent_messages import Cool, Ensure, Going, Heed, Plan, Planned, Refused
from cortex.platform.keys import FleetToken
from cortex.platform.record import Held, HostRecord, Instance
from cortex.platform.registry import Registry
from cortex.platform.settings import Settings
from cortex.platform.weights import api as weights_api
from cortex.platform.workers import logs


def create_app(settings: Settings) -> Litestar:
    """Build the agent and its API; the agent lives as long as the application."""
    token = FleetToken(Path(settings.token_file).expanduser())
    registry = Registry.of(settings)
    agent = Agent(settings, token, registry)
    relay = Relay(agent, token)

    def fleet_only(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        scheme, _space, given = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.accepts(given.strip()):
            raise NotAuthorizedException("the fleet token is needed as a bearer token")

    @post("/functions/ensure", guards=[fleet_only], status_code=200)
    async def ensure(data: Ensure) -> Going | Refused:
        return await agent.ensure(data.function, force=data.force, beside=data.beside, evict=data.evict)

    @post("/functions/plan", guards=[fleet_only], status_code=200)
    async def plan(data: Plan) -> Planned | Refused:
        return await agent.plan(data.function)

    @post("/drain", guards=[fleet_only], status_code=200)
    async def drain() -> dict[str, list[str]]:
        return {"instances": await agent.drain()}

    @post("/functions/cool", guards=[fleet_only], status_code=200)
    async def cool(data: Cool) -> dict[str, list[str]]:
        return {"instances": await agent.cool(data.function, at_once=data.at_once)}

    @put("/catalogue", guards=[fleet_only])
    async def heed(data: Heed) -> dict[str, str]:
        await agent.heed(data.catalogue, data.digest)
        return {"digest": data.digest}

    @get("/record", guards=[fleet_only])
    async def record() -> HostRecord:
        return agent.record()

    @get("/instances", guards=[fleet_only])
    async def instances() -> tuple[Instance, ...]:
        return agent.record().instances

    @get("/instances/{instance_id:str}", guards=[fleet_only])
    async def instance(instance_id: str) -> Instance:
        return _known(agent, instance_id)

    @get("/devices", guards=[fleet_only])
    async def devices() -> list[dict[str, Any]]:
        return _devices(agent.record(), agent.reading().held)

    @get("/metrics", guards=[fleet_only])
    async def metrics() -> Response[bytes]:
        return Response(agent_metrics.text(agent), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def close(_: Litestar) -> None:
        await registry.close()

    return Litestar(
        [
            ensure, plan, cool, drain, heed, record, instances, instance, devices, metrics,
            *logs.routes(agent, fleet_only),
            *weights_api.routes(agent, fleet_only),
            seed_api.routes(agent, relay, settings, fleet_only),
        ],
        lifespan=[lambda _: agent, lambda _: relay],
        on_shutdown=[close],
        openapi_config=None,
        logging_config=None,
    )  # fmt: skip


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
