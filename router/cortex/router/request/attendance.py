"""Serve a request while its client is connected: a disconnect cancels the work."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from cortex.router.dialects.core.errors import Kind
from cortex.router.http_answer import Client
from cortex.router.request_record import RequestRecord

Work = asyncio.Task[None]


async def attend(
    request_record: RequestRecord, work: Coroutine[Any, Any, None], client: Client, cancel: Callable[[Work], None]
) -> None:
    """Run a request's work in this task until it ends or the client disconnects. `cancel` ends it from outside."""
    task = asyncio.current_task()
    assert task is not None
    before, cancels, disconnected = task.cancelling(), 0, False

    def stop() -> None:
        nonlocal cancels
        cancels += 1
        cancel(task)

    def leave() -> None:
        nonlocal cancels, disconnected
        cancels, disconnected = cancels + 1, True
        request_record.left, request_record.fault = True, Kind.CLIENT_GONE
        request_record.status = request_record.status or 499
        task.cancel()

    client.on_lost, request_record.cancel = leave, stop
    if client.is_lost:
        leave()
    try:
        await work
    except asyncio.CancelledError:
        if not disconnected or task.cancelling() - cancels > before:
            raise  # this task is cancelled by its server
    finally:
        client.on_lost = None
        for _ in range(cancels):
            task.uncancel()
