"""Requests proceed by priority after a start."""

import asyncio

from cortex.platform.api_keys import Priority
from cortex.router.request.start_gate import StartGate

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


async def test_after_a_start_requests_proceed_by_priority_even_if_a_higher_one_takes_longer() -> None:
    gate, up, order = StartGate(), asyncio.Event(), []

    async def one(priority: Priority, hops: int) -> None:
        waiter = gate.join("f", priority)
        await up.wait()
        for _ in range(hops):
            await asyncio.sleep(0)
        await waiter.wait_for_higher()
        order.append(priority)
        waiter.leave()
        await asyncio.sleep(0)

    waiting = [asyncio.create_task(one(p, hops)) for p, hops in ((LOW, 0), (NORMAL, 1), (HIGH, 5), (NORMAL, 0))]
    await asyncio.sleep(0)
    up.set()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)

    assert order == [HIGH, NORMAL, NORMAL, LOW]
    assert not gate._waiting
    assert not gate._changed


async def test_a_waiter_that_leaves_holds_up_no_lower_one_and_none_of_another_function() -> None:
    gate = StartGate()
    high, low, other = gate.join("f", HIGH), gate.join("f", LOW), gate.join("g", LOW)
    behind = asyncio.create_task(low.wait_for_higher())
    await asyncio.wait_for(other.wait_for_higher(), 1)
    await asyncio.sleep(0)
    waits = not behind.done()
    high.leave()
    high.leave()
    await asyncio.wait_for(behind, 1)

    assert waits


async def test_a_waiter_whose_name_moves_to_another_function_waits_among_those_of_that_one() -> None:
    gate = StartGate()
    moved, low, left_behind = gate.join("f", HIGH), gate.join("g", LOW), gate.join("f", LOW)
    moved.move_to("g")
    await asyncio.wait_for(left_behind.wait_for_higher(), 5)
    behind = asyncio.create_task(low.wait_for_higher())
    await asyncio.sleep(0)
    waits = not behind.done()
    for waiter in (moved, left_behind):
        waiter.leave()
    await asyncio.wait_for(behind, 5)
    low.leave()

    assert waits
    assert not gate._waiting
