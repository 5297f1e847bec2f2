"""Serve a request while its client is connected: a disconnect cancels the work."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from litestar.types import Receive

from cortex.router.dialects.core.errors import Kind
from cortex.router.request.request_record import RequestRecord

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


async def _disconnected(receive: Receive) -> None:
    """Return when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
