"""The agent's HTTP routes for weights and fetch jobs."""

import time
from typing import Any

from litestar import Request, get, post
from litestar.exceptions import ClientException, NotFoundException, ServiceUnavailableException
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from msgspec import to_builtins
from redis.exceptions import RedisError

from cortex.functions.estimate import Estimate
from cortex.platform.agent.loop import Agent
from cortex.platform.agent.routes.body import read
from cortex.platform.agent_messages import Fetching, Prefetch, Remove, Removed, Stored
from cortex.platform.weights import disk
from cortex.platform.weights.fetches import describe
from cortex.platform.weights.store import HubUnavailable, WeightsUnavailable

Http = Request[Any, Any, Any]


def routes(agent: Agent) -> list[HTTPRouteHandler]:
    """Return the routes below `/weights` and `/jobs`."""
    fetches = agent.supervisor.fetches

    @get("/weights")
    async def weights() -> list[Stored]:
        return await agent.stock.entries()

    @post("/weights/remove", status_code=200)
    async def remove(request: Http) -> Removed:
        data = await read(request, Remove)
        try:
            return await agent.stock.remove(data)
        except RedisError as error:
            raise ServiceUnavailableException(f"cannot list the running fetches: {error}") from None

    @post("/weights/fetch", status_code=200)
    async def prefetch(request: Http) -> dict[str, str]:
        """Queue a fetch of a function's weights."""
        data = await read(request, Prefetch)
        try:
            return {"job": await fetches.prefetch(data.function)}
        except WeightsUnavailable as error:
            raise ClientException(str(error)) from None
        except RedisError as error:
            raise ServiceUnavailableException(f"the queue cannot be reached: {error}") from None

    @post("/weights/estimate", status_code=200)
    async def estimate(request: Http) -> Estimate:
        """Estimate how much memory an instance of a function takes."""
        data = await read(request, Prefetch)
        try:
            return await disk.estimate(agent.supervisor.looks, data.function, agent.settings)
        except HubUnavailable as error:
            raise ServiceUnavailableException(str(error)) from None
        except WeightsUnavailable as error:
            raise ClientException(str(error)) from None

    @get("/jobs")
    async def jobs() -> list[dict[str, Any]]:
        try:
            jobs = await fetches.all(agent.scheduler.catalogue().values())
        except RedisError as error:
            raise ServiceUnavailableException(f"the queue cannot be reached: {error}") from None
        return [describe_job(f) for f in jobs]

    @post("/jobs/{job:str}/cancel", status_code=200)
    async def cancel(job: FromPath[str]) -> dict[str, str]:
        try:
            stopped = await fetches.cancel(job)
        except RedisError as error:
            raise ServiceUnavailableException(f"the queue cannot be reached: {error}") from None
        if not stopped:
            raise NotFoundException(f"no job '{job[:100]}' is running on this host")
        return {"job": job}

    return [weights, remove, prefetch, estimate, jobs, cancel]


def describe_job(fetching: Fetching) -> dict[str, Any]:
    """Return a fetch with its derived values."""
    text = describe(fetching, time.time()) if fetching.alive else fetching.why
    derived = {"remaining_s": fetching.remaining_s, "fraction": fetching.fraction}
    return {**to_builtins(fetching), **derived, "said": text, "alive": fetching.alive}
