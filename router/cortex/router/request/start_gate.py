"""The requests that wait for a function's start; afterwards they proceed by priority."""

import asyncio
from collections import Counter

from cortex.platform.api_keys import Priority
from cortex.router.request.slot_queue import ORDER


class StartGate:
    """Counts the waiting requests by function and priority."""

    def __init__(self) -> None:
        self._waiting: dict[str, Counter[Priority]] = {}
        self._changed: dict[str, asyncio.Event] = {}

    def join(self, function: str, priority: Priority) -> "StartWaiter":
        """Add a waiter, which must `leave()`."""
        return StartWaiter(self, function, priority)

    def add(self, function: str, priority: Priority) -> None:
        """Count one more waiter."""
        self._waiting.setdefault(function, Counter())[priority] += 1

    def remove(self, function: str, priority: Priority) -> None:
        """Count one waiter less, and let those of lower priority look again."""
        counts = self._waiting[function]
        counts[priority] -= 1
        if not counts.total():
            del self._waiting[function]
        if changed := self._changed.pop(function, None):
            changed.set()

    async def wait_for_higher(self, function: str, priority: Priority) -> None:
        """Return when no request of a higher priority waits."""
        higher = ORDER[: ORDER.index(priority)]
        while any(self._waiting.get(function, Counter())[p] for p in higher):
            await self._changed.setdefault(function, asyncio.Event()).wait()


class StartWaiter:
    """A request that waits for a start."""

    def __init__(self, gate: StartGate, function: str, priority: Priority) -> None:
        self._gate, self._function, self._priority, self._waits = gate, function, priority, True
        gate.add(function, priority)

    def move_to(self, function: str) -> None:
        """Wait for another function, which the requested name now resolves to."""
        if self._waits and function != self._function:
            self._gate.remove(self._function, self._priority)
            self._function = function
            self._gate.add(function, self._priority)

    async def wait_for_higher(self) -> None:
        """Wait for requests of a higher priority."""
        await self._gate.wait_for_higher(self._function, self._priority)

    def leave(self) -> None:
        """Stop waiting, so that requests of a lower priority proceed. Calling it again does nothing."""
        if self._waits:
            self._waits = False
            self._gate.remove(self._function, self._priority)
