"""Freezes workers: the driver moves all their device memory to RAM, and back before they serve again.

The agent makes no CUDA call itself; `checkpoint_driver.py` does, in processes that this module starts. A freeze locks
all processes of the worker that use device memory, checkpoints each, and succeeds only when NVML shows that none of
them has device memory any more. If a step fails, the processes are restored and unlocked again as far as possible.

Nothing about a frozen worker is stored here: the driver knows which of its processes are frozen, and `recover` reads it
for the next agent. All processes are locked before the first is checkpointed, and restored before the first
is unlocked. So a worker with both locked and checkpointed processes was left half-way.
"""

import asyncio
import contextlib
import enum
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from cortex.platform.process import process_id
from cortex.platform.process.termination import describe_exit, signal_group
from cortex.platform.record import ProcessId
from cortex.platform.workers import process
from cortex.platform.workers.checkpoint_driver import (
    LIBRARY_VARIABLE,
    Answer,
    CudaState,
    FreezeProblem,
    Operation,
    Request,
)
from cortex.platform.workers.worker_user import WorkerUser

# -P: the agent's working directory must not supply modules.
DRIVER = (sys.executable, "-P", "-m", "cortex.platform.workers.checkpoint_driver")
DEVICE = Path("/dev/nvidiactl")
"""The device file that every CUDA program needs."""
PAUSE_S = 0.05
ENDS_WITHIN_S = 1.0
PROBE_AGAIN_S = 300.0
ANSWER_BYTES = 64 * 1024
_CAP_SYS_PTRACE = 1 << 19


class Limits(Struct, frozen=True, kw_only=True):
    """Time limits in seconds."""

    start_s: float = 30.0
    """A driver process's first answer: without persistence mode, CUDA wakes one GPU after the other."""
    lock_s: float = 10.0
    """The work in progress on the devices."""
    move_s: float = 180.0
    """A checkpoint or a restore: 140 GiB at 0.8 GiB/s. Drivers move 1.6 to 5.7 GiB/s."""
    short_s: float = 10.0
    """An unlock or a question."""
    recover_s: float = 30.0
    """The operation that an earlier agent began."""
    released_s: float = 10.0
    """Until NVML shows that the memory is gone."""
    slack_s: float = 5.0
    """Beyond an operation's limit, until its driver process is killed."""


UsedMemory = Callable[[], Awaitable[Mapping[int, int] | None]]
"""Returns the device memory in MiB by process, from a fresh reading; None if it cannot be read."""


class FreezeFailed(Exception):
    """A worker could not be frozen or restored. `runs`: all its processes run as before; otherwise it must end."""

    def __init__(self, problem: FreezeProblem, text: str, *, runs: bool = False) -> None:
        super().__init__(text)
        self.problem, self.runs = problem, runs


class Recovery(enum.Enum):
    """What became of a worker that an earlier agent froze, or restored."""

    FROZEN = enum.auto()
    RUNNING = enum.auto()
    BROKEN = enum.auto()
    """It is half-way, has failed or is unknown to the driver: it must end."""


class Recovered(Struct, frozen=True):
    """The outcome of `recover`; for a broken worker, `text` is the reason."""

    state: Recovery
    text: str = ""


