"""Time limits of many requests, by one timer: a timer of the loop costs a request more than choosing its worker."""

import asyncio
from types import TracebackType

STEP_S = 0.25
"""How often the limits are compared with the time: a request ends so much late at most."""


class Deadlines:
    """The limits of one event loop's requests."""

    def __init__(self) -> None:
        self._live: set[Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, deadline: "Deadline", loop: asyncio.AbstractEventLoop) -> None:
        self._live.add(deadline)
        if self._timer is None:
            self._timer = loop.call_later(STEP_S, self._look)

    def remove(self, deadline: "Deadline") -> None:
        self._live.discard(deadline)

    def _look(self) -> None:
        """End what is too late, and look again while there are others."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for deadline in [d for d in self._live if d.at <= now]:
            self._live.discard(deadline)
            deadline.expire()
        self._timer = loop.call_later(STEP_S, self._look) if self._live else None


class Deadline:
    """One limit: a context that raises TimeoutError after so many seconds, in the task that enters it. A cancellation
    from elsewhere is passed on as it is."""

    __slots__ = ("_cancels", "_deadlines", "_has_expired", "_seconds", "_task", "at")

    def __init__(self, deadlines: Deadlines, seconds: float) -> None:
        self._deadlines, self._seconds, self._has_expired = deadlines, seconds, False

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._task, self._cancels = task, task.cancelling()
        self.at = loop.time() + self._seconds
        self._deadlines.add(self, loop)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._deadlines.remove(self)
        if self._has_expired and self._task.uncancel() <= self._cancels and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        """Cancel the task's work within the context."""
        self._has_expired = True
        self._task.cancel()
