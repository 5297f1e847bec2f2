"""Readings of GPUs through NVML."""

import os

import psutil
import pytest
from msgspec.structs import replace

from cortex.platform.record import Device, Held
from tests.platform.host.nvml_stub import (
    CPU,
    FUNCTION_NOT_FOUND,
    NOT_SUPPORTED,
    READING,
    UNKNOWN,
    UUIDS,
    Tell,
    ids,
    read,
)


async def test_gpus_are_listed_with_all_nvml_fields(nvml: Tell) -> None:
    pid = os.getpid()
    nvml(f"process 1 compute {pid} 900", f"process 0 graphics {pid} 800", f"process 0 mps {pid} 700", "used 900")

    reading = await read()

    assert reading.problem == ""
    assert (reading.driver, reading.cuda) == ("570.01", "12.8")
    assert reading.devices[1] == Device(
        id=UUIDS[1],
        name="Stub 1",
        kind="gpu",
        total_mb=24_000,
        used_mb=900,
        reserve_mb=1024 + 400,
        index=1,
        compute_capability="12.0",
        utilization_pct=7,
        temp_c=41,
        energy_mj=61_000,
    )
    own = psutil.Process().name()[:15]
    assert reading.held == (
        Held(device=UUIDS[0], pid=pid, command=own, memory_mb=800),
        Held(device=UUIDS[1], pid=pid, command=own, memory_mb=900),
    )
    assert reading.unlisted == frozenset()


async def test_a_host_with_gpus_does_not_list_its_cpu(nvml: Tell) -> None:
    assert ids(await read()) == UUIDS


async def test_a_host_without_gpus_in_nvml_uses_its_cpu(nvml: Tell) -> None:
    nvml("gpus 0")

    reading = await read()

    assert ids(reading) == (CPU,)
    assert reading.problem == ""


@pytest.mark.parametrize(
    ("call", "field", "value"),
    [
        ("nvmlDeviceGetName", "name", "GPU"),
        ("nvmlDeviceGetCudaComputeCapability", "compute_capability", ""),
        ("nvmlDeviceGetUtilizationRates", "utilization_pct", None),
        ("nvmlDeviceGetTemperature", "temp_c", None),
        ("nvmlDeviceGetTotalEnergyConsumption", "energy_mj", None),
    ],
)
async def test_an_unreadable_field_does_not_affect_the_others(nvml: Tell, call: str, field: str, value: object) -> None:
    nvml("gpus 1", f"fail {call} {NOT_SUPPORTED}")

    reading = await read()

    whole = Device(id=UUIDS[0], name="Stub 0", kind="gpu", total_mb=24_000, used_mb=1000, reserve_mb=1424, **READING)
    assert reading.devices == (replace(whole, **{field: value}),)
    assert reading.problem == ""


async def test_failing_versions_mig_mode_and_process_lists_do_not_affect_other_fields(nvml: Tell) -> None:
    calls = (
        "nvmlSystemGetDriverVersion",
        "nvmlSystemGetCudaDriverVersion_v2",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetComputeRunningProcesses_v2",
    )
    nvml("used 100", *(f"fail {call} {NOT_SUPPORTED}" for call in calls))

    reading = await read()

    assert ids(reading) == UUIDS
    assert all(d.note == "" and d.budget_mb for d in reading.devices)
    assert reading.unlisted == set(UUIDS)
    assert (reading.driver, reading.cuda, reading.problem) == ("", "", "")


async def test_older_driver_functions_are_used_as_a_fallback(nvml: Tell) -> None:
    nvml(
        f"fail nvmlDeviceGetComputeRunningProcesses_v3 {FUNCTION_NOT_FOUND}",
        f"fail nvmlDeviceGetMemoryInfo_v2 {FUNCTION_NOT_FOUND}",
        f"process 0 compute {os.getpid()} 900",
    )

    reading = await read()

    assert [(h.device, h.memory_mb) for h in reading.held] == [(UUIDS[0], 900)]
    assert (reading.devices[0].used_mb, reading.devices[0].reserve_mb) == (1400, 1024)


async def test_a_process_of_unknown_memory_is_listed_without_it(nvml: Tell) -> None:
    nvml(f"process 0 compute {os.getpid()} -1")

    reading = await read()

    assert [(h.pid, h.memory_mb) for h in reading.held] == [(os.getpid(), None)]
    assert UUIDS[0] in reading.unlisted


async def test_a_partitioned_gpu_is_listed_and_not_used(nvml: Tell) -> None:
    nvml("mig 1")

    whole, partitioned = (await read()).devices

    assert whole.budget_mb > 0
    assert (partitioned.total_mb, partitioned.budget_mb) == (24_000, 0)
    assert "MIG mode is on (2 partitions)" in partitioned.note


async def test_a_gpu_without_a_uuid_is_listed_and_not_used(nvml: Tell) -> None:
    nvml("gpus 1", f"fail nvmlDeviceGetUUID {UNKNOWN}")

    reading = await read()

    assert [(d.id, d.budget_mb, d.note) for d in reading.devices] == [("nvml-0", 0, "its UUID cannot be read")]
    assert "Unknown Error" in reading.problem


async def test_a_gpu_of_unknown_memory_has_a_note_to_declare_it(nvml: Tell) -> None:
    nvml(
        "gpus 1",
        f"fail nvmlDeviceGetMemoryInfo {NOT_SUPPORTED}",
        f"fail nvmlDeviceGetMemoryInfo_v2 {NOT_SUPPORTED}",
    )

    (device,) = (await read()).devices

    assert (device.total_mb, device.used_mb, device.budget_mb) == (0, None, 0)
    assert "[[agent.devices]]" in device.note


async def test_output_of_the_driver_does_not_corrupt_the_answers(nvml: Tell) -> None:
    nvml("print nvmlDeviceGetName")

    assert ids(await read()) == UUIDS
