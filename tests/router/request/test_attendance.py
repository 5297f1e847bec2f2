"""A request's work ends with its client, by an operator, or by itself, and leaves no cancellation behind."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cortex.router.dialects.core.errors import Kind
from cortex.router.request.attendance import attend
from cortex.router.request_record import RequestRecord
from tests.support.incoming import ReadingClient


def a_record() -> RequestRecord:
    return RequestRecord("req-1", "f", "f", "chat", streams=False, read_s=0.0)


async def attended(
    record: RequestRecord, client: ReadingClient, work: Callable[[], Awaitable[None]], after: list[int] | None = None
) -> None:
    """Attend work in a task of its own; note how many cancellations are left afterwards."""

    async def run() -> None:
        await work()

    def cancel(task: asyncio.Task[None]) -> None:
        task.cancel()

    try:
        await attend(record, run(), client, cancel)
    finally:
        if after is not None:
            task = asyncio.current_task()
            assert task is not None
            after.append(task.cancelling())


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


async def test_work_that_ends_by_itself_leaves_the_record_alone() -> None:
    record, done = a_record(), []

    async def work() -> None:
        done.append(1)

    await attended(record, ReadingClient(), work)

    assert done == [1]
    assert (record.left, record.fault) == (False, "")


async def test_an_error_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await attended(a_record(), ReadingClient(), work)


async def test_a_client_that_leaves_ends_the_work_and_nothing_else() -> None:
    record, client, left = a_record(), ReadingClient(), list[int]()
    task = asyncio.create_task(attended(record, client, wait_for_ever, left))
    await asyncio.sleep(0)
    client.leave()

    await asyncio.wait_for(task, 10)

    assert (record.left, record.fault, record.status) == (True, Kind.CLIENT_GONE, 499)
    assert left == [0]


async def test_a_client_that_leaves_after_the_answer_began_keeps_its_status() -> None:
    record, client = a_record(), ReadingClient()
    record.status = 200
    client.leave()

    await attended(record, client, wait_for_ever)

    assert (record.left, record.status) == (True, 200)


async def test_work_that_an_operator_ends_may_answer_first() -> None:
    record, answers, left = a_record(), list[str](), list[int]()

    async def work() -> None:
        try:
            await wait_for_ever()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            answers.append("cancelled")

    task = asyncio.create_task(attended(record, ReadingClient(), work, left))
    await asyncio.sleep(0)
    assert record.cancel is not None
    record.cancel()

    await asyncio.wait_for(task, 10)

    assert answers == ["cancelled"]
    assert (record.left, left) == (False, [0])


async def test_a_server_that_stops_ends_the_request_even_when_its_client_left() -> None:
    for leaves in (False, True):
        client = ReadingClient()
        task = asyncio.create_task(attended(a_record(), client, wait_for_ever))
        await asyncio.sleep(0)
        if leaves:
            client.leave()
        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)


async def test_a_client_that_leaves_later_ends_nothing_of_the_next_request() -> None:
    first = ReadingClient()

    async def nothing() -> None:
        await asyncio.sleep(0)

    await attended(a_record(), first, nothing)
    first.leave()
    for _ in range(5):
        await asyncio.sleep(0)

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