class Freezer:
    """Freezes, restores and recovers workers: several at a time, but each worker by one call at a time."""

    def __init__(
        self,
        user: WorkerUser | None = None,
        command: Sequence[str] = DRIVER,
        limits: Limits | None = None,
        device: Path = DEVICE,
    ) -> None:
        self._user, self._command, self._limits, self._device = user, command, limits or Limits(), device
        self._idle: _DriverProcess | None = None
        self._frozen: dict[str, tuple[ProcessId, ...]] = {}
        """The processes of each frozen worker whose memory was moved, by marker."""
        self._probe_at = 0.0
        self.problem = "it is not known yet whether the driver can freeze"
        """Why this host cannot freeze workers; "" if it can."""
        self.version = ""
        """The driver's version, if the kernel shows it."""

    def close(self) -> None:
        """Let the driver processes end, each after its current operation."""
        if self._idle is not None:
            self._idle.release()
            self._idle = None

    @property
    def probe_is_due(self) -> bool:
        """Whether `probe` is due: not yet run, or some time after it failed. A success is final."""
        return bool(self.problem) and time.monotonic() >= self._probe_at

    async def probe(self) -> None:
        """Examine whether this host can freeze workers."""
        self._probe_at = time.monotonic() + PROBE_AGAIN_S
        problem = rights_problem(self._user)
        if not self._device.exists() and LIBRARY_VARIABLE not in os.environ:
            problem = f"this host has no NVIDIA driver: there is no {self._device}"
        if not problem:
            try:
                async with self._driver() as driver:
                    self.version = (await driver.request(Operation.PROBE)).text
            except FreezeFailed as failure:
                problem = str(failure)
        self.problem = problem

    async def freeze(self, leader: ProcessId, marker: str, used: UsedMemory) -> int:
        """Move all device memory of a worker to RAM. Return how many MiB. Raises FreezeFailed."""
        before = await used()
        members = await asyncio.to_thread(process.orphans_of, marker, (leader,))
        members = [m for m in members if (before or {}).get(m.pid)]
        if not members:
            text = "NVML lists no device memory of the worker's processes"
            raise FreezeFailed(FreezeProblem.NOTHING_HELD, text, runs=True)
        try:
            async with self._driver() as driver:
                for member in members:
                    await driver.request(Operation.LOCK, member, self._limits.lock_s)
                for member in members:
                    await driver.request(Operation.CHECKPOINT, member, self._limits.move_s)
            await self._prove_released({m.pid for m in members}, used)
        except FreezeFailed as failure:
            failure.runs = await self._undo(members)
            raise
        self._frozen[marker] = tuple(members)
        return sum((before or {})[m.pid] for m in members)

    def has_lost_a_process(self, marker: str) -> bool:
        """Whether a process of a frozen worker has ended, and with it a part of its memory."""
        return not all(map(process_id.is_alive, self._frozen.get(marker, ())))

    def forget(self, marker: str) -> None:
        """Drop what is known of a worker that is frozen no more."""
        self._frozen.pop(marker, None)

    async def restore(self, leader: ProcessId, marker: str) -> None:
        """Move the device memory of a frozen worker back. Raises FreezeFailed.

        The worker has not proved yet that it computes as before: compare its canary.
        """
        self.forget(marker)
        async with self._driver() as driver:
            states = await self._states(driver, leader, marker, self._limits.short_s)
            frozen = [member for member, state in states.items() if state is CudaState.CHECKPOINTED]
            if not frozen:
                raise FreezeFailed(FreezeProblem.STATE, "the driver has no frozen process of the worker")
            for member in frozen:
                await driver.request(Operation.RESTORE, member, self._limits.move_s)
            for member in frozen:
                await driver.request(Operation.UNLOCK, member)

    async def recover(self, leader: ProcessId, marker: str) -> Recovered:
        """Return the state of a worker that an earlier agent froze or restored, and unlock it if it is locked.

        (1) No process of it is known to the driver, or one has failed.
        (2) Some are locked and others checkpointed: it was left half-way.
        (3) Some are checkpointed: it is frozen.
        (4) Some are locked: they were not checkpointed yet, or all are restored.
        (5) It runs.
        """
        try:
            async with self._driver() as driver:
                states = await self._states(driver, leader, marker, self._limits.recover_s)
                present = set(states.values())
                if not present or CudaState.FAILED in present:  # (1)
                    text = "the driver reports that its checkpoint failed" if present else "the driver does not know it"
                    return Recovered(Recovery.BROKEN, text)
                if present >= {CudaState.LOCKED, CudaState.CHECKPOINTED}:  # (2)
                    return Recovered(Recovery.BROKEN, "its checkpoint was left half-way")
                if CudaState.CHECKPOINTED in present:  # (3)
                    self._frozen[marker] = tuple(m for m, s in states.items() if s is CudaState.CHECKPOINTED)
                    return Recovered(Recovery.FROZEN)
                for member, state in states.items():  # (4)
                    if state is CudaState.LOCKED:
                        await driver.request(Operation.UNLOCK, member)
        except FreezeFailed as failure:
            return Recovered(Recovery.BROKEN, str(failure))
        return Recovered(Recovery.RUNNING)  # (5)

    async def _undo(self, members: Sequence[ProcessId]) -> bool:
        """Restore and unlock what a failed freeze left. Return whether all processes run again."""
        try:
            async with self._driver() as driver:
                states = {m: (await driver.request(Operation.STATE, m)).state for m in members}
                for member in members:
                    if states[member] is CudaState.CHECKPOINTED:
                        await driver.request(Operation.RESTORE, member, self._limits.move_s)
                for member in members:
                    if states[member] is not CudaState.RUNNING:
                        await driver.request(Operation.UNLOCK, member)
        except FreezeFailed:
            return False
        return True

    async def _states(
        self, driver: "_DriverProcess", leader: ProcessId, marker: str, within_s: float
    ) -> dict[ProcessId, CudaState]:
        """Return the states of the worker's processes that the driver knows. Raises FreezeFailed."""
        states: dict[ProcessId, CudaState] = {}
        for member in await asyncio.to_thread(process.orphans_of, marker, (leader,)):
            try:
                answer = await driver.request(Operation.STATE, member, within_s)
            except FreezeFailed as failure:
                if failure.problem not in (FreezeProblem.NO_CUDA, FreezeProblem.GONE):
                    raise
                continue
            if answer.state is not None:
                states[member] = answer.state
        return states

    async def _prove_released(self, pids: set[int], used: UsedMemory) -> None:
        """Wait until NVML shows no device memory of these processes. Raises FreezeFailed."""
        deadline = time.monotonic() + self._limits.released_s
        while True:
            now = await used()
            if now is not None and not any(now.get(pid) for pid in pids):
                return
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(PAUSE_S)
        if now is None:
            text = "NVML cannot be read, so it is not proved that the device memory was released"
        else:
            held_mb = sum(now.get(pid, 0) for pid in pids)
            text = f"the driver reports a checkpoint, but NVML still shows {held_mb} MiB of device memory"
        raise FreezeFailed(FreezeProblem.MEMORY_STAYS, text)

    @contextlib.asynccontextmanager
    async def _driver(self) -> AsyncIterator["_DriverProcess"]:
        """Provide a driver process for exclusive use. An idle one is reused."""
        driver, self._idle = self._idle, None
        if driver is None or not driver.usable:
            driver = await _DriverProcess.start(self._command, self._limits)
        try:
            yield driver
        finally:
            if driver.usable and self._idle is None:
                self._idle = driver
            else:
                driver.release()


