"""Blocking calls that may never come back: a file on a mount that hangs, a name that no server resolves.

Every call runs in a daemon thread of its own, never in asyncio's default executor, where a few that hang would leave
no thread for anything else, and where one that hangs keeps the process from ending. A thread in the kernel cannot be
ended from outside, so the number of threads that hang is what is bounded:

(1) one call of a kind at a time for each place; a second caller with the same question shares it;
(2) while a call at a place is overdue, every further one at that place is refused at once;
(3) when several of a group (a mount) are overdue, so is every other place of that group;
(4) so many calls altogether.

A result that comes late waits for the next caller, so that a slow place is used as soon as it has answered.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from cortex.platform import clock

T = TypeVar("T")

LATE_S = 30.0
"""How long a late result waits for the next caller."""
MOST, MOST_OF_GROUP = 64, 8
"""Calls under way altogether, and overdue calls in one group, before others are refused."""


class NoAnswer(OSError):
    """A place has not answered in time. Asking again later may help."""

    def __init__(self, place: str, hint: str = "") -> None:
        super().__init__(f"{place} does not answer{f' ({hint})' if hint else ''}")
        self.place = place


@dataclass(eq=False)
class _Call:
    place: str
    question: Hashable
    group: str
    since: float
    """When it began, by the process's clock."""
    due: float
    """When it is overdue, by the loop's clock."""
    result: "asyncio.Future[Any]"
    held_until: float = 0.0
    """For a result that came late: until when the next caller gets it."""


class BlockingCalls:
    """Calls of one sort, such as looks at files. Belongs to one event loop."""

    def __init__(
        self,
        within_s: float,
        *,
        hint: str = "",
        group: Callable[[str], str] = str,
        most: int = MOST,
        most_of_group: int = MOST_OF_GROUP,
    ) -> None:
        """`within_s` is how long a call may take; `hint` goes into the error; `group` gives what places share."""
        self._within_s, self._hint, self._group = within_s, hint, group
        self._most, self._most_of_group = most, most_of_group
        self._calls: dict[tuple[str, str], _Call] = {}

    async def look(
        self,
        place: str,
        kind: str,
        work: Callable[[], T],
        *,
        question: Hashable = None,
        within_s: float | None = None,
    ) -> T:
        """Return what `work` returns, or raise what it raises. Raises NoAnswer when that takes too long.

        Callers with the same place, kind and `question` share one call.
        """
        loop = asyncio.get_running_loop()
        limit_s = self._within_s if within_s is None else within_s
        deadline = loop.time() + limit_s
        while True:
            call = self._calls.get((place, kind))
            if call is not None and call.result.done():
                del self._calls[place, kind]
                if call.question == question and loop.time() < call.held_until:
                    return cast(T, call.result.result())
                call = None
            if refusal := self.refusal(place):
                raise refusal
            if call is None:
                call = self._start(place, kind, question, work, loop.time() + limit_s)
            mine = call.question == question
            await asyncio.wait((call.result,), timeout=max(0.0, min(deadline, call.due) - loop.time()))
            if not call.result.done():
                raise NoAnswer(place, self._hint)
            if mine:
                return cast(T, call.result.result())

    def silent(self) -> dict[str, float]:
        """Return the places that do not answer, and since when, by the process's clock."""
        places: dict[str, float] = {}
        for call in self._overdue(asyncio.get_running_loop().time()):
            places[call.place] = min(call.since, places.get(call.place, call.since))
        return places

    def refusal(self, place: str) -> NoAnswer | None:
        """Return how a call at a place would be refused now, if it would."""
        overdue = self._overdue(asyncio.get_running_loop().time())
        if any(c.place == place for c in overdue):
            return NoAnswer(place, self._hint)
        if len(overdue) >= self._most_of_group:
            group = self._group(place)
            if sum(c.group == group for c in overdue) >= self._most_of_group:
                return NoAnswer(group, self._hint)
        return None

    def under_way(self) -> int:
        """Return how many threads there are."""
        return sum(not c.result.done() for c in self._calls.values())

    def _overdue(self, now: float) -> list[_Call]:
        return [c for c in self._calls.values() if not c.result.done() and now >= c.due]

    def _start(self, place: str, kind: str, question: Hashable, work: Callable[[], Any], due: float) -> _Call:
        loop = asyncio.get_running_loop()
        held = (k for k, c in self._calls.items() if c.result.done() and loop.time() >= c.held_until)
        for key in list(held):
            del self._calls[key]
        if self.under_way() >= self._most:
            raise NoAnswer(place, f"{self._most} other calls are under way")
        call = _Call(place, question, self._group(place), clock.now(), due, loop.create_future())

        def over(answer: Any, error: Exception | None) -> None:
            if error is None:
                call.result.set_result(answer)
            else:
                call.result.set_exception(error)
                call.result.exception()  # it is looked at, whoever is still there to do so
            if loop.time() < call.due:
                del self._calls[place, kind]
            else:
                call.held_until = loop.time() + LATE_S

        def run() -> None:
            answer: Any = None
            error: Exception | None = None
            try:
                answer = work()
            except Exception as raised:
                # A future does not take StopIteration.
                error = RuntimeError(repr(raised)) if isinstance(raised, StopIteration) else raised
            with contextlib.suppress(RuntimeError):  # the loop has ended: the process is about to
                loop.call_soon_threadsafe(over, answer, error)

        self._calls[place, kind] = call
        threading.Thread(target=run, name=f"look {kind}", daemon=True).start()
        return call
