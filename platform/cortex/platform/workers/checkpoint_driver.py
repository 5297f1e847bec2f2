"""Calls the CUDA driver's checkpoint functions, in a process of its own.

The driver can move all device memory of a process to that process's own RAM, and back: it locks the process, which
stops its CUDA calls and nothing else, checkpoints it, restores it, and unlocks it
(https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__CHECKPOINT.html). These calls may fail, hang or crash their
caller, so the agent never makes them. `python -m cortex.platform.workers.checkpoint_driver` answers each line of
standard input, a `Request`, with one line of JSON, an `Answer`.

It calls `cuInit`, which a restore needs where persistence mode is off, and creates no CUDA context: it takes no device
memory. It ends when its standard input does, but never during a call: a worker must not be left half-way because its
agent was killed. Two of these processes never work on the same worker process at a time.
"""

import ctypes
import enum
import fcntl
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from cortex.platform.process import process_id
from cortex.platform.record import ProcessId

LIBRARY_VARIABLE = "CORTEX_LIBCUDA"
"""The path of a library to load instead of the driver's, for tests."""
LIBRARY = "libcuda.so.1"
CUDA_VERSION = 13_000
"""CUDA 13.0, which drivers support from branch 580 on: the oldest that cortex freezes with."""
FUNCTIONS = ("Lock", "Checkpoint", "Restore", "Unlock", "GetState")
VERSION = Path("/sys/module/nvidia/version")
PAUSE_S = 0.02


class Operation(enum.StrEnum):
    """What to do with a process; `probe` needs none."""

    PROBE = "probe"
    STATE = "state"
    LOCK = "lock"
    CHECKPOINT = "checkpoint"
    RESTORE = "restore"
    UNLOCK = "unlock"


class CudaState(enum.StrEnum):
    """The driver's state of a process."""

    RUNNING = "running"
    LOCKED = "locked"
    CHECKPOINTED = "checkpointed"
    FAILED = "failed"


class FreezeProblem(enum.StrEnum):
    """Why an operation failed, by what can be done about it."""

    LIBRARY = "library"
    """The driver's library is missing or cannot be loaded."""
    OLD_DRIVER = "old_driver"
    DEVICE = "device"
    """CUDA does not start: no device, or a driver without its kernel module."""
    RIGHTS = "rights"
    BUSY = "busy"
    """It could not be locked in time, or another process works on it."""
    STATE = "state"
    """It is not in the state that the operation needs."""
    UNSUPPORTED = "unsupported"
    """The driver cannot checkpoint this process or device."""
    NO_ROOM = "no_room"
    """The device, or the RAM, has no room for its memory."""
    NO_CUDA = "no_cuda"
    """The driver does not know this process."""
    GONE = "gone"
    """The process has ended."""
    DRIVER = "driver"
    """Any other error of the driver."""
    NO_ANSWER = "no_answer"
    """The calling process hangs or has died."""
    MEMORY_STAYS = "memory_stays"
    """Device memory is still in use after a checkpoint, or NVML cannot show that it is not."""
    NOTHING_HELD = "nothing_held"
    """No process of the worker uses device memory that NVML lists."""
    CANARY = "canary"
    """Its first tokens differ from those before it was frozen."""


