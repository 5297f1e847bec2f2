"""A simulated machine: its boot, its disk, its worker processes, and what the agent's supervisor calls of the system.

`System` stands in the place of `workers/process.py`, `process_id.py`, `cgroup.py` and the other modules with which the
supervisor starts, finds and kills processes. The supervisor itself is the real one.
"""

import asyncio
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from msgspec.structs import replace

from cortex.functions.launch import Launch, StartMode, fast_tricks
from cortex.functions.launch.fake import FULL_LOAD
from cortex.functions.spec import Function, revision
from cortex.platform.record import Instance, ProcessId
from cortex.platform.scheduling import events
from cortex.platform.scheduling.saved_state import AgentState, LocalWeights
from cortex.platform.workers.startup import Startup
from tests.simulation.virtual_time import PROCESS, Process, VirtualLoop, settle
from tests.simulation.worker import Manner, Worker

FIRST_PORT = 20_000


class Machine:
    """One host: what survives an agent."""

    def __init__(self, loop: VirtualLoop, name: str, devices: Mapping[str, int], ports: int, random: Random) -> None:
        self.loop, self.name, self.devices, self.random = loop, name, dict(devices), random
        self.ports = range(FIRST_PORT, FIRST_PORT + ports)
        """For its workers."""
        self.boots = 1
        self.workers: dict[int, Worker] = {}
        """By pid; also those that ended, until the next boot."""
        self.disk = AgentState()
        """The state file."""
        self.unwritten: AgentState | None = None
        self.disk_s = 0.02
        """How long a write to the disk takes."""
        self.monotonic_s, self.wall_s = random.uniform(10, 10_000), random.uniform(-100, 100)
        self.manner: Callable[[Function], Manner] = lambda _: Manner(start_s=2.0)
        self.on_spawn: Callable[[Worker], None] = lambda _: None
        self.on_signal: Callable[[Worker, int], None] = lambda _worker, _number: None
        self.on_refusal: Callable[[Worker, str], None] = lambda _worker, _router: None
        self.on_damage: Callable[[Worker], None] = lambda _: None
        self.park_ram_mb = 0
        self.sleeps, self.freezes = True, False
        """Whether its engines can sleep, and whether its driver can freeze them."""
        self.agent: Process | None = None
        self.hub = Hub(loop)
        self._pids = 100

    @property
    def boot(self) -> str:
        """The id of its present boot."""
        return f"{self.name} boot {self.boots}"

    def next_pid(self) -> int:
        """Return a pid; they are used again after a while."""
        self._pids = self._pids + 1 if self._pids < 140 else 101
        while (holder := self.workers.get(self._pids)) is not None and holder.alive:
            self._pids += 1
        return self._pids

    def alive(self) -> list[Worker]:
        """Return the worker processes that run."""
        return [w for w in self.workers.values() if w.alive]

    def at(self, port: int) -> Worker | None:
        """Return the worker that listens on a port."""
        return next((w for w in self.workers.values() if w.alive and w.port == port), None)

    def write(self, state: AgentState) -> None:
        """Write the state file; a crash of the machine before the disk is done loses it."""
        self.unwritten = state

        def done() -> None:
            if self.unwritten is state:
                self.disk, self.unwritten = state, None

        self.loop.outside(self.disk_s, done)

    def reboot(self) -> None:
        """Lose every process at once."""
        if self.agent is not None:
            self.agent.crash()
        for worker in self.alive():
            worker.die(-9)
        self.workers.clear()
        self.unwritten = None
        self.boots += 1
        self.monotonic_s = self.random.uniform(1, 10) - self.loop.time()


