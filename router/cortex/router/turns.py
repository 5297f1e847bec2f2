"""Taking turns at an instance whose server works on one request at a time.

Without them such a server would break off the request it works on, or keep others waiting in silence. The turns of a
router are its own: several routers before one such instance queue at the server.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from cortex.router.refusals import QueueFull


class Turn:
    """A place in the row."""

    def __init__(self, row: "_Row | None") -> None:
        self._row, self._taken = row, False

    async def come(self, most: int, name: str) -> None:
        """Wait for one's turn; at once where many requests may run. Raises QueueFull when `most` wait already."""
        if self._row is None:
            return
        if self._row.waiting >= most:
            raise QueueFull(f"{most} requests wait for '{name}' already", retry_after=5)
        self._row.waiting += 1
        try:
            await self._row.free.acquire()
            self._taken = True
        finally:
            self._row.waiting -= 1

    def _leave(self) -> None:
        if self._row is not None and self._taken:
            self._row.free.release()


class Turns:
    """The rows before all instances that need one."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}

    @contextmanager
    def at(self, instance: str, parallel: int | None) -> Iterator[Turn]:
        """Stand before an instance; whoever came first has the first turn."""
        if parallel is None:
            yield Turn(None)
            return
        row = self._rows.setdefault(instance, _Row(parallel))
        row.users += 1
        turn = Turn(row)
        try:
            yield turn
        finally:
            turn._leave()
            row.users -= 1
            if not row.users:
                self._rows.pop(instance, None)


class _Row:
    def __init__(self, parallel: int) -> None:
        self.free = asyncio.Semaphore(parallel)
        self.users = self.waiting = 0
