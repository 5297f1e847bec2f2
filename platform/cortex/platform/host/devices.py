"""A host's devices: its GPUs from NVML or from `cortex.toml`; else its CPU, with RAM.

`Devices.read()` never raises and returns quickly. NVML runs in a child process (`nvml.py`); a child that does not
answer is killed and replaced later, and at most one exists. A failed read keeps the previous values: a host with GPUs
never becomes a CPU host, because functions would start on the wrong device. Apart from the child, everything is a pure
function of its answer.

A GPU is identified by its UUID. CUDA may order GPUs by speed, and NVML orders them by PCI bus, so indexes are
ambiguous.
"""

import asyncio
import contextlib
import platform
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil
from msgspec import Struct
from msgspec.structs import replace

from cortex.platform.host.nvml import MIB, Answer, Gpu
from cortex.platform.host.nvml_reader import FIRST_READ_S, READ_S, READER, RETRY_S, NvmlReader
from cortex.platform.process.termination import signal_group
from cortex.platform.record import Device, Held, Instance
from cortex.platform.settings import Agent

KERNEL_GPUS = Path("/proc/driver/nvidia/gpus")
"""Where the NVIDIA driver lists its GPUs, whether or not NVML works."""

NAMELESS = "nvml-"
"""Prefix of the id of a GPU without a readable UUID."""
UNEXPLAINED_MB = 512
"""Used memory up to this without a listed process counts as the driver's own."""


class Reading(Struct, frozen=True, kw_only=True):
    """The current state of a host's devices; with a problem, the last known one."""

    devices: tuple[Device, ...]
    held: tuple[Held, ...] = ()
    unlisted: frozenset[str] = frozenset()
    """Devices that may have processes missing from `held`."""
    problem: str = ""
    absent: bool = False
    """Whether the problem is only that NVML is not installed, as on any host without GPUs."""
    driver: str = ""
    cuda: str = ""
    """The newest CUDA that the driver supports."""


class Devices:
    """The devices of this host, refreshed by each `read()`."""

    def __init__(
        self,
        settings: Agent,
        *,
        timeout_s: float = READ_S,
        first_s: float = FIRST_READ_S,
        retry_s: float = RETRY_S,
        command: Sequence[str] = READER,
        kernel_gpus: Path = KERNEL_GPUS,
        clock: Callable[[], float] = time.monotonic,
        kill: Callable[[int, signal.Signals], None] = signal_group,
    ) -> None:
        self._settings = settings
        self._kernel_gpus = kernel_gpus
        self._reader = NvmlReader(command, timeout_s, first_s, retry_s, clock, kill)
        self._last = Reading(devices=())
        self._answered = False
        self._reading = asyncio.Lock()

    async def read(self) -> Reading:
        """Return the current reading, within a little more than `timeout_s`."""
        if self._settings.devices and not any(d.uuid for d in self._settings.devices):
            return _unlisted_reading(discover(self._settings))
        async with self._reading:
            answer = await self._reader.read()
            if answer.error:
                self._last = reading_without_answer(self._settings, answer, self._last)
            else:
                before = self._last.devices if self._answered else ()
                self._last = reading_of(self._settings, answer, before, _command)
                self._answered = True
        # Without the NVML library, the kernel's GPUs may belong to another container.
        if self._last.devices or (answer.error and not answer.absent and self._kernel_has_gpus()):
            return self._last
        fallback = _unlisted_reading((cpu(self._settings),))
        return replace(self._last, devices=fallback.devices, unlisted=fallback.unlisted)

    async def close(self) -> None:
        """End the child."""
        await self._reader.close()

    def _kernel_has_gpus(self) -> bool:
        with contextlib.suppress(OSError):
            return any(self._kernel_gpus.iterdir())
        return False


def discover(settings: Agent) -> tuple[Device, ...]:
    """Return the devices declared in `cortex.toml`, else the CPU, without NVML."""
    return _of_settings(settings) or (cpu(settings),)


