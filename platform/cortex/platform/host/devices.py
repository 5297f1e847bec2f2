"""What a host computes on: its GPUs as NVML tells, or as `cortex.toml` declares; else its CPU, with RAM.

`Devices.read()` never raises and never takes long. NVML is asked through a child process (`nvml.py`); a child
that does not answer is killed, and another one started later, never two at once. What a failing read cannot
tell stays as it was: a host whose GPUs were seen once never turns into a CPU host, because functions would be
started there on the wrong device. Everything but the asking is a pure function of the answer.

A GPU is known by its UUID. CUDA may order GPUs by speed, NVML orders them by PCI bus, so indexes name nothing.
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
from cortex.platform.record import Device, Held, Instance
from cortex.platform.settings import Agent
from cortex.platform.workers.process import signal_group

KERNEL_GPUS = Path("/proc/driver/nvidia/gpus")
"""Where the NVIDIA driver lists its GPUs, whether or not NVML works."""

NAMELESS = "nvml-"
"""How the id begins of a GPU that does not tell its UUID."""
UNEXPLAINED_MB = 512
"""Used memory that no listed process explains, up to this, is the driver's own."""


class Reading(Struct, frozen=True, kw_only=True):
    """What is known of a host's devices now. With a problem, it is what was known before."""

    devices: tuple[Device, ...]
    held: tuple[Held, ...] = ()
    unlisted: frozenset[str] = frozenset()
    """Devices where a process that `held` does not name may be present all the same."""
    problem: str = ""
    absent: bool = False
    """Whether the problem is only that NVML is not installed, as on any host without GPUs."""
    driver: str = ""
    cuda: str = ""
    """The newest CUDA that the driver supports."""


class Devices:
    """The devices of this host, asked again at each `read()`."""

    def __init__(
        self,
        settings: Agent,
        *,
        known: Iterable[Device] = (),
        timeout_s: float = READ_S,
        first_s: float = FIRST_READ_S,
        retry_s: float = RETRY_S,
        command: Sequence[str] = READER,
        kernel_gpus: Path = KERNEL_GPUS,
        clock: Callable[[], float] = time.monotonic,
        kill: Callable[[int, signal.Signals], None] = signal_group,
    ) -> None:
        """`known` are the devices that the last agent of this host saw; its GPUs count until NVML answers."""
        self._settings = settings
        self._kernel_gpus = kernel_gpus
        self._reader = NvmlReader(command, timeout_s, first_s, retry_s, clock, kill)
        self._last = Reading(devices=tuple(d for d in known if d.index is not None))
        self._answered = False
        self._reading = asyncio.Lock()

    async def read(self) -> Reading:
        """Return what is known now, within a little more than `timeout_s`."""
        if self._settings.devices and not any(d.uuid for d in self._settings.devices):
            return _plain(discover(self._settings))
        async with self._reading:
            answer = await self._reader.ask()
            if answer.error:
                self._last = unread(self._settings, answer, self._last)
            else:
                before = self._last.devices if self._answered else ()
                self._last = reading_of(self._settings, answer, before, _command)
                self._answered = True
        # Without its library NVML tells nothing; then the kernel's GPUs may well be another container's.
        if self._last.devices or (answer.error and not answer.absent and self._kernel_has_gpus()):
            return self._last
        plain = _plain((cpu(self._settings),))
        return replace(self._last, devices=plain.devices, unlisted=plain.unlisted)

    async def close(self) -> None:
        """End the child."""
        await self._reader.close()

    def _kernel_has_gpus(self) -> bool:
        with contextlib.suppress(OSError):
            return any(self._kernel_gpus.iterdir())
        return False


def discover(settings: Agent) -> tuple[Device, ...]:
    """Return the devices declared in `cortex.toml`, else the CPU: what is known without asking anybody."""
    return _declared(settings) or (cpu(settings),)


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
    """Return what an answer says, and of GPUs it says nothing about, that they were there `before`."""
    known = _identified(answer.gpus, before)
    found = {id_: _device(settings, gpu, id_, was) for id_, gpu, was in known}
    gone = (_gone(d) for d in before if d.id not in found and not d.id.startswith(NAMELESS))
    devices = (*found.values(), *gone)
    if settings.devices:
        devices = tuple(_measured(d, found.get(d.id)) for d in _declared(settings))
    here = {d.id for d in devices}
    held = tuple(
        Held(device=id_, pid=p.pid, command=command(p.pid), memory_mb=p.memory_mb)
        for id_, gpu, _ in known
        for p in gpu.processes or ()
        if id_ in here
    )
    silent = {id_ for id_, gpu, _ in known if gpu.processes is None}
    problems = [f"GPU {gpu.index} ({id_}): {gpu.error}" for id_, gpu, _ in known if gpu.error]
    problems += [f"{d.id}: {d.note}" for d in devices if d.id not in found and d.note]
    return Reading(
        devices=devices,
        held=held,
        unlisted=frozenset(d.id for d in devices if d.id not in found or d.id in silent or not _explained(d, held)),
        problem="; ".join(problems),
        driver=answer.driver or "",
        cuda=answer.cuda or "",
    )


