"""Calls that never return block only their own place, within bounds on time and threads."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cortex.platform.blocking_calls import BlockingCalls, NoAnswer

SHORT_S, LONG_S = 0.1, 20.0


class Mount:
    """A file system whose looks block until it is back."""

    def __init__(self) -> None:
        self.back, self.entered = threading.Event(), threading.Event()
        self.looks = 0

    def stat(self) -> str:
        self.looks += 1
        self.entered.set()
        self.back.wait()
        return "here"


@pytest.fixture(autouse=True)
def _no_spare_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex.platform.blocking_calls.SPARE_S", 0.0)


@pytest.fixture
def mount() -> Iterator[Mount]:
    """A mount that hangs."""
    hung = Mount()
    yield hung
    hung.back.set()


async def returned() -> None:
    """Wait until the threads of all looks have ended and the loop has heard of it."""
    for thread in threading.enumerate():
        if thread.name == "look stat":
            thread.join(5)
    await asyncio.sleep(0)


async def refused(looks: BlockingCalls, place: str, work: Any, **more: Any) -> str:
    with pytest.raises(NoAnswer) as caught:
        await looks.look(place, "stat", work, **more)
    return str(caught.value)


async def test_a_call_over_the_time_limit_raises_no_answer_with_its_path(mount: Mount) -> None:
    looks = BlockingCalls(SHORT_S, hint="is its mount hung?")

    why = await refused(looks, "/mnt/a", mount.stat)

    assert why == "/mnt/a does not answer (is its mount hung?)"
    assert list(looks.silent()) == ["/mnt/a"]


async def test_calls_at_a_silent_path_fail_at_once_without_a_thread(mount: Mount) -> None:
    looks = BlockingCalls(SHORT_S)
    await refused(looks, "/mnt/a", mount.stat)
    loop = asyncio.get_running_loop()

    began = loop.time()
    for number in range(50):
        await refused(looks, "/mnt/a", mount.stat, question=number, within_s=LONG_S)

    assert loop.time() - began < LONG_S / 2
    assert (mount.looks, looks.under_way()) == (1, 1)


async def test_concurrent_equal_calls_share_one_thread(mount: Mount) -> None:
    looks = BlockingCalls(SHORT_S)

    result = await asyncio.gather(
        *(looks.look("/mnt/a", "stat", mount.stat) for _ in range(20)), return_exceptions=True
    )

    assert {type(f) for f in result} == {NoAnswer}
    assert mount.looks == 1


async def test_different_questions_at_one_path_run_one_after_another() -> None:
    looks = BlockingCalls(LONG_S)
    together: list[int] = []
    inside = 0

    def work() -> int:
        nonlocal inside
        inside += 1
        together.append(inside)
        inside -= 1
        return len(together)

    result = await asyncio.gather(*(looks.look("/mnt/a", "stat", work, question=n) for n in range(10)))

    assert sorted(result) == list(range(1, 11))
    assert set(together) == {1}
    assert looks.under_way() == 0


async def test_a_silent_path_does_not_affect_others(mount: Mount) -> None:
    looks = BlockingCalls(SHORT_S)
    await refused(looks, "/mnt/a", mount.stat)

    assert await looks.look("/data/b", "stat", lambda: "here") == "here"


async def test_a_path_is_usable_again_after_it_has_answered(mount: Mount) -> None:
    looks = BlockingCalls(SHORT_S)
    await refused(looks, "/mnt/a", mount.stat, question="f")

    mount.back.set()
    await returned()

    assert looks.silent() == {}
    assert await looks.look("/mnt/a", "stat", mount.stat, question="f") == "here"
    assert mount.looks == 1  # what came late was held for it


async def test_a_late_result_is_not_returned_for_another_question(mount: Mount) -> None:
    looks = BlockingCalls(SHORT_S)
    await refused(looks, "/mnt/a", mount.stat, question="f")
    mount.back.set()
    await returned()

    assert await looks.look("/mnt/a", "stat", lambda: "other", question="g") == "other"


async def test_all_paths_of_a_mount_with_many_silent_ones_fail_at_once(mount: Mount) -> None:
    looks = BlockingCalls(SHORT_S, group=lambda place: place.rpartition("/")[0], most_of_group=3)
    await asyncio.gather(*(refused(looks, f"/mnt/nfs/{n}", mount.stat) for n in range(3)))

    why = await refused(looks, "/mnt/nfs/another", mount.stat, within_s=LONG_S)

    assert why == "/mnt/nfs does not answer"
    assert mount.looks == 3
    assert await looks.look("/data/b", "stat", lambda: "here") == "here"


async def test_the_number_of_threads_is_bounded(mount: Mount) -> None:
    looks = BlockingCalls(SHORT_S, most=5)

    whys = await asyncio.gather(*(refused(looks, f"/mnt/{n}/x", mount.stat) for n in range(20)))

    assert mount.looks == 5
    assert sum("5 other calls are under way" in why for why in whys) == 15


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), StopIteration("odd")])
async def test_an_exception_of_a_call_reaches_its_caller(error: Exception) -> None:
    def fails() -> None:
        raise error

    with pytest.raises((FileNotFoundError, RuntimeError), match=str(error)):
        await BlockingCalls(LONG_S).look("/a", "stat", fails)


async def test_a_cancelled_caller_does_not_cancel_the_shared_call(mount: Mount) -> None:
    looks = BlockingCalls(LONG_S)
    first = asyncio.create_task(looks.look("/mnt/a", "stat", mount.stat))
    second = asyncio.create_task(looks.look("/mnt/a", "stat", mount.stat))
    await asyncio.sleep(0)

    first.cancel()
    mount.back.set()

    assert await second == "here"
    assert first.cancelled() or first.cancelling()


async def test_calls_one_after_another_share_a_thread_and_calls_at_once_do_not(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortex.platform.blocking_calls.SPARE_S", LONG_S)
    looks = BlockingCalls(LONG_S)
    first = await looks.look("/mnt/a", "stat", threading.get_ident)
    second = await looks.look("/mnt/a", "stat", threading.get_ident)
    hung = asyncio.create_task(looks.look("/mnt/b", "stat", mount.stat))
    assert await asyncio.to_thread(mount.entered.wait, 5)
    third = await looks.look("/mnt/a", "stat", threading.get_ident)
    mount.back.set()

    assert await hung == "here"
    assert first == second != third


async def test_a_thread_without_a_call_ends() -> None:
    looks = BlockingCalls(LONG_S)
    threads = [await looks.look("/mnt/a", "stat", threading.current_thread) for _ in range(3)]

    for thread in threads:
        thread.join(5)

    assert not any(thread.is_alive() for thread in threads)
    assert await looks.look("/mnt/a", "stat", lambda: "here") == "here"
