"""A stub of NVML, compiled from C, that follows a script.

The script has lines such as `gpus 2`, `fail CALL CODE`, `hang CALL`, `die CALL`, `print CALL`, `mig GPU` and
`process GPU KIND PID MIB` (MIB -1: unknown). It is read at each call, so a test can change it between two readings.
"""

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from cortex.platform.host.devices import (
    Devices,
    Reading,
)
from cortex.platform.process.process_id import identify
from cortex.platform.process.termination import wait_for_exit
from cortex.platform.settings import Agent

UUIDS = ("GPU-00000000-0000-0000-0000-000000000000", "GPU-11111111-1111-1111-1111-111111111111")
CPU = "cpu"
NOT_SUPPORTED, DRIVER_NOT_LOADED, FUNCTION_NOT_FOUND, GPU_IS_LOST, UNKNOWN = 3, 9, 13, 15, 999
READING: dict[str, Any] = {
    "index": 0,
    "compute_capability": "12.0",
    "utilization_pct": 7,
    "temp_c": 41,
    "energy_mj": 60_000,
}
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

/* Do what the script requests for a call; return its error code, or 0. */
static int act(const char *call) {
    char what[64], name[128]; int code = 0, argument = 0; char line[256];
    FILE *f = script();
    while (f && fgets(line, sizeof line, f)) {
        argument = 0;
        if (sscanf(line, "%63s %127s %d", what, name, &argument) < 2 || strcmp(name, call)) continue;
        if (!strcmp(what, "fail")) code = argument;
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
int nvmlDeviceGetTotalEnergyConsumption(Gpu *g, u64 *mj) {
    ACT *mj = number("energy", 60000) + 1000 * g->index; return 0;
}
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


def built(folder: Path) -> Path:
    """Compile the stub in a folder, which is returned: it belongs in `LD_LIBRARY_PATH`."""
    source = folder / "stub.c"
    source.write_text(STUB)
    command = ["gcc", "-w", "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(source)]
    build = subprocess.run(command, capture_output=True, text=True, check=False)
    assert build.returncode == 0, f"gcc is needed to build the stub of NVML: {build.stderr}"
    return folder


Tell = Callable[..., None]
"""Replaces the script of the stub by these lines."""


@asynccontextmanager
async def devices(settings: Agent | None = None, **rest: Any) -> AsyncIterator[Devices]:
    """Yield the devices of a host whose kernel lists no GPU."""
    result = Devices(settings or Agent(), **{"kernel_gpus": Path("/nonexistent"), **rest})
    try:
        yield result
    finally:
        await result.close()


async def read(settings: Agent | None = None, **rest: Any) -> Reading:
    """Return one reading."""
    async with devices(settings, **rest) as result:
        return await result.read()


def ids(reading: Reading) -> tuple[str, ...]:
    return tuple(d.id for d in reading.devices)


OTHER_CHILDREN: set[int] = set()
"""Children of other tests, such as a running cortex."""


def count_children() -> int:
    """Return the number of children that this test started."""
    return len([p for p in psutil.Process().children() if p.pid not in OTHER_CHILDREN])


async def kill_and_wait(pid: int) -> None:
    process = identify(pid)
    assert process
    os.kill(pid, signal.SIGKILL)
    await wait_for_exit(process)
