"""Serves a request for as long as its client is there: whichever ends first, the work or the client, ends the other."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from litestar.types import Receive, Send

from cortex.router.dialects.core.errors import Kind
from cortex.router.request.request_record import RequestRecord

Headers = Iterable[tuple[bytes, bytes]]
Work = asyncio.Task[None]


async def attend(
    journey: RequestRecord, work: Coroutine[Any, Any, None], receive: Receive, cancel: Callable[[Work], None]
) -> None:
    """Do a request's work until it is done or its client leaves. `cancel` ends the work from outside."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_left(receive))
    try:
        journey.cancel = lambda: cancel(task)
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            journey.left, journey.fault = True, Kind.CLIENT_GONE
            journey.status = journey.status or 499
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
    if not task.cancelled():
        task.result()


async def send_json(send: Send, status: int, body: bytes, request_id: str, headers: Headers = ()) -> None:
    """Send a whole answer under its request id; each SDK looks for its own."""
    identity = request_id.encode()
    head = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", identity),
        (b"request-id", identity),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _left(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
