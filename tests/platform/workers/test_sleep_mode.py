"""An engine's sleep mode: what it reports of itself afterwards decides whether it has moved."""

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from cortex.platform.workers.control_keys import ControlKeys
from cortex.platform.workers.sleep_mode import SleepFailed, SleepMode
from tests.support.factories import an_instance
from tests.support.servers import serving


class Engine:
    """An engine that is told to move: its status, whether it moves, and whether its answer comes in time."""

    def __init__(self, status: int = 200, *, moves: bool = True, answers: bool = True) -> None:
        self.status, self.moves, self.answers = status, moves, answers
        self.asleep = False

    async def handle(self, request: web.Request) -> web.Response:
        if request.path == "/is_sleeping":
            return web.json_response({"is_sleeping": self.asleep})
        if self.moves:
            self.asleep = request.path == "/sleep"
        if not self.answers:
            await asyncio.Event().wait()
        return web.Response(status=self.status)


async def sleep_and_wake(engine: Engine, folder: Path) -> None:
    async with serving(engine.handle) as url:
        mode, instance = SleepMode(ControlKeys(folder)), an_instance("i", url=url)
        await mode.sleep(instance, 0.2)
        await mode.wake(instance, 0.2)


@pytest.mark.parametrize("engine", [Engine(), Engine(answers=False), Engine(status=500)])
async def test_an_engine_that_has_moved_has_moved_whatever_it_answered(engine: Engine, tmp_path: Path) -> None:
    await sleep_and_wake(engine, tmp_path)


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        (Engine(moves=False), "the engine does not report that it sleeps"),
        (Engine(status=500, moves=False), "the engine answered 500 to /sleep"),
        (Engine(moves=False, answers=False), "the engine did not answer /sleep within 0 s"),
    ],
)
async def test_an_engine_that_has_not_moved_is_a_failure_with_the_reason(
    engine: Engine, why: str, tmp_path: Path
) -> None:
    with pytest.raises(SleepFailed, match=why):
        await sleep_and_wake(engine, tmp_path)
