"""The agent's HTTP routes for saved conversations."""

import asyncio
from collections.abc import AsyncIterator, Generator
from typing import Any

from litestar import Request, get, post
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.response import Stream

from cortex.platform.agent.loop import Agent
from cortex.platform.agent.pace import Pace
from cortex.platform.agent.routes.body import read
from cortex.platform.agent_messages import (
    ContextAnswer,
    ContextFailure,
    LeaveSeat,
    RemoveContexts,
    RestoreContext,
    Seat,
    TakeSeat,
)
from cortex.platform.record import SavedContext

Http = Request[Any, Any, Any]
CONTEXT = "context"
"""What a route needs that a router opens to another agent for one saved conversation."""


def routes(agent: Agent, pace: Pace) -> list[HTTPRouteHandler]:
    """Return the routes below `/contexts`."""
    contexts = agent.supervisor.contexts

    @post("/contexts/seat", status_code=200)
    async def seat(request: Http) -> Seat:
        """Assign a slot to a request; the answer says to ask again while none is free."""
        return await contexts.seating.take(await read(request, TakeSeat))

    @post("/contexts/leave", status_code=200)
    async def leave(request: Http) -> dict[str, str]:
        data = await read(request, LeaveSeat)
        contexts.seating.leave(data)
        return {"instance": data.instance}

    @post("/contexts/restore", status_code=200)
    async def restore(request: Http) -> ContextAnswer:
        return await contexts.restore(await read(request, RestoreContext))

    @post("/contexts/failed", status_code=200)
    async def failed(request: Http) -> dict[str, str]:
        data = await read(request, ContextFailure)
        await contexts.switch_off(data.context, data.why)
        return {"function": data.context.function}

    @post("/contexts/remove", status_code=200)
    async def remove(request: Http) -> list[SavedContext]:
        data = await read(request, RemoveContexts)
        return await contexts.remove(data.ids, all=data.all)

    @get("/contexts/{context_id:str}", opt={"needs": CONTEXT})
    async def lend(context_id: FromPath[str]) -> Stream:
        """Hand a saved conversation over to another host; it is not here any more after its last byte."""
        content = contexts.lend(context_id) if agent.settings.agent.offer_mb_s else None
        if content is None:
            raise NotFoundException("no such saved conversation is on this host")
        return Stream(_chunks(content, pace, contexts.reread), media_type="application/octet-stream")

    return [seat, leave, restore, failed, remove, lend]


async def _chunks(content: Generator[bytes], pace: Pace, after: Any) -> AsyncIterator[bytes]:
    try:
        while chunk := await asyncio.to_thread(next, content, b""):
            await pace.wait(len(chunk))
            yield chunk
    finally:
        await asyncio.to_thread(content.close)
        await after()
