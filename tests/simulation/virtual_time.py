"""An event loop on virtual time, and the simulated processes whose callbacks it runs.

When nothing is ready the clock jumps to the next timer, so an hour of waiting costs nothing. Callbacks run in the order
in which they became due; nothing depends on real time, threads, addresses or hashes. A call that asyncio would give to
a thread runs on the loop instead.

A simulated process is a value of a context variable, which its tasks inherit. The loop runs no callback of a process
that crashed (no `finally` runs, as after a power cut), and holds back those of a process that stalls.
"""

import asyncio
import contextlib
import enum
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context, ContextVar, copy_context
from heapq import heappop, heappush
from random import Random
from typing import Any, TypeVar

from cortex.platform import clock

T = TypeVar("T")

WALL = 1_800_000_000.0
"""Unix time at the start of every simulation."""
LIVELOCK = 200_000
"""Callbacks without any progress of time after which a run is given up."""


class Deadlock(Exception):
    """Tasks wait, and no timer will wake them; or callbacks go on without an end."""


class Phase(enum.Enum):
    """What the loop does with the callbacks of a process."""

    RUNNING = enum.auto()
    STALLED = enum.auto()
    DEAD = enum.auto()


class Process:
    """One simulated process: its clocks, and whether it runs."""

    def __init__(self, loop: "VirtualLoop", name: str, *, monotonic_s: float = 0.0, wall_s: float = 0.0) -> None:
        """`monotonic_s` is how far its monotonic clock is ahead of virtual time; `wall_s` its wall clock."""
        self.name, self.phase, self.runs = name, Phase.RUNNING, True
        self.monotonic_s, self.wall_s = monotonic_s, wall_s
        self.clock = clock.Clock(WALL + wall_s - monotonic_s)
        self.ended: asyncio.Future[None] = loop.create_future()
        self.crashes_in: int | None = None
        """After how many more of its callbacks it crashes."""
        self.on_crash: Callable[[], None] = lambda: None
        self._loop = loop
        self._held: list[asyncio.Handle] = []
        self.tasks: list[asyncio.Task[Any]] = []
        """Its tasks. Those of a crashed process are never collected, which would run their `finally` blocks."""
        self._most_tasks = 64
        self.context = copy_context()
        self.context.run(PROCESS.set, self)

    def start(self, work: Coroutine[Any, Any, T], name: str = "") -> asyncio.Task[T]:
        """Run a coroutine as a part of this process."""
        return self._loop.create_task(work, name=name or self.name, context=self.context.copy())

    def own(self, task: asyncio.Task[Any]) -> None:
        """Keep a task for as long as it runs."""
        self.tasks.append(task)
        if len(self.tasks) > self._most_tasks:
            self.tasks = [t for t in self.tasks if not t.done()]
            self._most_tasks = 2 * len(self.tasks) + 64

    def crash(self) -> None:
        """End it at once: none of its callbacks runs any more."""
        if self.phase is Phase.DEAD:
            return
        self.phase, self.runs = Phase.DEAD, False
        if not self.ended.done():
            self.ended.set_result(None)
        self.on_crash()

    def stall(self) -> None:
        """Stop it as SIGSTOP does, until `resume`."""
        if self.phase is Phase.RUNNING:
            self.phase, self.runs = Phase.STALLED, False

    def resume(self) -> None:
        """Continue after a stall; what became due meanwhile runs now."""
        if self.phase is Phase.STALLED:
            self.phase, self.runs = Phase.RUNNING, True
            self._loop.run_again(self._held)

    def hold(self, handle: asyncio.Handle) -> bool:
        """Whether a callback may not run now. It is kept for later."""
        if self.crashes_in is not None and self.phase is Phase.RUNNING:
            self.crashes_in -= 1
            if self.crashes_in <= 0:
                self.crashes_in = None
                self.crash()
        if self.phase is Phase.RUNNING:
            return False
        self._held.append(handle)
        return True

    def revive(self) -> None:
        """Let a crashed process run again, only to cancel its tasks after the simulation."""
        self.phase, self.runs = Phase.RUNNING, True
        self.crashes_in = None
        self._loop.run_again(self._held)


PROCESS: ContextVar[Process] = ContextVar("process")
OUTSIDE = Context()
"""The context of what belongs to no process, and so happens although a process is dead."""


def _nothing(*_: object) -> None:
    pass


class Call(asyncio.TimerHandle):
    """A callback and when it is due. Asyncio's own handles also serve its debug mode, which costs a tenth of a run."""

    __slots__ = ()

    def __init__(self, when: float, callback: Any, args: tuple[Any, ...], loop: Any, context: Context | None) -> None:
        self._context = copy_context() if context is None else context
        self._loop, self._callback, self._args = loop, callback, args
        self._cancelled, self._when = False, when

    def cancel(self) -> None:
        """Make sure that it is not called."""
        self._cancelled, self._callback, self._args = True, _nothing, ()


