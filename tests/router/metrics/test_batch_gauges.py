"""Gauges of the open batches in a folder."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from cortex.platform import metrics
from cortex.platform.meter import Count
from cortex.router.batches.batch import Batch, Counts, Status
from cortex.router.batches.folder import Folder
from cortex.router.metrics import batch_gauges
from cortex.router.metrics.batch_gauges import BatchGauges
from tests.router.batches.batches import add_batch, entry, text


def sums(gauges: tuple[Count, ...]) -> dict[tuple[str, str], float]:
    return {(g.name, g.labels[0]): g.value for g in gauges}


async def test_open_batches_are_counted_with_their_lines(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for done in (1, 2):
        batch = add_batch(folder, text(entry("a")))
        folder.write_batch(replace(batch, status=Status.IN_PROGRESS, counts=Counts(total=5, succeeded=done)))
    gone = add_batch(folder, text(entry("a")))
    folder.end(replace(gone, status=Status.CANCELLED, ended=1.0))

    gauges = await BatchGauges(folder).read()

    assert sums(gauges) == {
        (metrics.BATCHES.name, "validating"): 0,
        (metrics.BATCHES.name, "in_progress"): 2,
        (metrics.BATCHES.name, "cancelling"): 0,
        (metrics.BATCHES.name, "finalizing"): 0,
        (metrics.BATCH_LINES.name, "done"): 3,
        (metrics.BATCH_LINES.name, "left"): 7,
    }


class Hung(Folder):
    """A folder whose disk does not answer until `released` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.loop, self.released = asyncio.get_running_loop(), asyncio.Event()
        self.reads = 0

    def known_batch(self, key: str, id: str) -> Batch | None:
        self.reads += 1
        asyncio.run_coroutine_threadsafe(self.released.wait(), self.loop).result()
        return super().known_batch(key, id)


async def test_a_disk_that_hangs_costs_the_gauges_and_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_gauges, "READ_S", 0.05)  # shortens a wait, and changes no decision
    folder = Hung(tmp_path)
    add_batch(folder, text(entry("a")))
    gauges = BatchGauges(folder)

    assert [await gauges.read() for _ in range(3)] == [(), (), ()]
    assert folder.reads == 1

    folder.released.set()
    monkeypatch.setattr(batch_gauges, "READ_S", 10.0)
    assert (metrics.BATCHES.name, "validating") in sums(await gauges.read())
