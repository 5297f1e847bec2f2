"""Termination of processes: signals, waiting for an exit, and its description."""

import asyncio
import contextlib
import os
import signal

from cortex.platform.process import process_id
from cortex.platform.record import ProcessId


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal the process group of a child not yet waited for, so its pid cannot have been reused."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


async def wait_for_exit(process: ProcessId) -> None:
    """Wait until a process has exited. It need not be a child of this process."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    exited = asyncio.Event()
    try:
        if not process_id.is_alive(process):  # the pid may have been reused before the open
            return
        loop.add_reader(descriptor, exited.set)
        try:
            await exited.wait()
        finally:
            loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)


def describe_exit(code: int | None) -> str:
    """Describe a return code; None means unknown."""
    if code is None:
        return "ended"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"exited with code {code}"