class Child:
    """What `subprocess.Popen` is to the supervisor."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self.pid = worker, worker.id.pid

    def wait(self) -> int:
        """Return the exit code of a worker that has ended."""
        return -9 if self._worker.code is None else self._worker.code


class System:
    """The operating system under the current process: one machine's, by the process that calls."""

    OWNER = "CORTEX_OWNER"

    def __init__(self, machines: Mapping[str, Machine], folder: Path) -> None:
        """`folder` has the temporary files of workers."""
        self._machines, self._folder = machines, folder

    def here(self) -> Machine:
        """Return the machine of the calling process."""
        return self._machines[PROCESS.get().name.removeprefix("agent ")]

    # process_id

    def boot_id(self) -> str:
        """Return this machine's boot."""
        return self.here().boot

    def is_alive(self, process: ProcessId) -> bool:
        """Whether that very process runs."""
        return (worker := self._find(process)) is not None and worker.alive

    def is_uninterruptible(self, _: ProcessId) -> bool:
        """Whether the kernel holds a process."""
        return False

    def _find(self, process: ProcessId | None) -> Worker | None:
        worker = self.here().workers.get(process.pid) if process else None
        return worker if worker is not None and worker.id == process else None

    # process

    def owner(self, _: Path) -> str:
        """Return the mark of this agent's workers."""
        return self.here().name

    def find_owned(self, _: str) -> list[tuple[str, ProcessId]]:
        """Return this machine's workers, with their instances."""
        return [(w.instance, w.id) for w in self.here().alive()]

    def worker_environment(self, env: Mapping[str, str], _: str) -> Mapping[str, str]:
        """Return the environment."""
        return env

    def started_at(self, pid: int) -> int:
        """Return when a process started."""
        return self.here().workers[pid].id.ticks

    def cpu_s(self, pid: int) -> float:
        """Return the CPU time of a process: a hung one uses none."""
        worker = self.here().workers.get(pid)
        if worker is None or not worker.alive:
            return 0.0
        return 0.0 if worker.hung else self.here().loop.time() - worker.born

    def resident_mb(self, _: int) -> int | None:
        """Return the memory of a process; unknown."""
        return None

    def families(self, leaders: Mapping[str, int]) -> dict[int, str]:
        """Return the instance of each process."""
        return {pid: instance for instance, pid in leaders.items()}

    async def wait_for_exit(self, process: ProcessId) -> None:
        """Return when a process has ended."""
        worker = self._find(process)
        if worker is None or not worker.alive:
            return
        ended: asyncio.Future[None] = worker.loop.create_future()
        worker.when_ended(lambda: worker.loop.outside(0.001, settle, ended, None))
        await ended

    def describe_exit(self, code: int | None) -> str:
        """Return an exit code as text."""
        return "ended" if code is None else f"exited with code {code}"

    def signal_worker(self, leader: ProcessId, number: int) -> bool:
        """Signal a worker."""
        worker = self._find(leader)
        if worker is None or not worker.alive:
            return False
        self.here().on_signal(worker, number)
        worker.signal(number)
        return True

    def session_of(self, _: ProcessId) -> frozenset[ProcessId]:
        """Return the processes of a worker that has ended."""
        return frozenset()

    def log_of(self, _: int, __: str) -> str:
        """Return the log that a process writes to: none."""
        return ""

    def orphans_of(self, instance: str, _: Collection[ProcessId] = (), __: str = "") -> list[ProcessId]:
        """Return the processes of an instance that run."""
        return [w.id for w in self.here().alive() if w.instance == instance]

    def kill_orphans(self, instance: str, _: Collection[ProcessId] = (), __: str = "") -> list[ProcessId]:
        """Kill the processes of an instance. Return those that have not ended yet."""
        left = [w for w in self.here().alive() if w.instance == instance]
        for worker in left:
            self.here().on_signal(worker, signal.SIGKILL)
            worker.signal(signal.SIGKILL)
        return [w.id for w in left]

    async def accepts(self, host: str, port: int, *, within_s: float) -> bool:
        """Whether the agent's API answers: at once."""
        return True

    def write_private(self, path: Path, content: bytes, *_: object) -> None:
        """Write a file of a worker."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def append_note(self, *_: object) -> None:
        """Write to a log; nothing reads it here."""

    def tail(self, *_: object) -> tuple[str, ...]:
        """Return the last lines of a log: there are none."""
        return ()

    def spawn(self, argv: Sequence[str], env: Mapping[str, str], log: Path, instance: str) -> Child:
        """Start a worker. `launch` below put the function into the command."""
        machine = self.here()
        _, function, port = argv
        spec = _LAUNCHED[function]
        manner = _in_mode(machine.manner(spec), spec, fast=bool(env["TRICKS"]))
        worker = Worker(machine, spec, instance, int(port), manner)
        worker.devices, worker.memory_mb = tuple(env["DEVICES"].split(",")), int(env["MEMORY_MB"])
        machine.workers[worker.id.pid] = worker
        machine.on_spawn(worker)
        return Child(worker)

    # cgroup, hardening, log files: nothing to do.

    def home(self, *_: object) -> None:
        """Return the folder of control groups: there is none."""

    def instances(self, _: object) -> list[str]:
        """Return the instances with a control group."""
        return []

    def kill(self, *_: object) -> None:
        """Kill a control group: there is none."""

    def remove_home(self, *_: object) -> None:
        """Remove the folder of control groups."""

    def wrap_command(self, _: object, __: str, argv: Sequence[str]) -> list[str]:
        """Return the command."""
        return list(argv)

    def temporary(self, *_: object) -> None:
        """Make a folder."""

    def temporary_path(self, instance: str) -> Path:
        """Return an instance's own folder."""
        return self._folder / instance

    def make_room(self, *_: object) -> None:
        """Remove old logs."""

    def trim(self, *_: object) -> None:
        """Trim logs."""

    def number_in(self, scratch: Path) -> int | None:
        """Return the memory that a worker holds."""
        instance = scratch.parent.name
        return next((w.held_mb * len(w.devices) for w in self.here().alive() if w.instance == instance), None)

    async def weights(self, _looks: object, function: Function, *_: object) -> LocalWeights | None:
        """Return a function's weights on this machine, or None."""
        hub = self.here().hub
        if function.id not in hub.seconds:
            return LocalWeights("", 0)
        return LocalWeights(f"/simulated/{function.id}", 1000) if function.id in hub.stored else None

    async def opens(self, url: str, within_s: float) -> bool:
        """Return whether a worker's port accepts connections within a time, as soon as it does."""
        machine = self.here()
        worker = machine.at(int(url.rpartition(":")[2]))
        left_s = worker.ready_at - machine.loop.time() if worker is not None else within_s
        await asyncio.sleep(min(within_s, max(0.0, left_s)))
        return worker is not None and worker.ready

    def bindable(self, _: str, port: int) -> int:
        """Return the port if no worker listens on it."""
        return 0 if self.here().at(port) is not None else port


