"""Gauges of the open batches in a router's folder, read at the time of the scrape.

A disk that hangs costs these gauges and no other metric: one thread reads, and a scrape waits for it a moment only.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from cortex.platform import metrics
from cortex.platform.meter import Count
from cortex.router.batches.batch import Batch, Status
from cortex.router.batches.folder import Folder

log = structlog.get_logger()

READ_S = 2.0


class BatchGauges:
    """Reads the gauges of one folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch gauges")
        self._reading: asyncio.Future[tuple[Count, ...]] | None = None

    async def read(self) -> tuple[Count, ...]:
        """Return the gauges; none while the disk does not answer."""
        if self._reading is None:
            self._reading = asyncio.get_running_loop().run_in_executor(self._thread, self._read)
        done, _ = await asyncio.wait({self._reading}, timeout=READ_S)
        if not done:
            return ()
        reading, self._reading = self._reading, None
        try:
            return reading.result()
        except OSError as error:
            log.warning("batches_not_counted", why=str(error))
            return ()

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _read(self) -> tuple[Count, ...]:
        batches = (self._folder.known_batch(*name) for name in self._folder.open_batches())
        return tuple(batch_gauges([b for b in batches if b is not None and b.status.is_open]))


def batch_gauges(batches: Sequence[Batch]) -> Iterable[Count]:
    """Return the gauges of open batches."""
    states = Counter(b.status for b in batches)
    for state in (status for status in Status if status.is_open):
        yield Count(metrics.BATCHES.name, (str(state),), states[state])
    done = sum(b.counts.done for b in batches)
    yield Count(metrics.BATCH_LINES.name, ("done",), done)
    yield Count(metrics.BATCH_LINES.name, ("left",), sum(b.counts.total for b in batches) - done)
