"""A router's counts of usage: batches in a real Redis, sent again after an answer was lost."""

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest

from cortex.functions.capabilities import Cost
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.usage import Row, Sums
from cortex.platform.usage_record import Batch, UsageRecord
from cortex.router import usage
from cortex.router.request_record import Finished, RequestRecord
from cortex.router.usage import UsageCounts
from tests.support.stack import own_redis


class Unsteady(UsageRecord):
    """Adds to the record, or fails before or after it did."""

    fails = ""

    async def add(self, batch: Batch, names: Mapping[str, str]) -> None:
        """Add a batch."""
        if self.fails == "before":
            raise RecordUnavailable("away")
        await super().add(batch, names)
        if self.fails == "after":
            raise RecordUnavailable("no answer")


@pytest.fixture
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with own_redis(tmp_path_factory.mktemp("r")) as address:
        yield address


@pytest.fixture
async def record(url: str) -> AsyncIterator[Unsteady]:
    registry = Registry(url)
    yield Unsteady(registry, "r1")
    await registry.close()


def finished(key: str = "k1", **values: Any) -> RequestRecord:
    request = RequestRecord("id", "f", "f", "chat", streams=False, read_s=0.0)
    request.key, request.host, request.tokens_in, request.tokens_out = key, "h", 10, 5
    for name, value in values.items():
        setattr(request, name, value)
    return request


def counts_of(record: UsageRecord) -> UsageCounts:
    return UsageCounts(record, lambda _: Cost(input=1.0, output=2.0), lambda: {"k1": "one"})


async def total(record: UsageRecord) -> Sums:
    sums = Sums()
    for row in await recent(record):
        sums.add(row.sums)
    return sums


async def recent(record: UsageRecord) -> list[Row]:
    now = time.time()
    return await record.read(now - 7200, now, now)


@pytest.mark.parametrize("fails", ["before", "after"])
async def test_what_a_lost_batch_and_later_requests_used_is_counted_once(record: Unsteady, fails: str) -> None:
    counts = counts_of(record)
    counts.add(Finished([finished(), finished(cached=4, cold=True)]))
    record.fails = fails
    await counts.write()
    counts.add(Finished([finished("k2")]))
    await counts.write()

    record.fails = ""
    await counts.write()
    await counts.write()

    assert await total(record) == Sums(
        requests=3, tokens_in=30, tokens_out=15, cached=4, cold_starts=1, nano_usd=3 * (10_000 + 10_000)
    )
    assert await record.names() == {"k1": "one"}


async def test_the_last_write_takes_the_rows_behind_a_batch_that_was_not_written(record: Unsteady) -> None:
    counts = counts_of(record)
    counts.add(Finished([finished()]))
    record.fails = "before"
    await counts.write()
    counts.add(Finished([finished("k2")]))
    record.fails = ""

    await counts.write()

    assert (await total(record)).requests == 2


async def test_rows_in_memory_are_bounded_and_none_of_the_sums_is_lost(
    record: Unsteady, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "MOST_ROWS", 5)
    counts = counts_of(record)

    counts.add(Finished([finished(f"k{n}") for n in range(50)]))
    await counts.write()

    assert len(await recent(record)) == 6
    assert (await total(record)).requests == 50
