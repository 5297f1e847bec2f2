"""What workers leave: processes, device memory and temporary directories, until all of it is gone.

A process is killed only when it is proved to be a worker's: by its environment's mark, the log that it writes to, its
control group, or the session in which it was when its worker ended.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import structlog

from cortex.functions.names import slug
from cortex.platform.process import process_id
from cortex.platform.record import Instance, ProcessId
from cortex.platform.scheduling import events
from cortex.platform.scheduling.events import Event
from cortex.platform.workers import cgroup, hardening, orphans, process
from cortex.platform.workers.log_files import log_name
from cortex.platform.workers.tiers import HolderReading

log = structlog.get_logger()

KILLED_WITHIN_S = 5.0
"""Time limit for a process to end after KILL. One that exceeds it hangs in the kernel."""
RELEASED_WITHIN_S = 30.0
"""Time limit for freed device memory to be released; memory still held then counts as foreign."""
KILL_AGAIN_S, HOLDERS_AGAIN_S = 0.02, 0.5


class Remains:
    """What the workers of one agent leave."""

    def __init__(self, owner: str, groups: Path | None, holders: HolderReading, tell: Callable[[Event], None]) -> None:
        self._owner, self._groups, self._holders, self._tell = owner, groups, holders, tell
        self._proved: dict[str, frozenset[ProcessId]] = {}
        """The processes of a worker's session when it ended. They belong to it, with or without its marker."""

    async def prove(self, instance: str, leader: ProcessId) -> None:
        """Note the processes of a worker that has just ended. Call it before the worker is reaped: until then its
        session id is not reused."""
        self._proved[instance] = await asyncio.to_thread(process.session_of, leader)

    async def kill(self, instance: str, function: str) -> list[ProcessId]:
        """Kill a worker's remaining processes. Return those that have not ended within `KILLED_WITHIN_S`."""
        await asyncio.to_thread(cgroup.kill, self._groups, instance)
        proved, log = self._proved.get(instance, frozenset()), log_name(function, instance)
        time = asyncio.get_running_loop().time
        deadline = time() + KILLED_WITHIN_S
        # A poll, since the kernel reports exits of children only. It ends after a search, never during one: a search
        # that takes long has not shown that none is left.
        while remaining := await asyncio.to_thread(process.kill_orphans, instance, proved, log):
            if time() >= deadline:
                break
            await asyncio.sleep(KILL_AGAIN_S)
        return remaining

    async def clear(self, instance: Instance) -> None:
        """Kill a worker's remaining processes until none is left, and wait until its GPU memory is released."""
        proved, log = self._proved.get(instance.id, frozenset()), log_name(instance.function, instance.id)
        members = await asyncio.to_thread(process.orphans_of, instance.id, proved, log)
        while still := await self.kill(instance.id, instance.function):
            self._tell(events.EndDelayed(instance.id, unkillable(still)))
        if instance.pid and any(d.startswith("GPU-") for d in instance.devices):
            await self._wait_for_memory({instance.pid, *(p.pid for p in members)})
        await asyncio.to_thread(shutil.rmtree, hardening.temporary_path(instance.id), ignore_errors=True)
        self._proved.pop(instance.id, None)

    async def clear_unknown(self, instances: Collection[str]) -> None:
        """Kill processes with the mark of this host's agents that belong to none of these instances."""
        for instance, killed in (
            await asyncio.to_thread(orphans.kill_unknown, self._owner, self._groups, instances)
        ).items():
            log.warning("orphan_killed", instance=instance, pids=killed)
            if slug(instance) == instance:  # the mark comes from the process: use it as a path only if it is safe
                await asyncio.to_thread(shutil.rmtree, hardening.temporary_path(instance), ignore_errors=True)

    async def _wait_for_memory(self, pids: set[int]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELEASED_WITHIN_S):
                while (holders := await self._holders()) and any(h.pid in pids for h in holders):  # noqa: ASYNC110 (NVML has no event for it)
                    await asyncio.sleep(HOLDERS_AGAIN_S)


def unkillable(processes: Collection[ProcessId]) -> str:
    """Describe processes that do not end after KILL."""
    pids = ", ".join(str(p.pid) for p in processes)
    if any(process_id.is_uninterruptible(p) for p in processes):
        return f"process {pids} sleeps in the kernel and cannot be killed: its device's driver or a mount hangs"
    return f"process {pids} has not ended after SIGKILL"
