"""Answers with long lists: they are whole, and other work is done between their slices."""

import asyncio
from collections.abc import AsyncIterator
from itertools import count

import msgspec
import pytest

from cortex.router.routes.long_lists import SLICE_S, slices


async def joined(pieces: AsyncIterator[bytes]) -> object:
    return msgspec.json.decode(b"".join([piece async for piece in pieces]))


@pytest.mark.parametrize("length", [0, 1, 2, 1000])
async def test_an_answer_is_one_object_whatever_the_length_of_its_list(length: int) -> None:
    entries = [{"id": n} for n in range(length)]

    assert await joined(slices("data", entries, {"object": "list"})) == {"object": "list", "data": entries}
    assert await joined(slices("data", entries)) == {"data": entries}


async def test_an_entry_in_pieces_is_json_already() -> None:
    entries = [(b'{"id":', b"1}"), {"id": 2}, (b"3",)]

    assert await joined(slices("data", entries)) == {"data": [{"id": 1}, {"id": 2}, 3]}


async def test_other_work_is_done_between_the_slices_of_an_answer() -> None:
    ticks, done = count(), 0

    async def other() -> None:
        nonlocal done
        while True:
            done += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    answer = slices("data", range(100), clock=lambda: next(ticks) * 0.6 * SLICE_S)

    assert len([piece async for piece in answer]) == 51  # two entries fill a slice
    task.cancel()
    assert done >= 50


async def test_a_search_that_finds_little_is_sliced_like_a_list() -> None:
    ticks = count()
    entries = [(), {"id": 1}, *[()] * 97, (b"2",)]

    pieces = [p async for p in slices("data", entries, clock=lambda: next(ticks) * 0.6 * SLICE_S)]

    assert len(pieces) == 51
    assert msgspec.json.decode(b"".join(pieces)) == {"data": [{"id": 1}, 2]}


async def test_entries_are_computed_while_the_answer_is_sent() -> None:
    computed, ticks = [], count()
    entries = (computed.append(n) or n for n in range(100))  # type: ignore[func-returns-value]

    first = await anext(slices("data", entries, clock=lambda: next(ticks) * 0.6 * SLICE_S))

    assert (first, computed) == (b'{"data":[0,1', [0, 1])
