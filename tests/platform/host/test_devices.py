"""Devices: NVML's answers, unreadable fields, and failures of NVML.

NVML is a library built here from C, which does as a file tells it: `gpus 2`, `fail CALL CODE`, `hang CALL`,
`die CALL`, `print CALL`, `mig GPU`, `process GPU KIND PID MIB` (MIB -1: not told). The file is read at each
call, so a test may change it between two readings.
"""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from msgspec.structs import replace

from cortex.platform.host.devices import (
    UNEXPLAINED_MB,
    Devices,
    Reading,
    discover,
    foreign_mb,
    reading_of,
    with_foreign_memory,
)
from cortex.platform.host.nvml import Answer, Gpu
from cortex.platform.host.nvml_reader import READER
from cortex.platform.process.process_id import identify
from cortex.platform.process.termination import wait_for_exit
from cortex.platform.record import Device, Held, Instance, Use
from cortex.platform.scheduling.placement import NoRoom, Placement, When, place
from cortex.platform.settings import Agent, DeclaredDevice
from tests.support.factories import a_host, a_need, an_instance

UUIDS = ("GPU-00000000-0000-0000-0000-000000000000", "GPU-11111111-1111-1111-1111-111111111111")
CPU = "cpu"
NOT_SUPPORTED, DRIVER_NOT_LOADED, FUNCTION_NOT_FOUND, GPU_IS_LOST, UNKNOWN = 3, 9, 13, 15, 999
TOLD: dict[str, Any] = {"index": 0, "compute_capability": "12.0", "utilization_pct": 7, "temp_c": 41}
SILENT = ("/bin/sh", "-c", "read line; exec sleep 1000")

STUB = r"""
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef unsigned long long u64;
typedef struct { long index; } Gpu;
static Gpu gpus[16] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}};

static FILE *script(void) { return fopen(getenv("NVML_STUB"), "r"); }

/* Do what the script says about a call; return the code to fail with, or 0. */
static int act(const char *call) {
    char what[64], name[128]; int code = 0, found = 0; char line[256];
    FILE *f = script();
    while (f && fgets(line, sizeof line, f)) {
        found = 0;
        if (sscanf(line, "%63s %127s %d", what, name, &found) < 2 || strcmp(name, call)) continue;
        if (!strcmp(what, "fail")) code = found;
        if (!strcmp(what, "hang")) for (;;) pause();
        if (!strcmp(what, "die")) raise(SIGSEGV);
        if (!strcmp(what, "print")) { printf("NVML says hello\n"); fflush(stdout); }
    }
    if (f) fclose(f);
    return code;
}
#define ACT { int code = act(__func__); if (code) return code; }

static int number(const char *key, int otherwise) {
    char line[256], what[64]; int value;
    FILE *f = script();
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "%63s %d", what, &value) == 2 && !strcmp(what, key)) otherwise = value;
    if (f) fclose(f);
    return otherwise;
}

int nvmlInitWithFlags(unsigned flags) { ACT return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { static char s[32]; snprintf(s, 32, "stub error %d", code); return s; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { ACT snprintf(s, n, "570.01"); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { ACT *v = 12080; return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { ACT *n = number("gpus", 2); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned n, Gpu **g) { ACT *g = &gpus[n]; return 0; }
int nvmlDeviceGetUUID(Gpu *g, char *s, unsigned n) {
    char c = '0' + g->index;
    ACT snprintf(s, n, "GPU-00000000-0000-0000-0000-000000000000");
    for (char *p = s + 4; *p; p++) if (*p == '0') *p = c;
    return 0;
}
int nvmlDeviceGetName(Gpu *g, char *s, unsigned n) { ACT snprintf(s, n, "Stub %ld", g->index); return 0; }
int nvmlDeviceGetMemoryInfo(Gpu *g, u64 *m) {
    ACT m[0] = 24000ull << 20; m[2] = (u64)(number("used", 1000) + 400) << 20; return 0;
}
int nvmlDeviceGetMemoryInfo_v2(Gpu *g, u64 *m) {  /* version, total, reserved, free, used */
    ACT m[1] = 24000ull << 20; m[2] = 400ull << 20; m[4] = (u64)number("used", 1000) << 20; return 0;
}
int nvmlDeviceGetCudaComputeCapability(Gpu *g, int *major, int *minor) { ACT *major = 12; *minor = 0; return 0; }
int nvmlDeviceGetUtilizationRates(Gpu *g, unsigned *r) { ACT r[0] = 7; r[1] = 3; return 0; }
int nvmlDeviceGetTemperature(Gpu *g, int sensor, unsigned *t) { ACT *t = 41; return 0; }
int nvmlDeviceGetMigMode(Gpu *g, unsigned *now, unsigned *then) {
    ACT *now = *then = number("mig", -1) == g->index; return 0;
}
int nvmlDeviceGetMaxMigDeviceCount(Gpu *g, unsigned *n) { ACT *n = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(Gpu *g, unsigned n, Gpu **m) { ACT *m = g; return n < 2 ? 0 : 6; }

typedef struct { unsigned pid; u64 used; unsigned gi, ci; } Process;
static int list(Gpu *g, const char *kind, unsigned *n, Process *out) {
    char line[256], what[64]; unsigned room = *n, pid; int gpu; long long mib; *n = 0;
    FILE *f = script();
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "process %d %63s %u %lld", &gpu, what, &pid, &mib) != 4) continue;
        if (gpu != g->index || strcmp(what, kind)) continue;
        if (*n < room && out) out[*n] = (Process){pid, mib < 0 ? ~0ull : (u64)mib << 20, 0, 0};
        ++*n;
    }
    if (f) fclose(f);
    return *n > room ? 7 : 0;
}
#define LISTS(call, kind) int call(Gpu *g, unsigned *n, Process *out) { ACT return list(g, kind, n, out); }
LISTS(nvmlDeviceGetComputeRunningProcesses_v2, "compute")
LISTS(nvmlDeviceGetComputeRunningProcesses_v3, "compute")
LISTS(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics")
LISTS(nvmlDeviceGetMPSComputeRunningProcesses_v3, "mps")
"""

