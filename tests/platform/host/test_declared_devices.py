"""Declared devices, and memory of other processes."""

import os

import msgspec
import pytest
from msgspec.structs import replace

from cortex.platform.host.devices import (
    UNEXPLAINED_MB,
    Reading,
    discover,
    foreign_mb,
    with_foreign_memory,
)
from cortex.platform.record import Device, Held, Instance, Use
from cortex.platform.scheduling.placement import NoRoom, Placement, When, place
from cortex.platform.settings import Agent, DeclaredDevice
from tests.platform.host.nvml_stub import CPU, UUIDS, Tell, read
from tests.support.factories import a_host, a_need, an_instance

DECLARED = Agent(devices=(DeclaredDevice(name="Radeon", vram_mb=16_000), DeclaredDevice(name="x", vram_mb=800)))


async def test_declared_devices_replace_discovery(nvml: Tell) -> None:
    reading = await read(DECLARED, command=("/nonexistent",))

    assert [(d.id, d.name, d.total_mb, d.reserve_mb, d.used_mb) for d in reading.devices] == [
        ("gpu-0", "Radeon", 16_000, 1024, None),
        ("gpu-1", "x", 800, 400, None),
    ]
    assert reading.problem == ""
    assert reading.unlisted == {"gpu-0", "gpu-1"}


async def test_a_declared_device_that_names_a_real_gpu_is_measured(nvml: Tell) -> None:
    nvml(f"process 0 compute {os.getpid()} 900", f"process 1 compute {os.getpid()} 900")
    settings = Agent(devices=(DeclaredDevice(name="half", vram_mb=12_000, uuid=UUIDS[1]),))

    reading = await read(settings)

    assert [(d.id, d.name, d.total_mb, d.used_mb, d.budget_mb) for d in reading.devices] == [
        (UUIDS[1], "half", 12_000, 1000, 12_000 - 1024)
    ]
    assert [h.device for h in reading.held] == [UUIDS[1]]


async def test_a_declared_device_needs_no_nvml() -> None:
    settings = Agent(devices=(DeclaredDevice(name="Instinct", vram_mb=64_000, uuid="GPU-abc"),))

    reading = await read(settings)

    assert [(d.id, d.total_mb, d.budget_mb) for d in reading.devices] == [("GPU-abc", 64_000, 64_000 - 1024)]
    assert reading.absent


def test_discovery_without_nvml_returns_declared_devices_or_the_cpu() -> None:
    assert [d.id for d in discover(DECLARED)] == ["gpu-0", "gpu-1"]
    assert [d.id for d in discover(Agent())] == [CPU]


# Foreign memory.


GPU = Device(id="gpu-0", name="a", kind="gpu", total_mb=24_000)


def held(pid: int, memory_mb: int | None, *, command: str = "python", device: str = "gpu-0") -> Held:
    return Held(device=device, pid=pid, command=command, memory_mb=memory_mb)


INSTANCES = {
    1: an_instance("a", memory_mb=8000),
    2: an_instance("a", memory_mb=8000),
    3: an_instance("b", memory_mb=4000),
    4: an_instance("elsewhere", memory_mb=2000, devices=("gpu-1",)),
}
UNEXPLAINED_USED = 20_000 - UNEXPLAINED_MB


@pytest.mark.parametrize(
    ("used_mb", "there", "ours", "foreign"),
    [
        # (1) the listed processes explain what is used
        (0, (), {}, 0),
        (300, (), {}, 0),
        (5000, (held(9, 5000),), {}, 5000),
        (5200, (held(1, 3000), held(2, 1500), held(9, 500)), INSTANCES, 500),
        (5000, (held(1, 5000), held(9, 7000, device="gpu-1")), INSTANCES, 0),
        (None, (held(1, 5000), held(9, 500)), INSTANCES, 500),
        # (2) memory that is not told: what ours reserved counts
        (20_000, (held(1, None), held(9, None)), {1: INSTANCES[1]}, UNEXPLAINED_USED - 8000),
        (20_000, (held(1, None), held(3, 3000)), {1: INSTANCES[1], 3: INSTANCES[3]}, UNEXPLAINED_USED - 8000 - 3000),
        (20_000, (held(9, None), held(8, 15_000)), {1: INSTANCES[1]}, 15_000),
        (9000, (held(1, None),), {1: INSTANCES[1]}, 9000 - 8000 - UNEXPLAINED_MB),
        (8000, (held(1, None),), {1: INSTANCES[1]}, 0),
        # (2) processes of another container, ours perhaps among them under another number
        (20_000, (held(77, 20_000, command=""),), {1: INSTANCES[1]}, UNEXPLAINED_USED - 8000),
        (20_000, (), {}, UNEXPLAINED_USED),
        # (2) an instance that has ended but whose memory is not back yet; instances on other devices
        (20_000, (), INSTANCES, UNEXPLAINED_USED - 8000 - 4000),
        (20_000, (), {4: INSTANCES[4]}, UNEXPLAINED_USED),
    ],
)
def test_foreign_memory_is_that_of_other_processes(
    used_mb: int | None, there: tuple[Held, ...], ours: dict[int, Instance], foreign: int
) -> None:
    assert foreign_mb(replace(GPU, used_mb=used_mb), there, ours) == foreign


def test_an_unreadable_device_keeps_its_foreign_memory() -> None:
    reading = Reading(devices=(GPU, replace(GPU, id="gpu-1", used_mb=0)), held=(held(9, 700),))
    before = tuple(replace(d, foreign_mb=900) for d in reading.devices)

    assert [d.foreign_mb for d in with_foreign_memory(reading, {}, before)] == [900, 0]


def test_a_cpu_has_no_foreign_memory() -> None:
    (device,) = with_foreign_memory(
        Reading(devices=(Device(id=CPU, name="x", kind="cpu", total_mb=9, used_mb=8),)), {}, ()
    )

    assert device.foreign_mb == 0


def test_nothing_is_placed_into_foreign_memory() -> None:
    host = a_host(devices=(replace(GPU, foreign_mb=20_000),))

    answer = place(a_need(5000), host, Use(), 1000.0)

    assert answer == NoRoom(
        reason="does not fit by 1000 MiB: foreign processes hold 20000 MiB", when=When.LATER, short_by_mb=1000
    )
    assert isinstance(place(a_need(4000), host, Use(), 1000.0), Placement)


def test_a_pinned_instance_next_to_foreign_memory_is_a_temporary_refusal() -> None:
    pinned = an_instance("kept", function="org/kept", memory_mb=20_000, pinned=True)
    host = a_host(pinned, devices=(replace(GPU, foreign_mb=1000),))

    answer = place(a_need(4000), host, Use(), 1000.0)

    assert answer == NoRoom(
        reason="does not fit by 1000 MiB: org/kept is pinned and foreign processes hold 1000 MiB",
        when=When.LATER,
        short_by_mb=1000,
    )


def test_a_device_of_an_older_agent_can_still_be_read() -> None:
    old = b'{"id":"cpu","name":"x","kind":"cpu","total_mb":10,"used_mb":null,"reserve_mb":1}'

    assert msgspec.json.decode(old, type=Device).foreign_mb == 0
