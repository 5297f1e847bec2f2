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
    """Run a request's work in this task until it ends or the client disconnects. `cancel` ends it from outside."""
    task = asyncio.current_task()
    assert task is not None
    before, cancels, over, disconnected = task.cancelling(), 0, False, False

    def stop() -> None:
        nonlocal cancels
        cancels += 1
        cancel(task)

    def leave(watch: asyncio.Task[None]) -> None:
        nonlocal cancels, disconnected
        if watch.cancelled() or over:
            return
        watch.exception()  # a connection that cannot be read is gone as well
        cancels, disconnected = cancels + 1, True
        request_record.left, request_record.fault = True, Kind.CLIENT_GONE
        request_record.status = request_record.status or 499
        task.cancel()

    watch = asyncio.create_task(_disconnected(receive))
    watch.add_done_callback(leave)
    request_record.cancel = stop
    try:
        await work
    except asyncio.CancelledError:
        if not disconnected or task.cancelling() - cancels > before:
            raise  # this task is cancelled by its server
    finally:
        over = True
        watch.cancel()
        for _ in range(cancels):
            task.uncancel()


async def _disconnected(receive: Receive) -> None:
    """Return when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
