"""Blocking calls that may never return, such as a file access on a hung mount or a name lookup without an answer.

Each call runs in a daemon thread that no other call uses meanwhile. In asyncio's default executor, a few hung calls
would occupy all threads, and one would keep the process from exiting. A thread that is blocked in the kernel cannot be
ended, so the number of threads is bounded:

(1) Each place has at most one call of a kind; a second caller with the same question shares it.
(2) While a call at a place is overdue, further calls there fail at once.
(3) While several calls of a group (a mount) are overdue, calls at all places of the group fail at once.
(4) The total number of calls has a limit.

A late result is stored for the next caller, so a slow place becomes usable as soon as it has answered.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from cortex.platform import clock

T = TypeVar("T")

LATE_S = 30.0
"""How long a late result is stored for the next caller."""
MOST, MOST_OF_GROUP = 64, 8
"""Limits: running calls in total, and overdue calls in one group."""
SPARE_S = 5.0
"""How long a thread waits for another call: starting one costs more than most calls."""


class NoAnswer(OSError):
    """A place has not answered in time. A later call may succeed."""

    def __init__(self, place: str, hint: str = "") -> None:
        super().__init__(f"{place} does not answer{f' ({hint})' if hint else ''}")
        self.place = place


@dataclass(eq=False)
class _Call:
    place: str
    question: Hashable
    group: str
    since: float
    """Its start, by the process's clock."""
    due: float
    """When it becomes overdue, by the loop's clock."""
    result: "asyncio.Future[Any]"
    stored_until: float = 0.0
    """When a late result expires, by the loop's clock."""


class BlockingCalls:
    """Calls of one kind of place, such as files. Belongs to one event loop."""

    def __init__(
        self,
        within_s: float,
        *,
        hint: str = "",
        group: Callable[[str], str] = str,
        most: int = MOST,
        most_of_group: int = MOST_OF_GROUP,
    ) -> None:
        """`within_s` limits a call; `hint` is added to the error; `group` returns the group of a place."""
        self._within_s, self._hint, self._group = within_s, hint, group
        self._most, self._most_of_group = most, most_of_group
        self._calls: dict[tuple[str, str], _Call] = {}
        self._threads = _Threads()

    async def look(
        self,
        place: str,
        kind: str,
        work: Callable[[], T],
        *,
        question: Hashable = None,
        within_s: float | None = None,
    ) -> T:
        """Return what `work` returns. Raises what `work` raises, or NoAnswer after the time limit.

        Callers with the same place, kind and `question` share one call.
        """
        loop = asyncio.get_running_loop()
        limit_s = self._within_s if within_s is None else within_s
        deadline = loop.time() + limit_s
        while True:
            call = self._calls.get((place, kind))
            if call is not None and call.result.done():
                del self._calls[place, kind]
                if call.question == question and loop.time() < call.stored_until:
                    return cast(T, call.result.result())
                call = None
            if refusal := self.refusal(place):
                raise refusal
            if call is None:
                call = self._start(place, kind, question, work, loop.time() + limit_s)
            same_question = call.question == question
            await asyncio.wait((call.result,), timeout=max(0.0, min(deadline, call.due) - loop.time()))
            if not call.result.done():
                raise NoAnswer(place, self._hint)
            if same_question:
                return cast(T, call.result.result())

    def silent(self) -> dict[str, float]:
        """Return the places that do not answer, each with the time since when, by the process's clock."""
        places: dict[str, float] = {}
        for call in self._overdue(asyncio.get_running_loop().time()):
            places[call.place] = min(call.since, places.get(call.place, call.since))
        return places

    def refusal(self, place: str) -> NoAnswer | None:
        """Return the error with which a call at a place would fail at once, if it would."""
        overdue = self._overdue(asyncio.get_running_loop().time())
        if any(c.place == place for c in overdue):
            return NoAnswer(place, self._hint)
        if len(overdue) >= self._most_of_group:
            group = self._group(place)
            if sum(c.group == group for c in overdue) >= self._most_of_group:
                return NoAnswer(group, self._hint)
        return None

    def under_way(self) -> int:
        """Return the number of running calls, each in its own thread."""
        return sum(not c.result.done() for c in self._calls.values())

    def _overdue(self, now: float) -> list[_Call]:
        return [c for c in self._calls.values() if not c.result.done() and now >= c.due]

    def _start(self, place: str, kind: str, question: Hashable, work: Callable[[], Any], due: float) -> _Call:
        loop = asyncio.get_running_loop()
        for key in [k for k, c in self._calls.items() if c.result.done() and loop.time() >= c.stored_until]:
            del self._calls[key]
        if self.under_way() >= self._most:
            raise NoAnswer(place, f"{self._most} other calls are under way")
        call = _Call(place, question, self._group(place), clock.now(), due, loop.create_future())

        def finish(result: Any, error: Exception | None) -> None:
            if error is None:
                call.result.set_result(result)
            else:
                call.result.set_exception(error)
                call.result.exception()  # marks it as retrieved: all callers may have given up
            if loop.time() < call.due:
                del self._calls[place, kind]
            else:
                call.stored_until = loop.time() + LATE_S

        def run() -> _Outcome:
            try:
                return work(), None
            except Exception as exception:
                # A future does not accept StopIteration.
                return None, RuntimeError(repr(exception)) if isinstance(exception, StopIteration) else exception

        def report(outcome: _Outcome) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is exiting
                loop.call_soon_threadsafe(finish, *outcome)

        self._calls[place, kind] = call
        self._threads.run(run, report, f"look {kind}")
        return call


_Outcome = tuple[Any, Exception | None]
"""What a call returned or raised."""
_Job = tuple[Callable[[], _Outcome], Callable[[_Outcome], None], str]


class _Threads:
    """Runs each job in a daemon thread, named after it: one that has nothing to do, or else a new one."""

    def __init__(self) -> None:
        self._spare: list[queue.SimpleQueue[_Job]] = []
        """Of the threads without a job, through which each gets one."""

    def run(self, work: Callable[[], _Outcome], report: Callable[[_Outcome], None], name: str) -> None:
        """Have `report` called with what `work` returns. The thread is spare before that."""
        try:
            inbox = self._spare.pop()
        except IndexError:
            inbox = queue.SimpleQueue()
            threading.Thread(target=self._serve, args=(inbox,), name=name, daemon=True).start()
        inbox.put((work, report, name))

    def _serve(self, inbox: "queue.SimpleQueue[_Job]") -> None:
        thread = threading.current_thread()
        work, report, _ = inbox.get()
        while True:
            outcome = work()
            self._spare.append(inbox)
            report(outcome)
            del work, report, outcome  # what they hold on to
            try:
                work, report, thread.name = inbox.get(timeout=SPARE_S)
            except queue.Empty:
                try:
                    self._spare.remove(inbox)
                    return
                except ValueError:  # a job is coming
                    work, report, thread.name = inbox.get()
