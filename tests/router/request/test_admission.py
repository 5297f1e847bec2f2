"""Taking turns at an instance, and going through after a start."""

import asyncio

import pytest

from cortex.platform.api_keys import Priority
from cortex.router.errors import QueueFull
from cortex.router.request.admission import Admission, StartGate

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


@pytest.mark.parametrize(
    ("came", "order"),
    [
        ([NORMAL] * 4, [0, 1, 2, 3]),
        ([NORMAL, NORMAL, LOW, HIGH], [0, 3, 1, 2]),
        ([LOW, LOW, NORMAL, HIGH, HIGH], [0, 3, 4, 2, 1]),
    ],
)
async def test_requests_take_turns_by_priority_and_then_as_they_came(came: list[Priority], order: list[int]) -> None:
    turns, done = Admission(), []

    async def one(number: int) -> None:
        with turns.at("i", 1, came[number], most=9) as turn:
            await turn.wait_for_slot()
            await asyncio.sleep(0)
            done.append(number)

    await asyncio.gather(*(one(n) for n in range(len(came))))

    assert done == order
    assert not turns._queues
    assert not turns._futures


async def test_who_leaves_the_row_frees_its_place() -> None:
    turns = Admission()

    async def one() -> None:
        with turns.at("i", 1, most=9) as turn:
            await turn.wait_for_slot()

    with turns.at("i", 1) as first:
        await first.wait_for_slot()
        waiting = asyncio.create_task(one())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    with turns.at("i", 1) as third:
        assert not third.waits
        await asyncio.wait_for(third.wait_for_slot(), 1)


async def test_one_that_leaves_as_its_turn_comes_breaks_nothing_and_passes_the_turn_on() -> None:
    """The one before is done in the same moment in which the next is cancelled."""
    turns, came = Admission(), asyncio.Event()

    async def one(then: asyncio.Event) -> None:
        with turns.at("i", 1, most=9) as turn:
            await turn.wait_for_slot()
            then.set()

    with turns.at("i", 1) as first:
        await first.wait_for_slot()
        leaving = asyncio.create_task(one(asyncio.Event()))
        behind = asyncio.create_task(one(came))
        await asyncio.sleep(0)
        leaving.cancel()
    await asyncio.wait_for(came.wait(), 5)
    await asyncio.gather(leaving, behind, return_exceptions=True)

    assert leaving.cancelled()
    assert not turns._queues


async def test_a_row_that_is_too_long_is_a_full_queue() -> None:
    turns = Admission()
    with turns.at("i", 1, most=1), turns.at("i", 1, most=1):
        with pytest.raises(QueueFull), turns.at("i", 1, most=1):
            pass
        with turns.at("i", 1, most=2) as fourth:
            assert fourth.waits


async def test_where_many_may_run_nobody_waits() -> None:
    turns = Admission()
    with turns.at("i", None) as first, turns.at("i", None) as second:
        await first.wait_for_slot()
        await second.wait_for_slot()


async def test_after_a_start_all_go_through_by_priority_however_long_a_higher_one_takes() -> None:
    starts, up, order = StartGate(), asyncio.Event(), []

    async def one(priority: Priority, hops: int) -> None:
        with starts.waiting("f", priority) as waiting:
            await up.wait()
            for _ in range(hops):
                await asyncio.sleep(0)
            await waiting.clear()
            order.append(priority)
            waiting.through()
            await asyncio.sleep(0)

    going = [asyncio.create_task(one(p, hops)) for p, hops in ((LOW, 0), (NORMAL, 1), (HIGH, 5), (NORMAL, 0))]
    await asyncio.sleep(0)
    up.set()
    await asyncio.wait_for(asyncio.gather(*going), 5)

    assert order == [HIGH, NORMAL, NORMAL, LOW]
    assert not starts._waiting
    assert not starts._changed


async def test_one_that_gives_up_its_start_keeps_nobody_waiting() -> None:
    starts = StartGate()
    with starts.waiting("f", HIGH), starts.waiting("f", LOW) as low, starts.waiting("g", LOW) as other:
        behind = asyncio.create_task(low.clear())
        await asyncio.wait_for(other.clear(), 1)
        await asyncio.sleep(0)
        assert not behind.done()
    await asyncio.wait_for(behind, 1)


async def test_one_whose_name_stands_for_another_function_waits_among_those_of_that_one() -> None:
    starts = StartGate()
    with starts.waiting("f", HIGH) as moved, starts.waiting("g", LOW) as low, starts.waiting("f", LOW) as left_behind:
        moved.move_to("g")
        await asyncio.wait_for(left_behind.clear(), 5)
        behind = asyncio.create_task(low.clear())
        await asyncio.sleep(0)
        waits = not behind.done()
        moved.through()
        await asyncio.wait_for(behind, 5)

    assert waits
    assert not starts._waiting
