"""Reliable cancellation of tasks."""

import asyncio
from collections.abc import Iterable
from typing import Any


async def cancel_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended. Once is not enough: before Python 3.12 `asyncio.wait_for`, by which
    redis-py sends, swallows a cancellation that comes as it finishes."""
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=0.2)