class Request(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An operation on one process, which must still be the one that was identified."""

    do: Operation
    process: ProcessId | None = None
    within_s: float = 10.0
    """Time limit for locking, and for another caller's operation on the same process."""


class Answer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The outcome. `text` explains a problem; the answer to `probe` has the driver's version there."""

    problem: FreezeProblem | None = None
    text: str = ""
    state: CudaState | None = None


class LockArguments(ctypes.Structure):
    """`CUcheckpointLockArgs`."""

    _fields_ = (
        ("timeoutMs", ctypes.c_uint),
        ("reserved0", ctypes.c_uint),
        ("reserved1", ctypes.c_uint64 * 7),
    )


_STATES = (CudaState.RUNNING, CudaState.LOCKED, CudaState.CHECKPOINTED, CudaState.FAILED)
_RESULTS = {
    1: FreezeProblem.NO_CUDA,  # CUDA_ERROR_INVALID_VALUE
    2: FreezeProblem.NO_ROOM,  # CUDA_ERROR_OUT_OF_MEMORY
    3: FreezeProblem.NO_CUDA,  # CUDA_ERROR_NOT_INITIALIZED: the process has the library and no context, as vLLM's front
    304: FreezeProblem.RIGHTS,  # CUDA_ERROR_OPERATING_SYSTEM: it may not open the process's files in /proc
    401: FreezeProblem.STATE,  # CUDA_ERROR_ILLEGAL_STATE
    600: FreezeProblem.BUSY,  # CUDA_ERROR_NOT_READY: the lock's time limit
    800: FreezeProblem.RIGHTS,  # CUDA_ERROR_NOT_PERMITTED
    801: FreezeProblem.UNSUPPORTED,  # CUDA_ERROR_NOT_SUPPORTED
}
"""Values of `CUresult` that say what to do; the others are `FreezeProblem.DRIVER`."""


class Failure(Exception):
    """An operation failed."""

    def __init__(self, problem: FreezeProblem, text: str) -> None:
        super().__init__(text)
        self.answer = Answer(problem=problem, text=text)


class Driver:
    """The driver's library, loaded and initialised. Raises Failure."""

    def __init__(self, library: str) -> None:
        try:
            self._cuda = ctypes.CDLL(library)
        except OSError as error:
            raise Failure(FreezeProblem.LIBRARY, f"the CUDA driver's library cannot be loaded: {error}") from None
        version = ctypes.c_int()
        if not hasattr(self._cuda, "cuDriverGetVersion"):
            raise Failure(FreezeProblem.LIBRARY, f"{library} is not the CUDA driver's library")
        self._call("cuDriverGetVersion", ctypes.byref(version))
        complete = all(hasattr(self._cuda, f"cuCheckpointProcess{f}") for f in FUNCTIONS)
        if not complete or version.value < CUDA_VERSION:
            cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
            text = f"the NVIDIA driver supports CUDA {cuda}; freezing needs driver 580 or newer (CUDA 13.0)"
            raise Failure(FreezeProblem.OLD_DRIVER, text)
        result = self._cuda.cuInit(0)
        if result != 0:
            raise Failure(FreezeProblem.DEVICE, f"CUDA does not start: {self._describe(result)}")

    def state(self, pid: int) -> CudaState:
        """Return the state of a process."""
        state = ctypes.c_int(-1)
        self._call("cuCheckpointProcessGetState", pid, ctypes.byref(state))
        if not 0 <= state.value < len(_STATES):
            raise Failure(FreezeProblem.DRIVER, f"the driver reports the unknown state {state.value}")
        return _STATES[state.value]

    def lock(self, pid: int, within_s: float) -> None:
        """Stop a process's CUDA calls, after those in progress."""
        arguments = LockArguments(timeoutMs=max(1, int(within_s * 1000)))  # 0 would mean no time limit
        self._call("cuCheckpointProcessLock", pid, ctypes.byref(arguments))

    def checkpoint(self, pid: int) -> None:
        """Move the device memory of a locked process to RAM."""
        self._call("cuCheckpointProcessCheckpoint", pid, None)

    def restore(self, pid: int) -> None:
        """Move the memory of a checkpointed process back. It is locked then."""
        self._call("cuCheckpointProcessRestore", pid, None)

    def unlock(self, pid: int) -> None:
        """Let a locked process go on."""
        self._call("cuCheckpointProcessUnlock", pid, None)

    def _call(self, function: str, *arguments: Any) -> None:
        result = getattr(self._cuda, function)(*arguments)
        if result != 0:
            raise Failure(_RESULTS.get(result, FreezeProblem.DRIVER), f"{function}: {self._describe(result)}")

    def _describe(self, result: int) -> str:
        name = ctypes.c_char_p()
        if self._cuda.cuGetErrorName(result, ctypes.byref(name)) != 0 or not name.value:
            return f"CUDA error {result}"
        return f"{name.value.decode(errors='replace')} ({result})"


def perform(driver: Driver, request: Request) -> Answer:
    """Carry out a request. Raises Failure."""
    if request.do is Operation.PROBE:
        return Answer(text=driver_version())
    if request.process is None:
        raise Failure(FreezeProblem.GONE, f"{request.do} needs a process")
    pid = request.process.pid
    deadline = time.monotonic() + request.within_s
    descriptor = _exclusive(pid, deadline)
    try:
        # The descriptor is the directory of one process, and no other process can have its pid while that lives.
        if not process_id.is_alive(request.process):
            raise Failure(FreezeProblem.GONE, f"process {pid} has ended")
        match request.do:
            case Operation.LOCK:
                driver.lock(pid, max(0.0, deadline - time.monotonic()))
            case Operation.CHECKPOINT:
                driver.checkpoint(pid)
            case Operation.RESTORE:
                driver.restore(pid)
            case Operation.UNLOCK:
                driver.unlock(pid)
        return Answer(state=driver.state(pid))
    finally:
        os.close(descriptor)


def driver_version() -> str:
    """Return the version of the loaded driver; "" if the kernel does not show it."""
    try:
        return VERSION.read_text().strip()
    except OSError:
        return ""


def _exclusive(pid: int, deadline: float) -> int:
    """Lock the process's directory in /proc against other callers of this module. Raises Failure.

    The kernel releases the lock when its holder ends, also when that is killed.
    """
    try:
        descriptor = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise Failure(FreezeProblem.GONE, f"process {pid} has ended") from None
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                text = f"another process still works on the checkpoint of process {pid}"
                raise Failure(FreezeProblem.BUSY, text) from None
            time.sleep(PAUSE_S)


def main() -> None:
    """Answer requests until the standard input ends."""
    # Answers use their own descriptor, because drivers print to the standard output.
    out = os.dup(1)
    os.dup2(2, 1)
    driver: Driver | None = None
    for line in sys.stdin.buffer:
        try:
            driver = driver or Driver(os.environ.get(LIBRARY_VARIABLE, LIBRARY))
            answer = perform(driver, msgspec.json.decode(line, type=Request))
        except Failure as failure:
            answer = failure.answer
        try:
            os.write(out, msgspec.json.encode(answer) + b"\n")
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main()
