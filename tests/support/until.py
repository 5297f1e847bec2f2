"""Waits of async tests for what tells of no change: another process, a file, a server's state."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def until(look: Callable[[], T], within_s: float = 20.0) -> T:
    """Look until what is seen is true, and return it. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not (view := look()):  # noqa: ASYNC110 (there is no event, which is why this is used)
            await asyncio.sleep(0.01)
    return view
