"""Removes files and batches that have expired."""

import asyncio
import time

import structlog

from cortex.router.batches.calls import FolderCalls
from cortex.router.batches.folder import Folder
from cortex.router.errors import RequestError

log = structlog.get_logger()

SWEEP_S = 60.0


class FileSweeper:
    """Sweeps while the router runs. Several routers may sweep one folder; files that are gone are skipped."""

    def __init__(self, folder: Folder, calls: FolderCalls, ttl_s: float) -> None:
        """`ttl_s` is the lifetime of results after the end of a batch."""
        self._folder, self._calls, self._ttl_s = folder, calls, ttl_s

    async def run(self) -> None:
        """Sweep every `SWEEP_S`, until cancelled."""
        while True:
            try:
                number = await self._calls.call(self._folder.sweep, time.time(), self._ttl_s)
                if number:
                    log.info("files_expired", number=number)
            except RequestError:
                pass  # logged by FolderCalls; the next sweep tries again
            await asyncio.sleep(SWEEP_S)