_LAUNCHED: dict[str, Function] = {}


def launch(function: Function, slot: Any) -> Launch:
    """Return a command that `System.spawn` understands."""
    _LAUNCHED[f"{function.id} {revision(function)}"] = function
    possible = fast_tricks(function) if slot.mode is StartMode.FAST else ()
    tricks = tuple(t for t in possible if t not in slot.tricks_off)
    env = {"DEVICES": ",".join(slot.devices), "MEMORY_MB": str(slot.memory_mb), "TRICKS": ",".join(tricks)}
    argv = ("worker", f"{function.id} {revision(function)}", str(slot.port))
    return Launch(argv=argv, env=env, server="fake", tricks=tricks)


def _in_mode(manner: Manner, function: Function, *, fast: bool) -> Manner:
    """Return how a worker behaves whose engine has a fast and a full start, as the fake engine's options have it."""
    options = dict(arg.partition("=")[::2] for arg in function.args)
    if FULL_LOAD not in options:
        return manner
    more_s = 0.0 if fast else float(options[FULL_LOAD])
    dies = manner.dies_starting or options.get("--crash-in") == ("fast" if fast else "full")
    return replace(manner, start_s=manner.start_s + more_s, dies_starting=dies)


class LogFollower:
    """A worker's log, which grows while it starts, unless it hangs."""

    def __init__(self, system: System, log: Path, server: str, **rest: Any) -> None:
        self._system, self.log, self.startup = system, log, Startup(server, **rest)

    def read_new(self) -> bool:
        """Whether there are new lines."""
        return any(w.instance == self.log.stem and not w.hung for w in self._system.here().alive())


