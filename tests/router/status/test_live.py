"""Every watcher receives the whole page once, and then the changes."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from cortex.router.overview.snapshot import FleetSnapshot
from cortex.router.status.live import MOST_AT_ONCE, MOST_WATCHERS, Live, TooManyWatchers
from tests.router.overview.snapshots import a_snapshot
from tests.support.factories import a_function, a_host


class Scene:
    """A page that renders every 10 ms."""

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
    """Return all events of the first rendering."""
    events = []
    async for event in stream:
        events.append(event)
        if event.get("whole"):
            return events
    raise AssertionError("the stream ended before the first rendering was complete")


async def test_the_first_rendering_is_split_and_only_changes_follow() -> None:
    functions = [a_function(f"org/{n}") for n in range(150)]
    scene = Scene(a_snapshot(*functions, hosts=(a_host(at=10_000.0),)))
    stream = news(scene.live.watch())

    first = await whole(stream)
    scene.now = replace(scene.now, problem="models.toml: unknown key")
    changed = await anext(stream)

    assert all(sum(len(p["html"]) for p in e["put"]) <= MOST_AT_ONCE for e in first)
    assert len({p["id"] for e in first for p in e["put"]}) == 9 + 1 + 150
    assert [p["id"] for p in changed["put"]] == ["verdict"]
    await scene.live.close()


async def test_a_removed_element_is_dropped() -> None:
    scene = Scene(a_snapshot(a_function("org/one"), a_function("org/two"), hosts=(a_host(at=10_000.0),)))
    stream = news(scene.live.watch())
    (first,) = await whole(stream)
    two = next(p["id"] for p in first["put"] if "org/two" in p["html"] and p.get("into") == "functions")

    scene.now = a_snapshot(a_function("org/one"), hosts=(a_host(at=10_000.0),))

    assert two in (await anext(stream))["drop"]
    await scene.live.close()


async def test_without_watchers_nothing_is_rendered() -> None:
    scene = Scene(a_snapshot())
    stream = scene.live.watch()
    await anext(stream)
    await anext(stream)

    await stream.aclose()  # type: ignore[attr-defined]

    async with asyncio.timeout(2):
        while scene.live.active:  # noqa: ASYNC110  (no event reports the end)
            await asyncio.sleep(0)


async def test_one_rendering_serves_all_watchers() -> None:
    scene = Scene(a_snapshot())
    streams = [news(scene.live.watch()) for _ in range(20)]

    await asyncio.gather(*(whole(s) for s in streams))

    assert scene.looks < 10
    await scene.live.close()


async def test_the_number_of_watchers_is_bounded() -> None:
    scene = Scene(a_snapshot())
    streams = [scene.live.watch() for _ in range(MOST_WATCHERS)]
    await asyncio.gather(*(anext(s) for s in streams))

    with pytest.raises(TooManyWatchers):
        await anext(scene.live.watch())
    await streams[0].aclose()  # type: ignore[attr-defined]
    assert await anext(scene.live.watch())
    await scene.live.close()


async def test_a_stream_ends_when_the_router_stops() -> None:
    scene = Scene(a_snapshot())
    stream = news(scene.live.watch())
    await whole(stream)

    scene.over = True

    async with asyncio.timeout(2):
        assert [e async for e in stream] == []
    await scene.live.close()
