"""Which process a number means.

A pid is used again, after a reboot even for a stranger's service, and a start time in Unix seconds moves with the
wall clock. A process is known by its boot, its pid, and its start in clock ticks since that boot (field 22 of
`/proc/PID/stat`, proc(5)): no other process ever has the same three (`record.ProcessId`).
"""

import os
import signal
from functools import cache
from pathlib import Path

from msgspec import Struct

from cortex.platform.record import ProcessId

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Status(Struct, frozen=True):
    """What `/proc/PID/stat` says of a process: its state letter and its start."""

    state: str
    ticks: int


@cache
def boot_id() -> str:
    """Return the kernel's random id of this boot; "" where it has none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def status(pid: int) -> Status | None:
    """Return the state and start of whatever process has this pid now; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = text[text.rfind(b")") + 1 :].split()  # the name before it may hold spaces and parentheses
    return Status(state=fields[0].decode(), ticks=int(fields[19])) if len(fields) > 19 else None


def identify(pid: int) -> ProcessId | None:
    """Return the process that has this pid now; None when there is none."""
    found = status(pid)
    return ProcessId(boot_id(), pid, found.ticks) if found else None


def started_at(pid: int) -> int:
    """Return the start time of a process in clock ticks since boot; 0 when it does not exist."""
    current = status(pid)
    return current.ticks if current else 0


def own() -> ProcessId:
    """Return this process. Raises OSError where `/proc` is missing."""
    found = identify(os.getpid())
    if found is None:
        raise OSError("/proc/self/stat cannot be read")
    return found


def is_alive(process: ProcessId) -> bool:
    """Whether that very process still runs. A zombie does not."""
    if process.boot != boot_id():
        return False
    found = status(process.pid)
    return found is not None and found.ticks == process.ticks and found.state not in "ZX"


def send(process: ProcessId, number: signal.Signals) -> bool:
    """Signal that very process, whoever may get its pid in this moment. False when it is gone."""
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
    """Whether it sleeps in the kernel where no signal reaches it: state D, a driver or a mount that hangs."""
    found = status(process.pid)
    return found is not None and found.ticks == process.ticks and found.state == "D"
