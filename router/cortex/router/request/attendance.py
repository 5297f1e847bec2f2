"""Serve a request while its client is connected: a disconnect cancels the work."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from litestar.types import Receive, Send

from cortex.router.dialects.core.errors import Kind
from cortex.router.request.request_record import RequestRecord

Headers = Iterable[tuple[bytes, bytes]]
Work = asyncio.Task[None]


async def attend(
    request_record: RequestRecord, work: Coroutine[Any, Any, None], receive: Receive, cancel: Callable[[Work], None]
) -> None:
    """Run a request's work until it ends or the client disconnects. `cancel` ends the work from outside."""
    task, disconnect = asyncio.create_task(work), asyncio.create_task(_disconnected(receive))
    try:
        request_record.cancel = lambda: cancel(task)
        await asyncio.wait((task, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            request_record.left, request_record.fault = True, Kind.CLIENT_GONE
            request_record.status = request_record.status or 499
    finally:
        task.cancel()
        disconnect.cancel()
        await asyncio.gather(task, disconnect, return_exceptions=True)
    if not task.cancelled():
        task.result()


async def send_json(send: Send, status: int, body: bytes, request_id: str, headers: Headers = ()) -> None:
    """Send a whole JSON answer with both request-id headers, one for each SDK."""
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


async def _disconnected(receive: Receive) -> None:
    """Return when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
