"""The seats of this host's instances, as routers take them: a request that has to wait is answered when its turn comes.

The rules are in `seats.py`. This adds the clock, the wait, and the requests that the agent itself sends to workers.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterator

from cortex.platform.agent_messages import LeaveSeat, Seat, TakeSeat
from cortex.platform.contexts.seats import Seats
from cortex.platform.fleet import Fleet

ANSWER_S = 1.0
"""How long a request waits for a slot before it is told to ask again: less than a router waits for an answer."""


class Seating:
    """`reports` returns what routers report; None: it cannot be read."""

    def __init__(self, reports: Callable[[], Fleet | None]) -> None:
        self.seats, self._reports = Seats(), reports
        self._left = asyncio.Event()

    async def take(self, request: TakeSeat) -> Seat:
        """Return the seat of a request, or that it has to ask again."""
        deadline = time.monotonic() + ANSWER_S
        while (seat := self.seats.take(request, time.monotonic(), self._reports())) is None:
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                    await self._left.wait()
            except TimeoutError:
                return Seat(wait=True)
        return seat

    def leave(self, request: LeaveSeat) -> None:
        """End a seat, and wake the requests that wait."""
        self.seats.leave(request)
        self._wake()

    @contextlib.contextmanager
    def unknown_slots(self, instance: str) -> Iterator[None]:
        """Count a request as one that uses slots of an instance that are unknown."""
        id = secrets.token_hex(8)
        self.seats.take(TakeSeat(id=id, router="", instance=instance, owner=""), time.monotonic(), None)
        try:
            yield
        finally:
            self.leave(LeaveSeat(id=id, instance=instance))

    def forget(self, instance: str) -> None:
        """Forget an instance that has ended."""
        self.seats.forget(instance)
        self._wake()

    def _wake(self) -> None:
        self._left.set()
        self._left = asyncio.Event()
