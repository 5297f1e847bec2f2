"""Failures of NVML: errors, hung calls, missing GPUs."""

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from cortex.platform.host.devices import (
    reading_of,
)
from cortex.platform.host.nvml import Answer, Gpu
from cortex.platform.settings import Agent
from tests.platform.host.nvml_stub import (
    CPU,
    DRIVER_NOT_LOADED,
    GPU_IS_LOST,
    UNKNOWN,
    UUIDS,
    Tell,
    count_children,
    devices,
    ids,
    read,
)


async def test_a_host_without_nvml_uses_its_cpu_and_gives_the_reason() -> None:
    reading = await read()

    assert ids(reading) == (CPU,)
    assert reading.absent
    assert reading.problem == "NVML Shared Library Not Found"


async def test_a_driver_that_is_not_loaded_is_a_problem(nvml: Tell) -> None:
    nvml(f"fail nvmlInitWithFlags {DRIVER_NOT_LOADED}")

    reading = await read()

    assert ids(reading) == (CPU,)
    assert not reading.absent
    assert reading.problem == "Driver Not Loaded"


async def test_kernel_gpus_prevent_a_cpu_host_when_nvml_fails(nvml: Tell, tmp_path: Path) -> None:
    nvml(f"fail nvmlInitWithFlags {UNKNOWN}")
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)

    reading = await read(kernel_gpus=tmp_path / "gpus")

    assert reading.devices == ()
    assert "Unknown Error" in reading.problem


@pytest.mark.parametrize("line", ["hang nvmlInitWithFlags", "hang nvmlDeviceGetTemperature"])
async def test_a_hung_call_is_a_problem_and_its_process_is_killed(nvml: Tell, line: str) -> None:
    nvml(line)

    async with devices(timeout_s=0.3, first_s=0.3, retry_s=1000) as opened:
        reading = await opened.read()

        assert ids(reading) == (CPU,)
        assert reading.problem == "NVML does not answer; its reader was killed"
        assert count_children() == 0


async def test_a_call_that_hangs_only_later_keeps_the_gpus_listed(nvml: Tell) -> None:
    pid = os.getpid()
    nvml(f"process 0 compute {pid} 900")
    async with devices(timeout_s=0.5, retry_s=0) as opened:
        before = await opened.read()
        while before.problem:  # a slow machine may take longer than that to start it
            before = await opened.read()
        nvml("hang nvmlDeviceGetMemoryInfo_v2")
        hung = await opened.read()
        nvml()
        after = await opened.read()
        while after.problem:
            after = await opened.read()

    assert ids(hung) == UUIDS
    assert [(d.used_mb, d.total_mb, d.budget_mb) for d in hung.devices] == [
        (None, d.total_mb, d.budget_mb) for d in before.devices
    ]
    assert hung.held == before.held
    assert hung.unlisted == set(UUIDS)
    assert hung.problem == "NVML does not answer; its reader was killed"
    assert after.devices == before.devices


async def test_failing_nvml_does_not_make_a_cpu_host(nvml: Tell) -> None:
    async with devices(retry_s=0) as opened:
        await opened.read()
        problems = []
        for line in (
            f"fail nvmlDeviceGetCount_v2 {UNKNOWN}",
            f"fail nvmlInitWithFlags {DRIVER_NOT_LOADED}",
            "die nvmlDeviceGetCount_v2",
            "gpus 0",
        ):
            nvml(line)
            reading = await opened.read()
            assert ids(reading) == UUIDS
            problems.append(reading.problem)

    assert problems[0] == "NVML does not count its GPUs: Unknown Error"
    assert problems[1] == "Driver Not Loaded"
    assert problems[2] == "the NVML reader was killed by SIGSEGV"
    assert problems[3] == f"{UUIDS[0]}: NVML no longer lists this GPU; {UUIDS[1]}: NVML no longer lists this GPU"


async def test_a_container_without_the_library_is_a_cpu_host_whatever_its_kernel_lists(tmp_path: Path) -> None:
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)

    assert ids(await read(kernel_gpus=tmp_path / "gpus")) == (CPU,)


def test_a_gpu_whose_uuid_becomes_readable_is_not_listed_twice() -> None:
    nameless = Answer(gpus=(Gpu(index=0, total_mb=9000, error="busy"),))
    named = Answer(gpus=(Gpu(index=0, uuid=UUIDS[0], total_mb=9000),))

    first = reading_of(Agent(), nameless, (), str)
    second = reading_of(Agent(), named, first.devices, str)
    third = reading_of(Agent(), nameless, second.devices, str)

    assert [ids(first), ids(second), ids(third)] == [("nvml-0",), UUIDS[:1], UUIDS[:1]]


async def test_a_missing_gpu_stays_listed_without_capacity_until_it_returns(nvml: Tell) -> None:
    async with devices() as opened:
        before = await opened.read()
        nvml("gpus 1")
        without = await opened.read()
        nvml()
        after = await opened.read()

    assert ids(without) == UUIDS
    assert [d.budget_mb > 0 for d in without.devices] == [True, False]
    assert without.unlisted >= {UUIDS[1]}
    assert after.devices == before.devices


async def test_a_lost_gpu_has_no_capacity(nvml: Tell) -> None:
    async with devices() as opened:
        await opened.read()
        nvml("gpus 1", f"fail nvmlDeviceGetHandleByIndex_v2 {GPU_IS_LOST}")
        lost = (await opened.read()).devices[0]

    assert (lost.id, lost.total_mb, lost.budget_mb) == (UUIDS[0], 24_000, 0)
    assert "lost" in lost.note


async def test_a_gpu_whose_memory_fails_once_keeps_its_size_and_its_reserve(nvml: Tell) -> None:
    async with devices() as opened:
        before = (await opened.read()).devices[0]
        nvml(f"fail nvmlDeviceGetMemoryInfo {UNKNOWN}", f"fail nvmlDeviceGetMemoryInfo_v2 {UNKNOWN}")
        failed = (await opened.read()).devices[0]

    assert failed == replace(before, used_mb=None)