class Looks:
    """Calls to the file system: they are made at once."""

    async def look(self, place: str, kind: str, work: Callable[[], Any], **_: Any) -> Any:
        """Return what `work` returns."""
        return work()

    def silent(self) -> dict[str, float]:
        """Return the paths that do not answer: none."""
        return {}

    def refusal(self, _: str) -> None:
        """Return why a path is not tried: there is no reason."""


class Hub:
    """The fetches of one machine: its job worker, its way to the hub, and the weights on its disk. They outlive the
    agent."""

    TRIES, PAUSE_S = 3, 0.5

    def __init__(self, loop: VirtualLoop) -> None:
        self.seconds: dict[str, float] = {}
        """How long each fetch takes. All other functions' weights are on the disk."""
        self.stored: set[str] = set()
        self.fails, self.slower = False, 1.0
        self._loop = loop
        self._jobs: dict[str, asyncio.Future[bool]] = {}

    def recover(self) -> None:
        """End what is wrong with the hub."""
        self.fails, self.slower = False, 1.0

    def fetch(self, function: str) -> "asyncio.Future[bool]":
        """Return a running fetch of a function's weights, or a new one: whether it succeeds."""
        if function not in self._jobs:
            self._jobs[function] = self._loop.create_future()
            self._loop.outside(self.seconds[function] * self.slower, self._end, function, self.TRIES)
        return self._jobs[function]

    def cancel(self, function: str) -> None:
        """Stop a fetch."""
        if job := self._jobs.pop(function, None):
            settle(job, False)

    def _end(self, function: str, tries: int) -> None:
        if function not in self._jobs:
            return
        if self.fails and tries > 1:
            self._loop.outside(self.PAUSE_S, self._end, function, tries - 1)
            return
        if not self.fails:
            self.stored.add(function)
        settle(self._jobs.pop(function), not self.fails)


class Fetches:
    """The agent's side of its machine's fetches."""

    def __init__(self, system: System, _settings: Any, tell: Callable[[events.Event], None], _looks: Any) -> None:
        self._hub, self._tell = system.here().hub, tell
        self._waiting: dict[str, set[str]] = {}

    def close(self) -> None:
        """Close. Running fetches continue."""

    async def fetch(self, instance: Instance, function: Function) -> None:
        """Fetch the weights of an instance, and report the result."""
        waiting = self._waiting.setdefault(function.id, set())
        waiting.add(instance.id)
        try:
            self._tell(events.FetchProgress(instance.id, "downloading", 0.5))
            fetched = await asyncio.shield(self._hub.fetch(function.id))
        finally:
            waiting.discard(instance.id)
        if fetched:
            self._tell(events.Fetched(instance.id, LocalWeights(f"/simulated/{function.id}", 1000)))
        else:
            self._tell(events.FetchFailed(instance.id, "the hub does not answer"))

    async def release(self, function: Function) -> None:
        """Stop a fetch for which no instance waits any more."""
        if not self._waiting.get(function.id):
            self._hub.cancel(function.id)

    async def all(self, _: object) -> list[Any]:
        """Return the fetches."""
        return []

    async def keep_only(self, _: object) -> None:
        """Cancel what no function needs."""


class NoLauncher:
    """A launcher that is never parked."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    async def keep(self) -> None:
        """Keep one parked: wait for ever."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Close."""


class StateWriter:
    """The agent's writer of its state file."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def put(self, state: AgentState) -> None:
        """Write a state."""
        self._machine.write(state)

    def problem(self) -> str:
        """Return why the state is not on disk."""
        return ""

    def close(self) -> bool:
        """Flush."""
        return True