Tell = Callable[..., None]


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the stub of NVML."""
    folder = tmp_path_factory.mktemp("nvml")
    source = folder / "stub.c"
    source.write_text(STUB)
    library = folder / "libnvidia-ml.so.1"
    built = subprocess.run(
        ["gcc", "-w", "-shared", "-fPIC", "-o", library, source], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, f"gcc is needed to build the stub of NVML: {built.stderr}"
    return folder


@pytest.fixture
def nvml(stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tell:
    """A host with the stub; call it with the lines that the stub is to follow from then on."""
    script = tmp_path / "script"
    monkeypatch.setenv("LD_LIBRARY_PATH", str(stub))
    monkeypatch.setenv("NVML_STUB", str(script))

    def tell(*lines: str) -> None:
        fresh = script.with_suffix(".new")
        fresh.write_text("".join(f"{line}\n" for line in lines))
        fresh.replace(script)

    tell()
    return tell


@asynccontextmanager
async def devices(settings: Agent | None = None, **rest: Any) -> AsyncIterator[Devices]:
    """The devices of a host whose kernel knows of no GPU."""
    opened = Devices(settings or Agent(), **{"kernel_gpus": Path("/nonexistent"), **rest})
    try:
        yield opened
    finally:
        await opened.close()


async def read(settings: Agent | None = None, **rest: Any) -> Reading:
    """One reading."""
    async with devices(settings, **rest) as opened:
        return await opened.read()


def ids(reading: Reading) -> tuple[str, ...]:
    return tuple(d.id for d in reading.devices)


BEFORE: set[int] = set()


@pytest.fixture(autouse=True)
def children_before() -> None:
    """Remember which children are other tests': a running cortex, say."""
    BEFORE.clear()
    BEFORE.update(p.pid for p in psutil.Process().children())


def commands() -> int:
    """How many children this test has."""
    return len([p for p in psutil.Process().children() if p.pid not in BEFORE])


async def ended_by_kill(pid: int) -> None:
    process = identify(pid)
    assert process
    os.kill(pid, signal.SIGKILL)
    await wait_for_exit(process)


# What NVML tells.


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
    ],
)
async def test_an_unreadable_field_does_not_affect_the_others(nvml: Tell, call: str, field: str, value: object) -> None:
    nvml("gpus 1", f"fail {call} {NOT_SUPPORTED}")

    reading = await read()

    whole = Device(id=UUIDS[0], name="Stub 0", kind="gpu", total_mb=24_000, used_mb=1000, reserve_mb=1424, **TOLD)
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


# What NVML does to whoever asks.


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
        assert commands() == 0


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


# The process that asks.


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("read line; echo rubbish; exec cat", "sent an invalid answer"),
        ("read line; echo '{\"gpus\": 3}'; exec cat", "sent an invalid answer"),
        ("read line; exec head -c 5000000 /dev/zero", "sent an invalid answer"),
        ("read line; exit 3", "the NVML reader exited with code 3"),
        ("read line; printf unfinished", "the NVML reader exited with code 0"),
        ("exec <&- >&-; sleep 1000", "the NVML reader was killed by SIGKILL"),
    ],
)
async def test_a_reader_that_does_not_answer_properly_is_a_problem(script: str, problem: str) -> None:
    reading = await read(command=("/bin/sh", "-c", script))

    assert ids(reading) == (CPU,)
    assert problem in reading.problem


