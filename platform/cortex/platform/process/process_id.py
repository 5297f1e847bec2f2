"""Identifies processes although pids are reused.

After a reboot, a worker's pid may belong to an unrelated service, and a start time in Unix seconds changes with the
wall clock. So a process is identified by its boot, its pid and its start in clock ticks since that boot (field 22 of
`/proc/PID/stat`, proc(5)), which no two processes share (`record.ProcessId`).
"""

import os
import signal
from functools import cache
from pathlib import Path

from msgspec import Struct

from cortex.platform.record import ProcessId

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Status(Struct, frozen=True):
    """State letter and start of a process, from `/proc/PID/stat`."""

    state: str
    ticks: int


@cache
def boot_id() -> str:
    """Return the kernel's random id of this boot; "" if it has none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def status(pid: int) -> Status | None:
    """Return the state and start of the process that has this pid now; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = text[text.rfind(b")") + 1 :].split()  # the process's name may contain spaces and parentheses
    return Status(state=fields[0].decode(), ticks=int(fields[19])) if len(fields) > 19 else None


def identify(pid: int) -> ProcessId | None:
    """Return the process that has this pid now; None when there is none."""
    current = status(pid)
    return ProcessId(boot_id(), pid, current.ticks) if current else None


def started_at(pid: int) -> int:
    """Return the start time of a process in clock ticks since boot; 0 when it does not exist."""
    current = status(pid)
    return current.ticks if current else 0


def own() -> ProcessId:
    """Return this process. Raises OSError without `/proc`."""
    process = identify(os.getpid())
    if process is None:
        raise OSError("/proc/self/stat cannot be read")
    return process


def is_alive(process: ProcessId) -> bool:
    """Return whether exactly this process still runs. A zombie does not."""
    if process.boot != boot_id():
        return False
    current = status(process.pid)
    return current is not None and current.ticks == process.ticks and current.state not in "ZX"


def send(process: ProcessId, number: signal.Signals) -> bool:
    """Signal exactly this process, even if its pid is reused at this moment. False when it has ended."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(descriptor)
    return True


def is_uninterruptible(process: ProcessId) -> bool:
    """Return whether it is in state D, in which no signal reaches it: a driver or a mount hangs."""
    current = status(process.pid)
    return current is not None and current.ticks == process.ticks and current.state == "D"
