"""Background work continues after exceptions, which are counted and shown."""

import asyncio

import pytest

from cortex.platform.cancel import cancel_tasks
from cortex.platform.faults import RECENT_S, Faults


async def test_a_loop_that_raises_restarts_and_is_counted() -> None:
    counted: list[str] = []
    faults, rounds, done = Faults(counted.append), 0, asyncio.Event()

    async def loop() -> None:
        nonlocal rounds
        rounds += 1
        if rounds > 2:
            done.set()
            await asyncio.Event().wait()
        raise KeyError("a secret")

    task = asyncio.create_task(faults.run("sweep", loop, pause_s=0))
    async with asyncio.timeout(10):
        await done.wait()
    await cancel_tasks([task])

    (fault,) = faults.all()
    assert (fault.work, fault.kind, fault.count) == ("sweep", "KeyError", 2)
    assert counted == ["sweep", "sweep"]


async def test_a_loop_that_is_cancelled_ends() -> None:
    async def loop() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(Faults().run("sweep", loop))

    await cancel_tasks([task])

    assert task.cancelled()


def test_a_guard_records_and_suppresses_an_exception() -> None:
    faults = Faults()

    with faults.guard("effect"):
        raise OSError("disk full")

    assert [f.kind for f in faults.all()] == ["OSError"]


def test_the_text_of_an_exception_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    with Faults().guard("effect"):
        raise ValueError("a prompt")

    assert "a prompt" not in capsys.readouterr().err


def test_a_fault_is_recent_for_a_while() -> None:
    now = 0.0
    faults = Faults(now=lambda: now)
    with faults.guard("effect"):
        raise ValueError
    before = faults.recent()

    now = RECENT_S

    assert (len(before), faults.recent(), len(faults.all())) == (1, (), 1)
