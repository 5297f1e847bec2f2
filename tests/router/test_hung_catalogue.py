"""A catalogue's file on a mount that hangs: what was read last stays in force, and it is read again afterwards."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cortex.platform.blocking_calls import BlockingCalls
from cortex.platform.cancel import cancelled
from cortex.router import live_catalogue
from cortex.router.live_catalogue import LiveCatalogue

ONE, TWO = (f'[[models]]\nid = "{name}"\nengine = "fake"\n' for name in ("one", "two"))


async def seen(look: Callable[[], object]) -> None:
    """Wait until a look is true."""
    async with asyncio.timeout(10):
        while not look():  # noqa: ASYNC110 (the directory tells of no change)
            await asyncio.sleep(0.01)


async def test_the_catalogue_stays_in_force_while_its_file_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, back, mark = tmp_path / "models.toml", threading.Event(), live_catalogue._mark
    path.write_text(ONE)
    found = LiveCatalogue(path)
    found._file = BlockingCalls(0.1)

    def hangs(path: Path) -> object:
        back.wait()
        return mark(path)

    monkeypatch.setattr(live_catalogue, "LOOK_S", 0.01)
    monkeypatch.setattr(live_catalogue, "_mark", hangs)
    following = asyncio.create_task(found.follow())
    await seen(lambda: found.problem)
    problem, served = found.problem, list(found.catalogue.functions)

    path.write_text(ONE + TWO)
    back.set()
    await seen(lambda: not found.problem)
    await cancelled([following])

    assert problem == f"{path} does not answer; the catalogue as it was last read is in force"
    assert served == ["one"]
    assert list(found.catalogue.functions) == ["one", "two"]
