"""What a router knows, whatever order its reads of the record end in."""

import asyncio
from typing import cast

import pytest
from msgspec.structs import replace

from cortex.platform import clock
from cortex.platform.record import Fleet, used_instance
from cortex.platform.registry import Registry
from cortex.router.fleet_view import NOTED_S, FleetView

ONE = used_instance("one")


class Reads:
    """A record whose full reads end when the test lets them."""

    def __init__(self) -> None:
        self.pending: list[tuple[float, asyncio.Future[Fleet]]] = []

    async def fleet(self, now: float) -> Fleet:
        future: asyncio.Future[Fleet] = asyncio.get_running_loop().create_future()
        self.pending.append((now, future))
        return replace(await future, at=now)


async def begun(view: FleetView, reads: Reads) -> tuple[asyncio.Task[Fleet], asyncio.Future[Fleet]]:
    """Begin a full read; return it and what ends it."""
    read = asyncio.create_task(view.refresh())
    await asyncio.sleep(0)
    return read, reads.pending[-1][1]


async def test_a_full_read_that_began_earlier_and_ends_later_changes_nothing() -> None:
    reads = Reads()
    view = FleetView(cast(Registry, reads), "router-1")
    slow, end_slow = await begun(view, reads)
    quick, end_quick = await begun(view, reads)
    end_quick.set_result(Fleet(cordoned=frozenset({"host-a"})))
    await quick
    end_slow.set_result(Fleet())
    await slow

    assert view.fleet.cordoned == {"host-a"}


async def test_a_use_of_our_own_is_known_also_after_a_read_that_does_not_have_it() -> None:
    reads = Reads()
    view = FleetView(cast(Registry, reads), "router-1")
    now = clock.now()
    read, end = await begun(view, reads)
    view.note_used({ONE: now})
    end.set_result(Fleet(used={ONE: now - 100.0}))
    await read

    assert view.fleet.used == {ONE: now}


async def test_our_own_uses_are_remembered_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads()
    view = FleetView(cast(Registry, reads), "router-1")
    now = clock.now()
    view.note_used({ONE: now})
    monkeypatch.setattr(clock, "now", lambda: now + NOTED_S + 1)
    view.note_used({})
    read, end = await begun(view, reads)
    end.set_result(Fleet())
    await read

    assert view.fleet.used == {}
