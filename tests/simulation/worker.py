"""A simulated worker process, and how it behaves: its start, its end, and its memory on the way to a tier and back."""

import signal
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from msgspec import Struct

from cortex.functions.spec import Function, revision
from cortex.platform.keys import worker_key
from cortex.platform.record import ProcessId
from cortex.platform.workers.checkpoint_driver import CudaState

if TYPE_CHECKING:
    from tests.simulation.machine import Machine

TOKEN = "the token of the simulated fleet"


@cache
def key_of(instance: str) -> str:
    """Return the API key of an instance."""
    return worker_key(TOKEN, instance)


class Manner(Struct, frozen=True, kw_only=True):
    """How one worker behaves."""

    start_s: float
    dies_starting: bool = False
    dies_after_s: float = 0.0
    """Seconds from ready to a crash; 0: it does not crash."""
    hangs_after_s: float = 0.0
    ends_s: float = 0.05
    """From TERM to its end."""
    ignores_term: bool = False
    leaves_orphan: bool = False
    first_sleep_s: float = 2.0
    """The first sleep pins memory and is slow."""
    sleep_s: float = 0.4
    stays_mb: int = 1000
    """On each device while it sleeps."""
    freeze_s: float = 1.0
    """How long the driver takes to move its memory, each way."""
    refuses: str = ""
    """What fails: `sleep`, `wake`, or an operation of the driver. It also `dies` once it is parked, or comes back from
    being frozen `damaged`."""
    hangs: str = ""
    """The move that never ends: `sleep`, `wake`, or an operation of the driver."""


class Worker:
    """One worker process."""

    def __init__(self, machine: "Machine", function: Function, instance: str, port: int, manner: Manner) -> None:
        self.machine, self.function, self.instance, self.port, self.manner = machine, function, instance, port, manner
        self.revision = revision(function)
        self.loop = machine.loop
        self.id = ProcessId(machine.boot, machine.next_pid(), round(self.loop.time() * 100))
        self.key = key_of(instance)
        self.process = self.loop.process(f"worker {instance}")
        self.born = self.loop.time()
        self.ready_at = self.born + manner.start_s
        self.code: int | None = None
        self.hung = False
        self.open: dict[object, str] = {}
        """Requests that it works on, and the routers that sent them; "" for those that no client sent."""
        self.devices: tuple[str, ...] = ()
        self.memory_mb = 0
        self.asleep = self.moving = self.pinned = False
        """Whether its memory is in RAM, on the way there or back, and whether it has slept."""
        self.cuda = CudaState.RUNNING
        self.driver: object | None = None
        """The driver process that works on it."""
        self.damaged = False
        """Whether it computes something else than before it was frozen."""
        self.process.on_crash = self._ended
        self._exited: list[Callable[[], object]] = []
        self._resumed: list[Callable[[], object]] = []
        self._settled: list[Callable[[], object]] = []
        if manner.dies_starting:
            self.loop.outside(manner.start_s * 0.6, self.die, 1)
        if manner.dies_after_s:
            self.loop.outside(manner.start_s + manner.dies_after_s, self.die, -11)
        if manner.hangs_after_s:
            self.loop.outside(manner.start_s + manner.hangs_after_s, self.hang)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.code is None

    @property
    def ready(self) -> bool:
        """Whether it serves."""
        return self.alive and self.loop.time() >= self.ready_at

    @property
    def held_mb(self) -> int:
        """Its memory on each device. While the driver moves it, it is there."""
        if self.cuda is CudaState.CHECKPOINTED and self.driver is None:
            return 0
        return self.manner.stays_mb if self.asleep and not self.moving else self.memory_mb

    def sleep(self) -> float | None:
        """Begin to sleep; return how long that takes. None: it refuses."""
        if self.manner.refuses == "sleep" or self.asleep:
            return None
        takes_s = self.manner.sleep_s if self.pinned else self.manner.first_sleep_s
        self.asleep = self.moving = self.pinned = True
        if self.manner.hangs == "sleep":
            self.hang()
        self.loop.outside(takes_s, self._moved)
        if self.manner.refuses == "dies":
            self.loop.outside(takes_s * 1.5, self.die, -9)
        return takes_s

    def wake(self) -> float | None:
        """Begin to wake; return how long that takes. None: it refuses."""
        if self.manner.refuses == "wake":
            return None
        self.moving = True
        self.machine.on_spawn(self)
        if self.manner.hangs == "wake":
            self.hang()
        self.loop.outside(self.manner.sleep_s, self._moved, True)
        return self.manner.sleep_s

    def _moved(self, woke: bool = False) -> None:
        self.moving = False
        self.asleep = self.asleep and not woke
        calls, self._settled = self._settled, []
        for call in calls:
            call()

    def begin_restore(self) -> None:
        """The driver begins to move its memory back to the devices."""
        self.machine.on_spawn(self)
        self.damaged = self.manner.refuses == "damaged"

    def end_driving(self, state: CudaState) -> None:
        """The driver process that works on it has brought it into a state."""
        self.driver, self.cuda = None, state
        if state is CudaState.RUNNING:
            calls, self._resumed = self._resumed, []
            for call in calls:
                call()
        elif state is CudaState.CHECKPOINTED and self.manner.refuses == "dies":
            self.loop.outside(self.manner.freeze_s, self.die, -9)

    def die(self, code: int) -> None:
        """End with an exit code."""
        if self.alive:
            self.code = code
            self.process.crash()

    def hang(self) -> None:
        """Answer nothing any more, and use no CPU time."""
        self.hung = True

    def signal(self, number: int) -> None:
        """Receive TERM or KILL."""
        if number == signal.SIGKILL:
            self.loop.outside(0.01, self.die, -9)
        elif not self.manner.ignores_term and not self.hung and self.cuda is CudaState.RUNNING:
            self.loop.outside(self.manner.ends_s, self.die, 0)

    def when_ended(self, call: Callable[[], object]) -> None:
        """Call when the process ends, or now if it has ended."""
        if self.alive:
            self._exited.append(call)
        else:
            call()

    def when_running(self, call: Callable[[], object]) -> None:
        """Call when the driver lets it go on, or when the process ends."""
        self._resumed.append(call)

    def when_settled(self, call: Callable[[], object]) -> None:
        """Call when it sleeps or is awake, or when the process ends."""
        self._settled.append(call)

    def _ended(self) -> None:
        if self.code is None:
            self.code = -9
        self.driver = None
        calls = [*self._exited, *self._resumed, *self._settled]
        self._exited, self._resumed, self._settled = [], [], []
        for call in calls:
            call()
