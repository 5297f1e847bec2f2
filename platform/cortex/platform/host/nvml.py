"""Asks NVML what GPUs there are and who uses them, in a process of its own.

NVML is a library of the driver: a call may fail, never return, or take its process down. So the agent never
calls it. `python -m cortex.platform.host.nvml` answers each line `read` with one line of JSON, an `Answer`, and ends
with its standard input or with its parent, also out of a call that hangs. What does not answer is killed
(`devices.py`). One field that cannot be read is null and the rest stands.

Only NVML is called, never CUDA: a CUDA context would itself take memory on every GPU. This is the only module
that imports pynvml, and only as a program.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from cortex.platform.parent_death import die_with_parent

MIB = 1024 * 1024


class Process(Struct, frozen=True, kw_only=True):
    """A process on a GPU. Its memory is unknown where the driver does not tell it, as on WSL."""

    pid: int
    memory_mb: int | None = None


class Gpu(Struct, frozen=True, kw_only=True):
    """What one GPU tells of itself; None is what it does not."""

    index: int
    uuid: str | None = None
    name: str | None = None
    total_mb: int | None = None
    used_mb: int | None = None
    """Without what the driver keeps for itself, where it tells them apart (`reserved_mb` is not None)."""
    reserved_mb: int | None = None
    compute_capability: str | None = None
    utilization_pct: int | None = None
    temp_c: int | None = None
    mig: bool = False
    """Whether it is partitioned, so that only its partitions can be computed on."""
    partitions: int = 0
    processes: tuple[Process, ...] | None = None
    error: str = ""
    """Why it cannot be addressed or its memory not be read."""
    lost: bool = False
    """Whether it fell off the bus or needs a reset."""


class Answer(Struct, frozen=True, kw_only=True):
    """One reading, or the reason why there is none."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    error: str = ""
    absent: bool = False
    """Whether NVML is not installed at all, which is how a host without GPUs looks."""


class Nvml:
    """NVML, loaded and initialised. What is asked of it may fail; each failure is kept with its question."""

    def __init__(self) -> None:
        import pynvml  # here, so that the agent can import this module for its structs

        self._lib: Any = pynvml
        self.failed: dict[str, Exception] = {}
        pynvml.nvmlInit()

    def ask(self, question: str, *args: object) -> Any:
        """Call `nvml<question>`. Return None, and keep why, when that fails."""
        try:
            call: Callable[..., Any] = getattr(self._lib, f"nvml{question}")
            return call(*args)
        except Exception as error:  # NVMLError, or whatever ctypes and decoding make of a driver's answer
            self.failed[question] = error
            return None

    def read(self) -> Answer:
        """Return what all GPUs tell now."""
        self.failed.clear()
        count = self.ask("DeviceGetCount")
        if count is None:
            return Answer(error=f"NVML does not count its GPUs: {self.failed['DeviceGetCount']}")
        gpus = tuple(self._gpu(index) for index in range(count))
        cuda = self.ask("SystemGetCudaDriverVersion_v2")
        return Answer(
            gpus=gpus,
            driver=self.ask("SystemGetDriverVersion"),
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
        )

    def _gpu(self, index: int) -> Gpu:
        self.failed.clear()
        handle = self.ask("DeviceGetHandleByIndex", index)
        if handle is None:
            return Gpu(index=index, error=str(self.failed["DeviceGetHandleByIndex"]), lost=self._lost())
        uuid = self.ask("DeviceGetUUID", handle)
        memory, reserved = self._memory(handle)
        capability = self.ask("DeviceGetCudaComputeCapability", handle)
        rates = self.ask("DeviceGetUtilizationRates", handle)
        mig = (self.ask("DeviceGetMigMode", handle) or [0])[0] == 1
        error = self.failed.get("DeviceGetUUID") or (None if memory else self.failed["DeviceGetMemoryInfo"])
        return Gpu(
            index=index,
            uuid=uuid,
            name=self.ask("DeviceGetName", handle),
            total_mb=memory.total // MIB if memory else None,
            used_mb=memory.used // MIB if memory else None,
            reserved_mb=reserved,
            compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
            utilization_pct=rates.gpu if rates else None,
            temp_c=self.ask("DeviceGetTemperature", handle, self._lib.NVML_TEMPERATURE_GPU),
            mig=mig,
            partitions=self._partitions(handle) if mig else 0,
            processes=self._processes(handle),
            error=str(error or ""),
            lost=self._lost(),
        )

    def _memory(self, handle: Any) -> tuple[Any, int | None]:
        """Return the memory, and what of it the driver keeps for itself: drivers before 510 count that as used."""
        memory = self.ask("DeviceGetMemoryInfo", handle, self._lib.nvmlMemory_v2)
        if memory is not None:
            return memory, memory.reserved // MIB
        return self.ask("DeviceGetMemoryInfo", handle), None

    def _processes(self, handle: Any) -> tuple[Process, ...] | None:
        """Return who computes or draws on a GPU, or None when it does not say who computes."""
        found: dict[int, int | None] = {}
        for kind in ("Compute", "Graphics", "MPSCompute"):
            question = f"DeviceGet{kind}RunningProcesses"
            listed = self.ask(f"{question}_v3", handle)
            if listed is None:  # drivers before 510; and v3 fails when many processes come at once
                listed = self.ask(f"{question}_v2", handle)
            if listed is None and kind == "Compute":
                return None
            for process in listed or ():
                # One that both computes and draws is listed twice with the same memory.
                memory = process.usedGpuMemory
                memory_mb = None if memory is None else memory // MIB
                found[process.pid] = max(found.get(process.pid) or 0, memory_mb or 0) or memory_mb
        return tuple(Process(pid=pid, memory_mb=memory) for pid, memory in sorted(found.items()))

    def _partitions(self, handle: Any) -> int:
        most = self.ask("DeviceGetMaxMigDeviceCount", handle) or 0
        found = (self.ask("DeviceGetMigDeviceHandleByIndex", handle, n) for n in range(most))
        return sum(partition is not None for partition in found)

    def _lost(self) -> bool:
        gone = (self._lib.NVMLError_GpuIsLost, self._lib.NVMLError_ResetRequired)
        return any(isinstance(error, gone) for error in self.failed.values())


def _load() -> Nvml | Answer:
    try:
        return Nvml()
    except ImportError:
        return Answer(error="the package nvidia-ml-py is not installed", absent=True)
    except Exception as error:  # NVMLError, which only pynvml can name, or whatever loading a library raises
        return Answer(error=str(error), absent=type(error).__name__ == "NVMLError_LibraryNotFound")


def main() -> None:
    """Answer until nobody asks any more."""
    # The end of the standard input goes unnoticed in a call that hangs.
    die_with_parent()
    # Answers leave by a descriptor of their own: drivers print to the standard output.
    with open(os.dup(1), "wb") as out, contextlib.suppress(BrokenPipeError):  # noqa: PTH123
        os.dup2(2, 1)
        nvml: Nvml | Answer | None = None
        for line in sys.stdin.buffer:
            if line.strip() != b"read":
                continue
            nvml = nvml or _load()
            answer = nvml.read() if isinstance(nvml, Nvml) else nvml
            out.write(msgspec.json.encode(answer) + b"\n")
            out.flush()


if __name__ == "__main__":
    main()