class VirtualLoop(asyncio.BaseEventLoop):
    """The event loop of one simulation."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._clock_resolution = 1e-9
        self._since_progress = 0
        self._ready: deque[asyncio.Handle]
        self._timers: list[tuple[float, int, Call]] = []
        self._timers_made = 0
        self.processes: list[Process] = []
        self.set_task_factory(_owned_task)

    def time(self) -> float:
        """Return virtual seconds since the start."""
        return self._now

    def process(self, name: str, **clocks: float) -> Process:
        """Make a process."""
        process = Process(self, name, **clocks)
        self.processes.append(process)
        return process

    def outside(self, delay_s: float, call: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """Schedule a call that belongs to no process: a packet arrives although its sender is dead."""
        return self.call_at(self._now + delay_s, call, *args, context=OUTSIDE)

    def run_again(self, held: list[asyncio.Handle]) -> None:
        """Run callbacks that were held back."""
        self._ready.extend(held)
        held.clear()

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Call `func` on the loop, a moment later."""
        result: asyncio.Future[Any] = self.create_future()

        def run() -> None:
            if result.cancelled():
                return
            try:
                result.set_result(func(*args))
            except Exception as error:
                result.set_exception(error)

        self.call_soon(run)
        return result

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        """Refuse: nothing may leave the simulation."""
        raise AssertionError(f"the simulation called {host}:{port} for real")

    def _write_to_self(self) -> None:
        pass

    def _process_events(self, event_list: object) -> None:
        pass

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Schedule a call; of calls for the same time the first that was scheduled comes first."""
        handle = Call(when, callback, args, self, context)
        self._timers_made += 1
        heappush(self._timers, (when, self._timers_made, handle))
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Schedule a call after some virtual seconds."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Schedule a call for now."""
        handle = Call(self._now, callback, args, self, context)
        self._ready.append(handle)
        return handle

    def _timer_handle_cancelled(self, _: asyncio.TimerHandle) -> None:
        pass

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        while timers and timers[0][2]._cancelled:
            heappop(timers)
        if not ready:
            if not timers:
                raise Deadlock("all tasks wait, and no timer is set")
            when = timers[0][0]
            if when > self._now:
                self._now, self._since_progress = when, 0
        now = self._now
        while timers and timers[0][0] <= now:
            ready.append(heappop(timers)[2])
        number = len(ready)
        self._since_progress += number
        if self._since_progress > LIVELOCK:
            raise Deadlock(f"{LIVELOCK} callbacks at {now:.3f} s and no end")
        for _ in range(number):
            current = ready.popleft()
            if current._cancelled:
                continue
            context: Context = current._context  # type: ignore[attr-defined]
            process = context.get(PROCESS)
            if process is None or (process.runs and process.crashes_in is None) or not process.hold(current):
                try:
                    context.run(current._callback, *current._args)  # type: ignore[attr-defined]
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self.call_exception_handler({"message": "a callback raised", "exception": error})


def _owned_task(loop: Any, work: Any, context: Context | None = None) -> asyncio.Task[Any]:
    task = asyncio.Task(work, loop=loop, context=context)
    process = context.get(PROCESS) if context is not None else PROCESS.get(None)
    if process is not None:
        process.own(task)
    return task


@contextlib.contextmanager
def virtual_clocks(loop: VirtualLoop, random: Random) -> Iterator[None]:
    """Give the code under test virtual clocks, each process its own, and random ids that follow from the seed."""
    outside = Process(loop, "world")

    def process() -> Process:
        return PROCESS.get(outside)

    class Clocks:
        @property
        def origin(self) -> float:
            return process().clock.origin

        @staticmethod
        def now() -> float:
            own = process()
            return own.clock.origin + own.monotonic_s + loop._now

    def resume(origin: float) -> None:
        process().clock = clock.Clock(origin)

    replacements: list[tuple[Any, str, Any]] = [
        (time, "monotonic", lambda: loop._now + process().monotonic_s),
        (time, "time", lambda: WALL + loop._now + process().wall_s),
        (clock, "_process", Clocks()),
        (clock, "resume", resume),
        (secrets, "token_hex", lambda n=16: f"{random.getrandbits(8 * n):0{2 * n}x}"),
        (secrets, "randbelow", lambda n: random.randrange(n)),
    ]
    with replaced(replacements):
        yield


def settle(future: "asyncio.Future[T]", value: T) -> None:
    """Set the result of a future that may be done already."""
    if not future.done():
        future.set_result(value)


@contextlib.contextmanager
def replaced(replacements: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Replace attributes of modules and objects, and put them back."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    try:
        for owner, name, value in replacements:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)
