"""A host with a driver that can checkpoint, for workers of the fake engine: see `cuda_double.c`."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cortex.platform.process import process_id
from cortex.platform.process.environment import MARKER
from cortex.platform.record import ProcessId
from cortex.platform.workers.checkpoint_driver import LIBRARY_VARIABLE

SOURCE = Path(__file__).with_suffix(".c")
COMPILER = shutil.which("gcc") or shutil.which("cc")
FOLDER_VARIABLE = "CORTEX_TEST_CUDA"
MEMORY_MB = 1000


@functools.cache
def library() -> str:
    """Build the library once per process. Return its path."""
    assert COMPILER
    path = Path(tempfile.mkdtemp(prefix="cuda-double-")) / "libcuda.so.1"
    subprocess.run([COMPILER, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", path, SOURCE], check=True)
    return str(path)


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of a driver process for the double with this folder."""
    return {LIBRARY_VARIABLE: library(), FOLDER_VARIABLE: str(folder)}


class Card:
    """A device: its folder, and the worker processes that use it."""

    def __init__(self, folder: Path, marker: str) -> None:
        self.folder, self.marker = folder, marker
        self.processes: list[subprocess.Popen[bytes]] = []
        self.readable = True
        """Whether its memory can be read, as by NVML."""

    def start(self, *argv: str, memory_mb: int = MEMORY_MB) -> ProcessId:
        """Start a process of the worker that uses device memory; default: one that sleeps."""
        memory = self.memory_file(len(self.processes))
        memory.write_text(f"{memory_mb}\n")
        env = {**os.environ, "CORTEX_FAKE_MEMORY_FILE": str(memory), MARKER: self.marker}
        child = subprocess.Popen(argv or ("sleep", "600"), env=env, start_new_session=True)
        self.processes.append(child)
        identity = process_id.identify(child.pid)
        assert identity
        return identity

    def start_engine(self, *options: str) -> ProcessId:
        """Start a fake engine that uses device memory."""
        module = (sys.executable, "-m", "cortex.platform.fake_engine", "--model=m")
        return self.start(*module, f"--memory-mb={MEMORY_MB}", *options)

    def memory_file(self, number: int) -> Path:
        """Return the file with the device memory of the nth process."""
        return self.folder / f"device-memory-{number}"

    async def used(self) -> Mapping[int, int] | None:
        """Return the device memory by process, as NVML does."""
        if not self.readable:
            return None
        mb = {p.pid: int(self.memory_file(n).read_text()) for n, p in enumerate(self.processes)}
        return {pid: used for pid, used in mb.items() if used}

    def fault(self, operation: str, word: str, pid: int | None = None) -> None:
        """Have an operation fail."""
        (self.folder / (f"fault.{operation}.{pid}" if pid else f"fault.{operation}")).write_text(word)

    def repair(self) -> None:
        """Remove all faults."""
        for fault in self.folder.glob("fault.*"):
            fault.unlink()

    def go(self) -> None:
        """End the wait of operations with the fault `wait`."""
        (self.folder / "go").touch()

    def calls(self) -> list[str]:
        """Return the driver's calls that change a process: the operation, and the number of the process."""
        numbers = {str(p.pid): str(n) for n, p in enumerate(self.processes)}
        lines = (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []
        return [f"{name} {numbers.get(pid, pid)}" for name, pid in map(str.split, lines)]

    def stopped(self, process: ProcessId) -> bool:
        """Return whether a process is stopped, as the double's checkpoint does."""
        status = process_id.status(process.pid)
        return status is not None and status.state == "T"

    def close(self) -> None:
        """Kill the processes."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
