"""Work beside the requests goes on, whatever happens to one round of it."""

import asyncio
import io
import sys

import pytest
import structlog

from cortex.platform import log
from cortex.platform.cancel import cancelled
from cortex.platform.registry import RecordAway
from cortex.platform.settings import Log
from cortex.router.background import Background


async def test_a_fault_costs_one_round_and_ends_only_when_cancelled() -> None:
    rounds: list[int] = []
    enough = asyncio.Event()

    async def work() -> None:
        rounds.append(1)
        if len(rounds) == 3:
            enough.set()
            await asyncio.Event().wait()
        raise ValueError("a fault of ours")

    counted: list[str] = []
    background = Background(counted.append)
    task = asyncio.create_task(background.run("sweep", work, pause_s=0))
    async with asyncio.timeout(5):
        await enough.wait()
    await cancelled([task])

    assert len(rounds) == 3
    assert task.cancelled()
    assert counted == ["sweep", "sweep"]
    assert background.last is not None
    assert (background.last.work, background.last.error, background.last.failures) == ("sweep", "ValueError", 2)


async def test_a_record_that_is_away_is_no_failure_of_what_reads_it() -> None:
    background = Background()

    async def work() -> None:
        raise RecordAway("no answer")

    await background.attempt("sweep", work)

    assert background.last is None


def test_a_traceback_on_the_console_shows_no_local_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(log, "_lines_from", None)  # put back afterwards
    before = structlog.get_config()
    try:
        log.configure(Log(format="console"))
        prompt = "a secret question"
        try:
            raise ValueError("wrong")
        except ValueError as error:
            structlog.get_logger().error("broke", exc_info=error)
    finally:
        structlog.configure(**before)

    assert prompt not in out.getvalue()
    assert "ValueError: wrong" in out.getvalue()
