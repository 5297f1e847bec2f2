"""Exceptions that background work survived: logged by type, counted, and shown to operators.

A loop that an exception ends would silently take a host or a router out of service. So every loop runs under
`Faults.run`, and every effect of a decision under `Faults.guard`: they record the exception and continue. The text of
an exception is never shown: it may quote a request.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

import structlog
from msgspec import Struct

from cortex.platform import clock
from cortex.platform.log import whence

log = structlog.get_logger()

PAUSE_S = 1.0
"""Pause after a round that raised."""
RECENT_S = 600.0
"""How long a fault is shown after its last occurrence."""


class Fault(Struct, frozen=True):
    """The exceptions of some work: type, number, and time of the last (by this process's clock)."""

    work: str
    kind: str
    count: int
    at: float


class Faults:
    """The faults of one process, by work. There is one entry for each kind of work, so it stays small."""

    def __init__(self, count: Callable[[str], None] = lambda _: None, now: Callable[[], float] = clock.now) -> None:
        """`count` is called with the work for each fault, to count it in a metric."""
        self._count, self._now = count, now
        self._by_work: dict[str, Fault] = {}

    def note(self, work: str, error: BaseException) -> None:
        """Count an exception and log its type and origin."""
        previous = self._by_work.get(work)
        kind = type(error).__name__
        self._by_work[work] = Fault(work, kind, (previous.count if previous else 0) + 1, self._now())
        log.error("background_task_failed", work=work, at=whence(error))
        self._count(work)

    def all(self) -> tuple[Fault, ...]:
        """Return every fault, by work."""
        return tuple(self._by_work[work] for work in sorted(self._by_work))

    def recent(self) -> tuple[Fault, ...]:
        """Return the faults that happened within `RECENT_S`."""
        return tuple(f for f in self.all() if self._now() - f.at < RECENT_S)

    @contextlib.contextmanager
    def guard(self, work: str) -> Iterator[None]:
        """Record and suppress an exception of the block."""
        try:
            yield
        except Exception as error:
            self.note(work, error)

    async def run(self, work: str, loop: Callable[[], Awaitable[None]], pause_s: float = PAUSE_S) -> None:
        """Run a loop; when it raises or returns, run it again after a pause."""
        while True:
            with self.guard(work):
                await loop()
            await asyncio.sleep(pause_s)
