"""`/admin/decisions` and `/admin/events`: why what happened happened, and what happens now."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.params import Parameter
from litestar.response import Stream
from msgspec import to_builtins

from cortex.platform import clock
from cortex.platform.registry import DECISIONS_KEPT, RecordUnavailable
from cortex.router.errors import RecordIsAway, TooManyListeners
from cortex.router.runtime import Runtime
from cortex.router.shutdown import stopping

LISTENERS = 64
"""How many follow the events of one worker at a time."""
QUIET_S = 10.0
"""Without an event for so long, a comment is sent: the client's line is checked, and the proxy's patience kept."""


def routes(runtime: Runtime) -> list[HTTPRouteHandler]:
    """Return the routes about decisions."""
    listening: set[object] = set()

    @get("/admin/decisions", opt={"needs": "status"})
    async def decisions(
        function: str = "",
        request_id: Annotated[str, Parameter(query="request")] = "",
        host: str = "",
        instance: str = "",
        what: str = "",
        limit: Annotated[int, Parameter(ge=1, le=DECISIONS_KEPT)] = 100,
    ) -> dict[str, Any]:
        """List receipts, newest first."""
        name = function
        if function:
            target = runtime.live_catalogue.get(function)
            name = target.function.id if target else function
        wanted = {"function": name, "request": request_id, "host": host, "instance": instance, "what": what}
        try:
            found = await runtime.registry.decisions({k: v for k, v in wanted.items() if v}, limit)
        except RecordUnavailable as error:
            raise RecordIsAway(str(error), retry_after=5) from None
        return {"decisions": to_builtins(found)}

    @get("/admin/events", opt={"needs": "status"})
    async def events(function: str = "") -> Stream:
        """Follow what happens, as server-sent events: `decision` (a receipt) and `changed` (look again)."""
        if len(listening) >= LISTENERS:
            raise TooManyListeners(f"{LISTENERS} clients follow the events of this worker already", retry_after=5)
        mark = object()

        async def said() -> AsyncIterator[bytes]:
            listening.add(mark)
            try:
                async for event in _events(runtime, function):
                    yield event
            finally:
                listening.discard(mark)

        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return Stream(said(), media_type="text/event-stream; charset=utf-8", headers=headers)

    return [decisions, events]


async def _events(runtime: Runtime, function: str) -> AsyncIterator[bytes]:
    """Yield events until the router stops. Receipts are read off the stream; while the record is away, none are."""
    last, spoke, fleet = "$", time.monotonic(), None
    yield b": here\n\n"
    while not stopping():
        try:
            found, last = await runtime.registry.decisions_after(last, 1.0)
        except RecordUnavailable:
            found = []
            await asyncio.sleep(1.0)
        said = [_event("decision", to_builtins(r)) for r in found if not function or r.function == function]
        if runtime.view.fleet is not fleet:
            fleet = runtime.view.fleet
            said.append(_event("changed", {"at": clock.wall(fleet.at)}))
        if not said and time.monotonic() - spoke > QUIET_S:
            said.append(b": still here\n\n")
        if said:
            spoke = time.monotonic()
            yield b"".join(said)


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))