def cpu(settings: Agent) -> Device:
    """Return the CPU with all RAM."""
    memory = psutil.virtual_memory()
    total = memory.total // MIB
    return Device(
        id="cpu",
        name=platform.processor() or platform.machine(),
        kind="cpu",
        total_mb=total,
        used_mb=(memory.total - memory.available) // MIB,
        reserve_mb=min(settings.reserve_mb, total // 2),
    )


def reading_of(settings: Agent, answer: Answer, before: Sequence[Device], command: Callable[[int], str]) -> Reading:
    """Return the reading of an answer; GPUs of `before` that it lacks stay listed as missing."""
    identified = _identify(answer.gpus, before)
    current = {id_: _device(settings, gpu, id_, previous) for id_, gpu, previous in identified}
    missing = (_missing(d) for d in before if d.id not in current and not d.id.startswith(NAMELESS))
    devices = (*current.values(), *missing)
    if settings.devices:
        devices = tuple(_measure(d, current.get(d.id)) for d in _of_settings(settings))
    ids = {d.id for d in devices}
    held = tuple(
        Held(device=id_, pid=p.pid, command=command(p.pid), memory_mb=p.memory_mb)
        for id_, gpu, _ in identified
        for p in gpu.processes or ()
        if id_ in ids
    )
    silent = {id_ for id_, gpu, _ in identified if gpu.processes is None}
    problems = [f"GPU {gpu.index} ({id_}): {gpu.error}" for id_, gpu, _ in identified if gpu.error]
    problems += [f"{d.id}: {d.note}" for d in devices if d.id not in current and d.note]
    return Reading(
        devices=devices,
        held=held,
        unlisted=frozenset(d.id for d in devices if d.id not in current or d.id in silent or not _is_complete(d, held)),
        problem="; ".join(problems),
        driver=answer.driver or "",
        cuda=answer.cuda or "",
    )


def reading_without_answer(settings: Agent, answer: Answer, last: Reading) -> Reading:
    """Return the last reading without usage numbers, for when NVML gives no answer."""
    devices = _of_settings(settings) or last.devices
    return replace(
        last,
        devices=tuple(replace(d, used_mb=None, utilization_pct=None, temp_c=None, energy_mj=None) for d in devices),
        unlisted=frozenset(d.id for d in devices),
        problem=answer.error,
        absent=answer.absent,
    )


def with_foreign_memory(
    reading: Reading, workers: Mapping[int, Instance], before: Iterable[Device]
) -> tuple[Device, ...]:
    """Return the devices of a reading with their foreign memory; unreadable ones keep the value of `before`."""
    previous = {d.id: d.foreign_mb for d in before}
    return tuple(
        replace(
            d,
            foreign_mb=previous.get(d.id, 0) if d.used_mb is None else foreign_mb(d, reading.held, workers),
        )
        if d.kind == "gpu"
        else d
        for d in reading.devices
    )


def foreign_mb(device: Device, held: Sequence[Held], workers: Mapping[int, Instance]) -> int:
    """Return how much of a GPU is taken by others. `ours` has every process of every instance that may hold some,
    also of one whose processes have ended but whose memory is still awaited.

    (1) the listed processes explain the used memory: the memory of processes that are not cortex's;
    (2) they do not (unknown sizes, processes of other containers, memory not released): the used memory, less that
        held or reserved by cortex's instances, less the driver's own; and at least (1).
    """
    holders = [h for h in held if h.device == device.id]
    listed = sum(h.memory_mb or 0 for h in holders if h.pid not in workers and h.command)
    if device.used_mb is None or _is_complete(device, held):  # (1)
        return listed
    instances = {i.id: i for i in workers.values() if device.id in i.devices}  # (2)
    reserved_mb = 0
    for instance in instances.values():
        sizes = [h.memory_mb for h in holders if h.pid in workers and workers[h.pid].id == instance.id]
        readable = [mb for mb in sizes if mb is not None]
        reserved_mb += sum(readable) if readable and len(readable) == len(sizes) else instance.held_mb
    return max(listed, device.used_mb - reserved_mb - UNEXPLAINED_MB)


def _is_complete(device: Device, held: Iterable[Held]) -> bool:
    """Return whether the listed processes are complete: visible, of known memory, and adding up to the used memory."""
    holders = [h for h in held if h.device == device.id]
    if not all(h.command and h.memory_mb is not None for h in holders):
        return False
    return (device.used_mb or 0) - sum(h.memory_mb or 0 for h in holders) <= UNEXPLAINED_MB


# Conversion of NVML's answer to devices.


def _identify(gpus: Iterable[Gpu], before: Iterable[Device]) -> list[tuple[str, Gpu, Device | None]]:
    """Match each GPU with its id and previous device: by UUID, or by index when the UUID is unreadable."""
    ids = {d.id: d for d in before}
    uuids = {gpu.uuid for gpu in gpus}
    places = {d.index: d for d in ids.values() if d.index is not None and d.id not in uuids}
    return [
        (gpu.uuid, gpu, ids.get(gpu.uuid))
        if gpu.uuid
        else (previous.id if (previous := places.get(gpu.index)) else f"{NAMELESS}{gpu.index}", gpu, previous)
        for gpu in gpus
    ]


def _device(settings: Agent, gpu: Gpu, id_: str, previous: Device | None) -> Device:
    """Return a GPU as a device. It has no capacity, and a note with the reason, when

    (1) it is lost;
    (2) it is partitioned (MIG);
    (3) it has no UUID, so it cannot be passed to a worker;
    (4) its memory size is unknown.
    """
    total = gpu.total_mb or (previous.total_mb if previous else 0)
    note = ""
    if gpu.lost:  # (1)
        note = "the GPU is lost; it or the host needs a reset"
    elif gpu.mig:  # (2)
        note = f"MIG mode is on ({gpu.partitions} partitions); cortex uses whole GPUs"
    elif id_.startswith(NAMELESS):  # (3)
        note = "its UUID cannot be read"
    elif not total:  # (4)
        note = "its memory cannot be read; declare it under [[agent.devices]] with name, vram_mb and uuid"
    reserve = min(settings.reserve_mb + (gpu.reserved_mb or 0), total // 2)
    if gpu.used_mb is None and previous and not previous.note:
        reserve = previous.reserve_mb
    return Device(
        id=id_,
        name=gpu.name or (previous.name if previous else "GPU"),
        kind="gpu",
        total_mb=total,
        used_mb=gpu.used_mb,
        reserve_mb=total if note else reserve,
        index=gpu.index,
        compute_capability=gpu.compute_capability or (previous.compute_capability if previous else ""),
        utilization_pct=gpu.utilization_pct,
        temp_c=gpu.temp_c,
        energy_mj=gpu.energy_mj,
        note=note,
    )


def _missing(device: Device) -> Device:
    return replace(
        device,
        used_mb=None,
        utilization_pct=None,
        temp_c=None,
        energy_mj=None,
        reserve_mb=device.total_mb,
        note="NVML no longer lists this GPU",
    )


def _unlisted_reading(devices: tuple[Device, ...]) -> Reading:
    """Return a reading of devices whose processes cannot be listed."""
    return Reading(devices=devices, unlisted=frozenset(d.id for d in devices))


def _of_settings(settings: Agent) -> tuple[Device, ...]:
    return tuple(
        Device(
            id=d.uuid or f"{d.kind}-{n}",
            name=d.name,
            kind=d.kind,
            total_mb=d.vram_mb,
            reserve_mb=min(settings.reserve_mb, d.vram_mb // 2),
        )
        for n, d in enumerate(settings.devices)
    )


def _measure(declared: Device, gpu: Device | None) -> Device:
    """Return a declared device with NVML's measurements, if NVML lists its GPU."""
    if gpu is None:
        return declared
    return replace(
        declared,
        used_mb=gpu.used_mb,
        index=gpu.index,
        compute_capability=gpu.compute_capability,
        utilization_pct=gpu.utilization_pct,
        temp_c=gpu.temp_c,
        energy_mj=gpu.energy_mj,
    )


def _command(pid: int) -> str:
    """Return a process's name. psutil may read the command line, which blocks on a stuck process."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""
