"""Work beside the requests: it goes on whatever one round of it meets, and its failures are counted and shown."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from msgspec import Struct

from cortex.platform import clock
from cortex.platform.registry import RecordAway

log = structlog.get_logger()


class WorkFailure(Struct, frozen=True, kw_only=True):
    """The last round of background work that raised."""

    work: str
    error: str
    """The exception's type; the log has the rest."""
    at: float
    failures: int
    """Of all background work, since this process began."""


class Background:
    """Runs work and remembers what failed last."""

    def __init__(self, count: Callable[[str], None] = lambda _: None) -> None:
        """`count` is called with the work's name at each failure."""
        self._count = count
        self._failures = 0
        self.last: WorkFailure | None = None

    async def run(self, name: str, work: Callable[[], Awaitable[None]], pause_s: float = 1.0) -> None:
        """Run work again and again until cancelled; a round that raises costs it a pause."""
        while True:
            await self.attempt(name, work)
            await asyncio.sleep(pause_s)

    async def attempt(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run work once. A record that is away is no failure: whoever follows it says so."""
        try:
            await work()
        except RecordAway:
            return
        except Exception as error:
            self._failures += 1
            kind = type(error).__name__
            self.last = WorkFailure(work=name, error=kind, at=clock.now(), failures=self._failures)
            self._count(name)
            log.error("background_work_broke", work=name, exc_info=error)
