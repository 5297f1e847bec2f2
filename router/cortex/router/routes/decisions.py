"""`/admin/decisions` and `/admin/events`: the decision log, and a live stream of it.

`/admin/hosts/{host}/events` has the events that a host's scheduler decided on.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

import httpx
import msgspec
from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream

from cortex.functions.names import nearest
from cortex.platform import clock
from cortex.platform.registry import MOST_DECISIONS, RecordUnavailable, Registry
from cortex.router.activation.agents import Agents, AgentUnavailable
from cortex.router.api_types import DecisionsAnswer
from cortex.router.errors import BadRequest, HostNotFound, NoCapacity, RecordIsAway, TooManyListeners
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue
from cortex.router.shutdown import stopping

LISTENERS = 64
"""Maximum number of event streams of one worker."""
QUIET_S = 10.0
"""Interval of keep-alive comments, which detect closed connections and prevent proxy timeouts."""


def routes(registry: Registry, view: FleetView, catalogue: LiveCatalogue, agents: Agents) -> list[HTTPRouteHandler]:
    """Return the routes about decisions."""
    listening: set[object] = set()

    @get("/admin/decisions", opt={"needs": "status"})
    async def decisions(
        function: FromQuery[str] = "",
        request_id: Annotated[str, QueryParameter(name="request")] = "",
        host: FromQuery[str] = "",
        instance: FromQuery[str] = "",
        what: FromQuery[str] = "",
        limit: Annotated[int, QueryParameter(ge=1, le=MOST_DECISIONS)] = 100,
    ) -> DecisionsAnswer:
        """List decisions, newest first."""
        target = catalogue.get(function)
        names = (target.function.id, target.base.id) if target else (function,)
        filters = {"request": request_id, "host": host, "instance": instance, "what": what}
        of_function = {"function": names} if function else {}
        try:
            entries = await registry.decisions({**of_function, **{k: (v,) for k, v in filters.items() if v}}, limit)
        except RecordUnavailable as error:
            raise RecordIsAway(str(error), retry_after=5) from None
        return DecisionsAnswer(decisions=tuple(entries))

    @get("/admin/events", opt={"needs": "status"})
    async def events(function: FromQuery[str] = "") -> Stream:
        """Stream server-sent events: `decision` (an entry) and `changed` (the fleet view has changed)."""
        if len(listening) >= LISTENERS:
            raise TooManyListeners(f"this worker already serves {LISTENERS} event streams", retry_after=5)
        token = object()

        async def stream() -> AsyncIterator[bytes]:
            listening.add(token)
            try:
                async for event in _events(registry, view, function):
                    yield event
            finally:
                listening.discard(token)

        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return Stream(stream(), media_type="text/event-stream; charset=utf-8", headers=headers)

    @get("/admin/hosts/{host:str}/events", opt={"needs": "admin"})
    async def host_events(host: FromPath[str]) -> Stream:
        """Return the last events of a host's scheduler as JSON lines, with the state they began from."""
        fleet = view.fleet
        record = fleet.record(host)
        if record is None:
            raise HostNotFound(host, nearest(host, fleet.hosts))
        try:
            answer = await agents.logs(record, "/events", {})
        except AgentUnavailable as error:
            raise NoCapacity(str(error), retry_after=5) from None
        if answer is None:
            raise BadRequest(f"the agent of '{host}' is of an earlier release, which logs no events: upgrade it")
        return Stream(_chunks(answer), media_type="application/jsonl")

    return [decisions, events, host_events]


async def _chunks(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Yield an agent's answer. If the connection breaks, so does the client's: half an export is no export."""
    try:
        async for chunk in answer.aiter_bytes():
            yield chunk
    finally:
        await answer.aclose()


async def _events(registry: Registry, view: FleetView, function: str) -> AsyncIterator[bytes]:
    """Yield events until the router stops. Decisions come from the record, and pause while it is unavailable."""
    last, sent_at, fleet = "$", time.monotonic(), None
    yield b": here\n\n"
    while not stopping():
        try:
            entries, last = await registry.decisions_after(last, 1.0)
        except RecordUnavailable:
            entries = []
            await asyncio.sleep(1.0)
        messages = [_event("decision", r) for r in entries if not function or r.function == function]
        if view.fleet is not fleet:
            fleet = view.fleet
            messages.append(_event("changed", {"at": clock.wall(fleet.at)}))
        if not messages and time.monotonic() - sent_at > QUIET_S:
            messages.append(b": still here\n\n")
        if messages:
            sent_at = time.monotonic()
            yield b"".join(messages)


def _event(name: str, data: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))
