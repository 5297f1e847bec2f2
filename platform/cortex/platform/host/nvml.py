"""Reads the GPUs and their processes from NVML, in a separate process.

NVML is a library of the driver: a call may fail, hang or crash its process, so the agent never calls it.
`python -m cortex.platform.host.nvml` answers each line `read` with one line of JSON, an `Answer`, and ends with its
standard input or its parent, even during a hung call. `nvml_reader.py` kills one that does not answer. An unreadable
field is null; the others are unaffected.

It calls only NVML, never CUDA: a CUDA context would take memory on every GPU. This is the only module that imports
pynvml, and only as a program.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from cortex.platform.process.parent_death import die_with_parent

MIB = 1024 * 1024


class Process(Struct, frozen=True, kw_only=True):
    """A process on a GPU. Its memory is None where the driver does not report it, for example on WSL."""

    pid: int
    memory_mb: int | None = None


class Gpu(Struct, frozen=True, kw_only=True):
    """One GPU's values; None where unreadable."""

    index: int
    uuid: str | None = None
    name: str | None = None
    total_mb: int | None = None
    used_mb: int | None = None
    """Excludes the driver's reserved memory if `reserved_mb` is not None."""
    reserved_mb: int | None = None
    compute_capability: str | None = None
    utilization_pct: int | None = None
    temp_c: int | None = None
    energy_mj: int | None = None
    """Millijoules since the driver was loaded."""
    mig: bool = False
    """Whether it is partitioned, so that only its partitions are usable."""
    partitions: int = 0
    processes: tuple[Process, ...] | None = None
    error: str = ""
    """The reason why its handle, UUID or memory is unreadable."""
    lost: bool = False
    """Whether it fell off the bus or needs a reset."""


class Answer(Struct, frozen=True, kw_only=True):
    """One reading, or the error that prevented it."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    error: str = ""
    absent: bool = False
    """Whether NVML is not installed at all, which is how a host without GPUs looks."""


class Nvml:
    """NVML, loaded and initialised. Failures of calls are recorded by function in `failed`."""

    def __init__(self) -> None:
        import pynvml  # here, so that the agent can import this module for its structs

        self._lib: Any = pynvml
        self.failed: dict[str, Exception] = {}
        pynvml.nvmlInit()

    def call(self, function: str, *args: object) -> Any:
        """Call `nvml<function>`. On failure, record the error and return None."""
        try:
            method: Callable[..., Any] = getattr(self._lib, f"nvml{function}")
            return method(*args)
        except Exception as error:  # NVMLError, or whatever ctypes and decoding make of a driver's answer
            self.failed[function] = error
            return None

    def read(self) -> Answer:
        """Read all GPUs."""
        self.failed.clear()
        count = self.call("DeviceGetCount")
        if count is None:
            return Answer(error=f"NVML does not count its GPUs: {self.failed['DeviceGetCount']}")
        gpus = tuple(self._gpu(index) for index in range(count))
        cuda = self.call("SystemGetCudaDriverVersion_v2")
        return Answer(
            gpus=gpus,
            driver=self.call("SystemGetDriverVersion"),
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
        )

    def _gpu(self, index: int) -> Gpu:
        self.failed.clear()
        handle = self.call("DeviceGetHandleByIndex", index)
        if handle is None:
            return Gpu(index=index, error=str(self.failed["DeviceGetHandleByIndex"]), lost=self._lost())
        uuid = self.call("DeviceGetUUID", handle)
        memory, reserved = self._memory(handle)
        capability = self.call("DeviceGetCudaComputeCapability", handle)
        rates = self.call("DeviceGetUtilizationRates", handle)
        mig = (self.call("DeviceGetMigMode", handle) or [0])[0] == 1
        error = self.failed.get("DeviceGetUUID") or (None if memory else self.failed["DeviceGetMemoryInfo"])
        return Gpu(
            index=index,
            uuid=uuid,
            name=self.call("DeviceGetName", handle),
            total_mb=memory.total // MIB if memory else None,
            used_mb=memory.used // MIB if memory else None,
            reserved_mb=reserved,
            compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
            utilization_pct=rates.gpu if rates else None,
            temp_c=self.call("DeviceGetTemperature", handle, self._lib.NVML_TEMPERATURE_GPU),
            energy_mj=self.call("DeviceGetTotalEnergyConsumption", handle),
            mig=mig,
            partitions=self._partitions(handle) if mig else 0,
            processes=self._processes(handle),
            error=str(error or ""),
            lost=self._lost(),
        )

    def _memory(self, handle: Any) -> tuple[Any, int | None]:
        """Return the memory and the driver's reserved MiB, which drivers before 510 count as used (None)."""
        memory = self.call("DeviceGetMemoryInfo", handle, self._lib.nvmlMemory_v2)
        if memory is not None:
            return memory, memory.reserved // MIB
        return self.call("DeviceGetMemoryInfo", handle), None

    def _processes(self, handle: Any) -> tuple[Process, ...] | None:
        """Return the compute and graphics processes of a GPU, or None when the compute processes are unreadable."""
        processes: dict[int, int | None] = {}
        for kind in ("Compute", "Graphics", "MPSCompute"):
            function = f"DeviceGet{kind}RunningProcesses"
            entries = self.call(f"{function}_v3", handle)
            if entries is None:  # drivers before 510; and v3 fails when many processes come at once
                entries = self.call(f"{function}_v2", handle)
            if entries is None and kind == "Compute":
                return None
            for process in entries or ():
                # One that both computes and draws is listed twice with the same memory.
                memory = process.usedGpuMemory
                memory_mb = None if memory is None else memory // MIB
                processes[process.pid] = max(processes.get(process.pid) or 0, memory_mb or 0) or memory_mb
        return tuple(Process(pid=pid, memory_mb=memory) for pid, memory in sorted(processes.items()))

    def _partitions(self, handle: Any) -> int:
        maximum = self.call("DeviceGetMaxMigDeviceCount", handle) or 0
        handles = (self.call("DeviceGetMigDeviceHandleByIndex", handle, n) for n in range(maximum))
        return sum(partition is not None for partition in handles)

    def _lost(self) -> bool:
        lost_errors = (self._lib.NVMLError_GpuIsLost, self._lib.NVMLError_ResetRequired)
        return any(isinstance(error, lost_errors) for error in self.failed.values())


def _load() -> Nvml | Answer:
    try:
        return Nvml()
    except ImportError:
        return Answer(error="the package nvidia-ml-py is not installed", absent=True)
    except Exception as error:  # NVMLError, which only pynvml can name, or whatever loading a library raises
        return Answer(error=str(error), absent=type(error).__name__ == "NVMLError_LibraryNotFound")


def main() -> None:
    """Answer requests until the standard input ends."""
    # A hung call does not notice the end of the standard input.
    die_with_parent()
    # Answers use their own descriptor, because drivers print to the standard output.
    with open(os.dup(1), "wb") as out, contextlib.suppress(BrokenPipeError):  # noqa: PTH123 (a descriptor, not a path)
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
