"""Everybody who looks is told everything once, and then what changed."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from cortex.router.status.live import MOST_AT_ONCE, MOST_WATCHERS, Live, TooManyWatch
from cortex.router.status.snapshot import FleetSnapshot
from tests.router.status.knowns import known
from tests.support.factories import a_function, a_host


class Scene:
    """What is known, for a page that looks very often."""

    def __init__(self, now: FleetSnapshot) -> None:
        self.now, self.looks, self.over = now, 0, False
        self.live = Live(self.look, lambda: self.over, every_s=0.01)

    async def look(self) -> FleetSnapshot:
        self.looks += 1
        return replace(self.now, now=self.now.now + self.looks)


async def news(stream: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    async for event in stream:
        if event.startswith(b"data: "):
            yield json.loads(event.removeprefix(b"data: "))


async def whole(stream: AsyncIterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """All events of the first look."""
    events = []
    async for event in stream:
        events.append(event)
        if event.get("whole"):
            return events
    raise AssertionError("the stream ended before the first look was told")


async def test_a_first_look_comes_in_parts_and_then_only_what_changed() -> None:
    functions = [a_function(f"org/{n}") for n in range(150)]
    scene = Scene(known(*functions, hosts=(a_host(at=10_000.0),)))
    stream = news(scene.live.watch())

    first = await whole(stream)
    scene.now = replace(scene.now, problem="models.toml: unknown key")
    changed = await anext(stream)

    assert all(sum(len(p["html"]) for p in e["put"]) <= MOST_AT_ONCE for e in first)
    assert len({p["id"] for e in first for p in e["put"]}) == 8 + 1 + 150
    assert [p["id"] for p in changed["put"]] == ["verdict"]
    await scene.live.close()


async def test_what_is_gone_is_dropped() -> None:
    scene = Scene(known(a_function("org/one"), a_function("org/two"), hosts=(a_host(at=10_000.0),)))
    stream = news(scene.live.watch())
    (first,) = await whole(stream)
    two = next(p["id"] for p in first["put"] if "org/two" in p["html"] and p.get("into") == "functions")

    scene.now = known(a_function("org/one"), hosts=(a_host(at=10_000.0),))

    assert two in (await anext(stream))["drop"]
    await scene.live.close()


async def test_nobody_looks_when_nobody_watches() -> None:
    scene = Scene(known())
    stream = scene.live.watch()
    await anext(stream)
    await anext(stream)

    await stream.aclose()  # type: ignore[attr-defined]

    async with asyncio.timeout(2):
        while scene.live.looking:  # noqa: ASYNC110  (it ends by itself; nobody is told)
            await asyncio.sleep(0)


async def test_one_look_serves_all() -> None:
    scene = Scene(known())
    streams = [news(scene.live.watch()) for _ in range(20)]

    await asyncio.gather(*(whole(s) for s in streams))

    assert scene.looks < 10
    await scene.live.close()


async def test_only_so_many_may_watch() -> None:
    scene = Scene(known())
    streams = [scene.live.watch() for _ in range(MOST_WATCHERS)]
    await asyncio.gather(*(anext(s) for s in streams))

    with pytest.raises(TooManyWatch):
        await anext(scene.live.watch())
    await streams[0].aclose()  # type: ignore[attr-defined]
    assert await anext(scene.live.watch())
    await scene.live.close()


async def test_a_stream_ends_when_the_router_stops() -> None:
    scene = Scene(known())
    stream = news(scene.live.watch())
    await whole(stream)

    scene.over = True

    async with asyncio.timeout(2):
        assert [e async for e in stream] == []
    await scene.live.close()