def unread(settings: Agent, answer: Answer, last: Reading) -> Reading:
    """Return what is still known when there is no answer: the devices and who was on them, not how full they are."""
    devices = _declared(settings) or last.devices
    return replace(
        last,
        devices=tuple(replace(d, used_mb=None, utilization_pct=None, temp_c=None) for d in devices),
        unlisted=frozenset(d.id for d in devices),
        problem=answer.error,
        absent=answer.absent,
    )


def accounted(reading: Reading, ours: Mapping[int, Instance], before: Iterable[Device]) -> tuple[Device, ...]:
    """Return the devices of a reading with their foreign memory; as it was `before` where they could not be read."""
    was = {d.id: d.foreign_mb for d in before}
    return tuple(
        replace(
            d,
            foreign_mb=was.get(d.id, 0) if d.used_mb is None else foreign_mb(d, reading.held, ours),
        )
        if d.kind == "gpu"
        else d
        for d in reading.devices
    )


def foreign_mb(device: Device, held: Sequence[Held], ours: Mapping[int, Instance]) -> int:
    """Return how much of a GPU is taken by others. `ours` has every process of every instance that may hold some,
    also of one whose processes have ended but whose memory is still awaited.

    (1) the listed processes explain what is used: what those hold that are not ours;
    (2) they do not (memory not told, processes of other containers, memory nobody gave back): what is used, less
        what our instances hold or reserved, less the driver's own; and no less than (1).
    """
    there = [h for h in held if h.device == device.id]
    listed = sum(h.memory_mb or 0 for h in there if h.pid not in ours and h.command)
    if device.used_mb is None or _explained(device, held):  # (1)
        return listed
    mine = {i.id: i for i in ours.values() if device.id in i.devices}  # (2)
    taken = 0
    for instance in mine.values():
        told = [h.memory_mb for h in there if h.pid in ours and ours[h.pid].id == instance.id]
        known = [mb for mb in told if mb is not None]
        taken += sum(known) if known and len(known) == len(told) else instance.memory_mb
    return max(listed, device.used_mb - taken - UNEXPLAINED_MB)


def _explained(device: Device, held: Iterable[Held]) -> bool:
    """Whether the listed processes are all there are: known here, their memory told, and adding up."""
    there = [h for h in held if h.device == device.id]
    if not all(h.command and h.memory_mb is not None for h in there):
        return False
    return (device.used_mb or 0) - sum(h.memory_mb or 0 for h in there) <= UNEXPLAINED_MB


# From what NVML says to devices.


def _identified(gpus: Iterable[Gpu], before: Iterable[Device]) -> list[tuple[str, Gpu, Device | None]]:
    """Give each GPU its id and what was known of it. One that does not tell its UUID now is known by its place."""
    ids = {d.id: d for d in before}
    told = {gpu.uuid for gpu in gpus}
    places = {d.index: d for d in ids.values() if d.index is not None and d.id not in told}
    return [
        (gpu.uuid, gpu, ids.get(gpu.uuid))
        if gpu.uuid
        else (was.id if (was := places.get(gpu.index)) else f"{NAMELESS}{gpu.index}", gpu, was)
        for gpu in gpus
    ]


def _device(settings: Agent, gpu: Gpu, id_: str, was: Device | None) -> Device:
    """Return a GPU as a device. It takes no instance, and says why, when

    (1) it is lost;
    (2) it is partitioned (MIG);
    (3) it has no UUID, so a worker could not be told of it;
    (4) nobody knows how much memory it has.
    """
    total = gpu.total_mb or (was.total_mb if was else 0)
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
    if gpu.used_mb is None and was and not was.note:
        reserve = was.reserve_mb
    return Device(
        id=id_,
        name=gpu.name or (was.name if was else "GPU"),
        kind="gpu",
        total_mb=total,
        used_mb=gpu.used_mb,
        reserve_mb=total if note else reserve,
        index=gpu.index,
        compute_capability=gpu.compute_capability or (was.compute_capability if was else ""),
        utilization_pct=gpu.utilization_pct,
        temp_c=gpu.temp_c,
        note=note,
    )


def _gone(device: Device) -> Device:
    return replace(
        device,
        used_mb=None,
        utilization_pct=None,
        temp_c=None,
        reserve_mb=device.total_mb,
        note="NVML no longer lists this GPU",
    )


def _plain(devices: tuple[Device, ...]) -> Reading:
    """Return a reading of devices that nobody tells the processes of."""
    return Reading(devices=devices, unlisted=frozenset(d.id for d in devices))


def _declared(settings: Agent) -> tuple[Device, ...]:
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


def _measured(declared: Device, found: Device | None) -> Device:
    """Return a declared device with what NVML measures of the GPU it names, if NVML knows it."""
    if found is None:
        return declared
    return replace(
        declared,
        used_mb=found.used_mb,
        index=found.index,
        compute_capability=found.compute_capability,
        utilization_pct=found.utilization_pct,
        temp_c=found.temp_c,
    )


def _command(pid: int) -> str:
    """Return a process's name. Not by psutil: it may look at the command line, which blocks on a stuck process."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


# Asking.
