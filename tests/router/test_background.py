"""Work beside the requests goes on, whatever happens to one round of it."""

import asyncio
import io
import sys

import pytest
import structlog

from cortex.platform import log
from cortex.platform.cancel import cancelled
from cortex.platform.settings import Log
from cortex.router.runtime import for_ever


async def test_a_fault_costs_one_round_and_ends_only_when_cancelled() -> None:
    rounds: list[int] = []
    enough = asyncio.Event()

    async def work() -> None:
        rounds.append(1)
        if len(rounds) == 3:
            enough.set()
            await asyncio.Event().wait()
        raise ValueError("a fault of ours")

    task = asyncio.create_task(for_ever(work, pause_s=0))
    async with asyncio.timeout(5):
        await enough.wait()
    await cancelled([task])

    assert len(rounds) == 3
    assert task.cancelled()


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
