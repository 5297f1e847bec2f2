"""A catalogue on a hung mount: the last valid catalogue stays in effect, and the file is read again afterwards."""

import asyncio
import threading
from pathlib import Path

import pytest

from cortex.platform.blocking_calls import BlockingCalls
from cortex.platform.cancel import cancel_tasks
from cortex.router import live_catalogue
from cortex.router.live_catalogue import LiveCatalogue
from tests.support.until import until

ONE, TWO = (f'[[models]]\nid = "{name}"\nengine = "fake"\n' for name in ("one", "two"))


async def test_the_catalogue_stays_in_effect_while_its_file_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, back, mark = tmp_path / "models.toml", threading.Event(), live_catalogue._mark
    path.write_text(ONE)
    catalogue = LiveCatalogue(path)
    catalogue._file = BlockingCalls(0.1)

    def hangs(path: Path) -> object:
        back.wait()
        return mark(path)

    monkeypatch.setattr(live_catalogue, "CHECK_S", 0.01)
    monkeypatch.setattr(live_catalogue, "_mark", hangs)
    following = asyncio.create_task(catalogue.follow())
    await until(lambda: catalogue.problem)
    problem, served = catalogue.problem, list(catalogue.catalogue.functions)

    path.write_text(ONE + TWO)
    back.set()
    await until(lambda: not catalogue.problem)
    await cancel_tasks([following])

    assert problem == f"{path} does not answer; the last valid catalogue stays in effect"
    assert served == ["one"]
    assert list(catalogue.catalogue.functions) == ["one", "two"]
