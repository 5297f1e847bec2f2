"""Taking turns: at an instance whose server works on so many requests at a time, and after a start.

A server with a fixed number of slots queues extra requests in an order of its own, or aborts the running one. So the
router queues them, and `slot_queue.py` picks the next one. When a start is over, its waiters go through by priority.
Each router worker has queues of its own: several before one instance queue at the server.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from cortex.platform.api_keys import Priority
from cortex.router.errors import QueueFull
from cortex.router.request.slot_queue import ORDER, Place, SlotQueue


class Ticket:
    """A request's turn at an instance."""

    def __init__(self, come: "asyncio.Future[None] | None") -> None:
        self._come = come

    @property
    def waits(self) -> bool:
        """Whether others are before it."""
        return self._come is not None and not self._come.done()

    async def come(self) -> None:
        """Wait for it; at once where many requests may run."""
        if self._come is not None:
            await self._come


class Admission:
    """The rows before all instances that need one."""

    def __init__(self) -> None:
        self._rows: dict[str, SlotQueue] = {}
        self._coming: dict[Place, asyncio.Future[None]] = {}

    @contextmanager
    def at(
        self, instance: str, slots: int | None, priority: Priority = Priority.NORMAL, *, most: int = 0, name: str = ""
    ) -> Iterator[Ticket]:
        """Stand before an instance of `slots` (None: no end of them). Raises QueueFull when `most` wait already."""
        if slots is None:
            yield Ticket(None)
            return
        row = self._rows.setdefault(instance, SlotQueue(slots))
        place = row.join(priority)
        waiting = len(row.waiting) - 1
        if not place.turn and waiting >= most:
            row.leave(place)
            raise QueueFull(f"{waiting} requests wait for '{name}' already", retry_after=5)
        come = self._coming[place] = asyncio.get_running_loop().create_future()
        if place.turn:
            come.set_result(None)
        try:
            yield Ticket(come)
        finally:
            del self._coming[place]
            following = row.leave(place)
            if following is not None and not self._coming[following].done():
                self._coming[following].set_result(None)  # done: it was cancelled and gives its turn up itself
            if not row:
                self._rows.pop(instance, None)


class StartGate:
    """Those who wait for a function's start. When it is up, they go through by priority."""

    def __init__(self) -> None:
        self._waiting: dict[str, Counter[Priority]] = {}
        self._moved: dict[str, asyncio.Event] = {}

    @contextmanager
    def waiting(self, function: str, priority: Priority) -> Iterator["StartWaiter"]:
        """Wait for a start; over when the block is left, or `through()` was called."""
        mine = StartWaiter(self, function, priority)
        self._came(function, priority)
        try:
            yield mine
        finally:
            mine.through()

    async def clear(self, function: str, priority: Priority) -> None:
        """Return when nobody of a higher priority waits any more."""
        higher = ORDER[: ORDER.index(priority)]
        while any(self._waiting.get(function, Counter())[p] for p in higher):
            await self._moved.setdefault(function, asyncio.Event()).wait()

    def _came(self, function: str, priority: Priority) -> None:
        self._waiting.setdefault(function, Counter())[priority] += 1

    def _left(self, function: str, priority: Priority) -> None:
        there = self._waiting[function]
        there[priority] -= 1
        if not there.total():
            del self._waiting[function]
        if moved := self._moved.pop(function, None):
            moved.set()


class StartWaiter:
    """One who waits for a start."""

    def __init__(self, starts: StartGate, function: str, priority: Priority) -> None:
        self._starts, self._function, self._priority, self._in = starts, function, priority, True

    def move_to(self, function: str) -> None:
        """Wait for another function from now on: the name in the request stands for that one."""
        if self._in and function != self._function:
            self._starts._left(self._function, self._priority)
            self._function = function
            self._starts._came(function, self._priority)

    async def clear(self) -> None:
        """Let those of a higher priority go first."""
        await self._starts.clear(self._function, self._priority)

    def through(self) -> None:
        """Let those behind go on."""
        if self._in:
            self._in = False
            self._starts._left(self._function, self._priority)