class _DriverProcess:
    """A running `checkpoint_driver.py`. It is not a subprocess of asyncio, which kills its own when the agent ends."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        answers: asyncio.StreamReader,
        pipe: asyncio.ReadTransport,
        limits: Limits,
    ) -> None:
        self._child, self._answers, self._pipe, self._limits = child, answers, pipe, limits
        self._started = self._busy = False

    @classmethod
    async def start(cls, command: Sequence[str], limits: Limits) -> "_DriverProcess":
        """Start one. Raises FreezeFailed."""
        try:
            child = subprocess.Popen(  # noqa: ASYNC220 (a fork of the agent, as for every worker)
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the agent's terminal must not reach it
            )
        except OSError as error:
            text = f"the driver process could not be started: {error}"
            raise FreezeFailed(FreezeProblem.NO_ANSWER, text) from None
        answers = asyncio.StreamReader(limit=ANSWER_BYTES)
        protocol = asyncio.StreamReaderProtocol(answers)
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, child.stdout)
        return cls(child, answers, pipe, limits)

    @property
    def usable(self) -> bool:
        """Whether it waits for a request."""
        return not self._busy and self._child.poll() is None

    def release(self) -> None:
        """Let it end, after its current operation."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._pipe.close()

    async def request(self, do: Operation, member: ProcessId | None = None, within_s: float | None = None) -> Answer:
        """Perform an operation. Raises FreezeFailed.

        A driver process that does not answer in time is killed. A cancelled caller leaves the operation running.
        """
        assert self._child.stdin is not None
        self._busy, line = True, b""
        within_s = self._limits.short_s if within_s is None else within_s
        limit_s = within_s + self._limits.slack_s + (0.0 if self._started else self._limits.start_s)
        try:
            async with asyncio.timeout(limit_s):
                self._child.stdin.write(msgspec.json.encode(Request(do=do, process=member, within_s=within_s)) + b"\n")
                line = await self._answers.readline()
            answer = msgspec.json.decode(line, type=Answer)
        except TimeoutError:
            await self._end()
            text = f"the driver did not answer '{do}' within {limit_s:.0f} s"
            raise FreezeFailed(FreezeProblem.NO_ANSWER, text) from None
        except (OSError, ValueError):
            how = "sent an invalid answer" if line else describe_exit(await self._end())
            raise FreezeFailed(FreezeProblem.NO_ANSWER, f"the driver process {how} during '{do}'") from None
        self._busy, self._started = False, True
        if answer.problem is not None:
            raise FreezeFailed(answer.problem, answer.text)
        return answer

    async def _end(self) -> int | None:
        """Kill it unless it has ended. Return its exit code, or None when it has not ended soon."""
        signal_group(self._child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return await asyncio.to_thread(self._child.wait, ENDS_WITHIN_S)
        return None


def rights_problem(user: WorkerUser | None, status: Path = Path("/proc/self/status")) -> str:
    """Return why this process lacks the right to freeze workers of a user (None: its own); "" if it has it.

    The driver opens files of the worker in /proc. The kernel allows that for the same user's processes, and for others
    with CAP_SYS_PTRACE.
    """
    if user is None or user.uid == os.geteuid():
        return ""
    with contextlib.suppress(OSError, ValueError):
        effective = next(line for line in status.read_text().splitlines() if line.startswith("CapEff:"))
        if int(effective.split()[1], 16) & _CAP_SYS_PTRACE:
            return ""
    return f"the agent has no CAP_SYS_PTRACE, which it needs for workers of user {user.name}"
