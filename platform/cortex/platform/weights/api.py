"""What a host's agent says of its weights and fetches, and is told to do with them."""

import time
from typing import Any

from litestar import get, post
from litestar.exceptions import ClientException, NotFoundException, ServiceUnavailableException
from litestar.handlers import HTTPRouteHandler
from msgspec import to_builtins
from redis.exceptions import RedisError

from cortex.functions.estimate import Estimate
from cortex.platform.agent.fetches import describe
from cortex.platform.agent.loop import Agent
from cortex.platform.agent_messages import Fetching, Prefetch, Remove, Removed, Stored
from cortex.platform.weights import disk
from cortex.platform.weights.store import HubUnavailable, WeightsUnavailable


def routes(agent: Agent) -> list[HTTPRouteHandler]:
    """Return the routes below `/weights` and `/jobs`."""
    fetches = agent.supervisor.fetches

    @get("/weights")
    async def weights() -> list[Stored]:
        return await agent.stored()

    @post("/weights/remove", status_code=200)
    async def remove(data: Remove) -> Removed:
        try:
            return await agent.remove_weights(data)
        except RedisError as error:
            raise ServiceUnavailableException(f"what is being fetched cannot be known: {error}") from None

    @post("/weights/fetch", status_code=200)
    async def prefetch(data: Prefetch) -> dict[str, str]:
        """Have a function's weights fetched."""
        try:
            return {"job": await fetches.prefetch(data.function)}
        except WeightsUnavailable as error:
            raise ClientException(str(error)) from None
        except RedisError as error:
            raise ServiceUnavailableException(f"the queue cannot be reached: {error}") from None

    @post("/weights/estimate", status_code=200)
    async def estimate(data: Prefetch) -> Estimate:
        """Say how much memory an instance of a function will take."""
        try:
            return await disk.estimate(agent.supervisor.looks, data.function, agent.settings)
        except HubUnavailable as error:
            raise ServiceUnavailableException(str(error)) from None
        except WeightsUnavailable as error:
            raise ClientException(str(error)) from None

    @get("/jobs")
    async def jobs() -> list[dict[str, Any]]:
        try:
            found = await fetches.all(agent.scheduler.catalogue().values())
        except RedisError as error:
            raise ServiceUnavailableException(f"the queue cannot be reached: {error}") from None
        return [described(f) for f in found]

    @post("/jobs/{job:str}/cancel", status_code=200)
    async def cancel(job: str) -> dict[str, str]:
        try:
            stopped = await fetches.cancel(job)
        except RedisError as error:
            raise ServiceUnavailableException(f"the queue cannot be reached: {error}") from None
        if not stopped:
            raise NotFoundException(f"no job '{job[:100]}' is going on here")
        return {"job": job}

    return [weights, remove, prefetch, estimate, jobs, cancel]


def described(fetching: Fetching) -> dict[str, Any]:
    """Return a fetch with what follows from it."""
    line = describe(fetching, time.time()) if fetching.alive else fetching.why
    more = {"remaining_s": fetching.remaining_s, "fraction": fetching.fraction, "said": line, "alive": fetching.alive}
    return {**to_builtins(fetching), **more}
