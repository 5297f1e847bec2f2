"""Queue requests at instances with a fixed number of slots, and order those that wait for a start.

A server with a fixed number of slots queues extra requests in an order of its own, or aborts the running one. So the
router queues them, and `slot_queue.py` picks the next one. After a start, its waiters proceed by priority.
Queues are per router worker: requests of several workers queue at the server.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from cortex.platform.api_keys import Priority
from cortex.router.errors import QueueFull
from cortex.router.request.slot_queue import ORDER, Place, SlotQueue


class Ticket:
    """A request's admission to an instance."""

    def __init__(self, future: "asyncio.Future[None] | None") -> None:
        self._future = future

    @property
    def waits(self) -> bool:
        """Whether other requests are ahead."""
        return self._future is not None and not self._future.done()

    async def wait_for_slot(self) -> None:
        """Wait for a slot; return at once without a limit."""
        if self._future is not None:
            await self._future


class Admission:
    """The slot queues of all instances that need one."""

    def __init__(self) -> None:
        self._queues: dict[str, SlotQueue] = {}
        self._futures: dict[Place, asyncio.Future[None]] = {}

    @contextmanager
    def at(
        self, instance: str, slots: int | None, priority: Priority = Priority.NORMAL, *, most: int = 0, name: str = ""
    ) -> Iterator[Ticket]:
        """Queue at an instance with `slots` (None: unlimited). Raises QueueFull when `most` requests wait already."""
        if slots is None:
            yield Ticket(None)
            return
        queue = self._queues.setdefault(instance, SlotQueue(slots))
        place = queue.join(priority)
        waiting = len(queue.waiting) - 1
        if not place.turn and waiting >= most:
            queue.leave(place)
            raise QueueFull(f"{waiting} requests wait for '{name}' already", retry_after=5)
        future = self._futures[place] = asyncio.get_running_loop().create_future()
        if place.turn:
            future.set_result(None)
        try:
            yield Ticket(future)
        finally:
            del self._futures[place]
            next_place = queue.leave(place)
            if next_place is not None and not self._futures[next_place].done():
                self._futures[next_place].set_result(None)  # done: it was cancelled and leaves by itself
            if not queue:
                self._queues.pop(instance, None)


class StartGate:
    """The requests that wait for a function's start; afterwards they proceed by priority."""

    def __init__(self) -> None:
        self._waiting: dict[str, Counter[Priority]] = {}
        self._changed: dict[str, asyncio.Event] = {}

    @contextmanager
    def waiting(self, function: str, priority: Priority) -> Iterator["StartWaiter"]:
        """Register a waiter until the block ends or `through()` is called."""
        waiter = StartWaiter(self, function, priority)
        self._add(function, priority)
        try:
            yield waiter
        finally:
            waiter.through()

    async def clear(self, function: str, priority: Priority) -> None:
        """Return when no request of a higher priority waits."""
        higher = ORDER[: ORDER.index(priority)]
        while any(self._waiting.get(function, Counter())[p] for p in higher):
            await self._changed.setdefault(function, asyncio.Event()).wait()

    def _add(self, function: str, priority: Priority) -> None:
        self._waiting.setdefault(function, Counter())[priority] += 1

    def _remove(self, function: str, priority: Priority) -> None:
        counts = self._waiting[function]
        counts[priority] -= 1
        if not counts.total():
            del self._waiting[function]
        if changed := self._changed.pop(function, None):
            changed.set()


class StartWaiter:
    """A request that waits for a start."""

    def __init__(self, starts: StartGate, function: str, priority: Priority) -> None:
        self._starts, self._function, self._priority, self._registered = starts, function, priority, True

    def move_to(self, function: str) -> None:
        """Wait for another function, which the requested name now resolves to."""
        if self._registered and function != self._function:
            self._starts._remove(self._function, self._priority)
            self._function = function
            self._starts._add(function, self._priority)

    async def clear(self) -> None:
        """Wait for requests of a higher priority."""
        await self._starts.clear(self._function, self._priority)

    def through(self) -> None:
        """Unregister, so that requests of a lower priority proceed."""
        if self._registered:
            self._registered = False
            self._starts._remove(self._function, self._priority)