async def test_a_reader_that_cannot_be_started_is_a_problem() -> None:
    reading = await read(command=("/nonexistent",))

    assert ids(reading) == (CPU,)
    assert "could not be started" in reading.problem


async def test_after_a_failure_the_next_attempt_waits_longer_each_time(tmp_path: Path) -> None:
    now, starts = [0.0], tmp_path / "starts"
    script = f"echo >>{starts}; read line; exit 1"
    times = []
    async with devices(command=("/bin/sh", "-c", script), retry_s=1, clock=lambda: now[0]) as opened:
        for second in range(16):
            now[0] = second
            before = starts.stat().st_size if starts.exists() else 0
            reading = await opened.read()
            assert reading.problem == "the NVML reader exited with code 1"
            if starts.stat().st_size > before:
                times.append(second)

    assert times == [0, 1, 3, 7, 15]


async def test_the_first_answer_has_a_longer_time_limit(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    answer = msgspec.json.encode(Answer(driver="1")).decode()
    script = f"read line; read go <{gate}; echo '{answer}'; exec cat >/dev/null"
    async with devices(command=("/bin/sh", "-c", script), timeout_s=0.05, first_s=1000) as opened:
        early = await opened.read()
        await asyncio.to_thread(gate.write_text, "go\n")
        reading = await opened.read()
        while reading.problem:
            reading = await opened.read()

    assert early.problem == "NVML has not answered yet"
    assert reading.driver == "1"


async def test_there_is_never_a_second_reader_while_a_killed_one_has_not_ended() -> None:
    spared: list[int] = []

    def spare(pid: int, number: signal.Signals) -> None:
        spared.append(pid)

    async with devices(command=SILENT, timeout_s=0.05, first_s=0.05, retry_s=0, kill=spare) as opened:
        await opened.read()
        reading = await opened.read()
        assert reading.problem == f"the NVML reader (pid {spared[0]}) was killed and has not exited"
        assert commands() == 1
        await ended_by_kill(spared[0])
        while "has not exited" in reading.problem:  # asyncio reports the exit later
            await asyncio.sleep(0)
            reading = await opened.read()

    assert reading.problem == "NVML does not answer; its reader was killed"
    assert len(spared) == 2
    await ended_by_kill(spared[1])


async def test_a_read_that_is_cancelled_leaves_the_next_one_its_answer(tmp_path: Path) -> None:
    answer = msgspec.json.encode(Answer(driver="1")).decode()
    script = f"n=0; while read line; do n=$((n+1)); echo '{answer}' | sed s/1/$n/; done"
    async with devices(command=("/bin/sh", "-c", script)) as opened:
        given_up = asyncio.create_task(opened.read())
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)

        first, second = await opened.read(), await opened.read()

    assert (first.driver, second.driver) == ("1", "2")


async def test_a_hung_nvml_does_not_block_the_event_loop() -> None:
    async with devices(command=SILENT, timeout_s=0.2, first_s=0.2) as opened:
        reading = asyncio.create_task(opened.read())
        turns = 0
        while not reading.done():
            await asyncio.sleep(0)
            turns += 1

    assert turns > 100


async def test_closing_leaves_no_process_behind(nvml: Tell) -> None:
    async with devices() as opened:
        await opened.read()
        assert commands() == 1

    assert commands() == 0


def test_the_reader_ends_with_its_standard_input(nvml: Tell) -> None:
    with subprocess.Popen(READER, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        answer, _ = reader.communicate(b"read\nwhat?\nread\n", timeout=10)

    assert reader.returncode == 0
    assert [len(msgspec.json.decode(line, type=Answer).gpus) for line in answer.splitlines()] == [2, 2]


def test_a_hung_reader_ends_with_its_parent(nvml: Tell) -> None:
    nvml("hang nvmlDeviceGetName", "print nvmlInitWithFlags")
    parent = (
        "import subprocess, sys, time\n"
        f"reader = subprocess.Popen({READER!r}, stdin=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "reader.stdin.write(b'read\\n'); reader.stdin.flush()\n"
        "reader.stderr.readline()\n"  # what the stub prints: it is now on its way into the call that hangs
        "print(reader.pid, flush=True); time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        reader = os.pidfd_open(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)

    readable, _, _ = select.select([reader], [], [], 10)
    os.close(reader)
    assert readable


def test_the_reader_never_loads_cuda(nvml: Tell) -> None:
    with subprocess.Popen(READER, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdin.write(b"read\n")
        reader.stdin.flush()
        reader.stdout.readline()
        maps = Path(f"/proc/{reader.pid}/maps").read_text()
        reader.stdin.close()

    assert "libnvidia-ml" in maps
    assert "libcuda" not in maps


# Declared devices.

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
