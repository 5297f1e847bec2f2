"""A limit ends its own work and nothing else, and costs no timer of its own."""

import asyncio

import pytest

from cortex.router.request import deadlines
from cortex.router.request.deadlines import Deadline, Deadlines


@pytest.fixture(autouse=True)
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "STEP_S", 0.01)


async def work(limits: Deadlines, seconds: float, done: asyncio.Event) -> str:
    try:
        with Deadline(limits, seconds):
            await done.wait()
            return "done"
    except TimeoutError:
        return "late"


async def test_what_is_too_late_ends_with_a_timeout_and_the_rest_goes_on() -> None:
    limits, done = Deadlines(), asyncio.Event()
    late, other = (asyncio.ensure_future(work(limits, s, done)) for s in (0.02, 60))

    assert await asyncio.wait_for(late, 5) == "late"
    assert late.cancelling() == 0
    done.set()
    assert await asyncio.wait_for(other, 5) == "done"


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    limits, done = Deadlines(), asyncio.Event()
    task = asyncio.ensure_future(work(limits, 60, done))
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_that_comes_with_the_limit_is_not_lost() -> None:
    limits, done = Deadlines(), asyncio.Event()
    task = asyncio.ensure_future(work(limits, 60, done))
    await asyncio.sleep(0)
    next(iter(limits._live)).expire()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_limit_within_a_limit_ends_the_inner_work_only() -> None:
    limits = Deadlines()
    with Deadline(limits, 60):
        assert await work(limits, 0.02, asyncio.Event()) == "late"


async def test_requests_share_one_timer_which_ends_with_them() -> None:
    limits, loop = Deadlines(), asyncio.get_running_loop()
    with Deadline(limits, 60), Deadline(limits, 60):
        timers = {handle for handle in loop._scheduled if "Deadlines._look" in repr(handle)}  # type: ignore[attr-defined]
        assert len(timers) == 1
    limits._look()
    assert limits._timer is None
