"""How many bytes of bodies are held at a time, and where large ones are read."""

import threading

import pytest

from cortex.router.errors import KeyHoldsTooMuch, RequestError, RouterHoldsTooMuch
from cortex.router.request.intake import BODIES_OF_A_KEY, BODIES_OF_A_PROCESS, LARGE, Body, Intake
from tests.support.incoming import ReadingClient


def held(intake: Intake, key: str, size: int) -> Body:
    body = Body(intake, key)
    body.count(size)
    return body


def test_a_key_holds_so_many_bodies_and_its_next_may_come_when_one_is_answered() -> None:
    intake = Intake(100)
    first, *_ = [held(intake, "k", 100) for _ in range(BODIES_OF_A_KEY)]

    with pytest.raises(KeyHoldsTooMuch) as refused:
        held(intake, "k", 1)

    fault = refused.value.fault()
    assert (fault.status("chat"), fault.headers()["retry-after"]) == (429, "5")
    first.release()
    held(intake, "k", 100)


def test_a_process_holds_so_many_bodies_of_all_keys_together() -> None:
    intake = Intake(100)
    for n in range(BODIES_OF_A_PROCESS):
        held(intake, f"k{n}", 100)

    with pytest.raises(RouterHoldsTooMuch) as refused:
        held(intake, "another", 1)

    fault = refused.value.fault()
    assert (fault.status("chat"), fault.status("messages")) == (503, 529)
    assert fault.headers()["retry-after"] == "5"


def test_what_was_refused_is_not_counted_and_what_is_released_twice_is_released_once() -> None:
    intake = Intake(100)
    body = held(intake, "k", 300)
    with pytest.raises(RequestError):
        body.count(200)

    body.release()
    body.release()

    held(intake, "k", 100 * BODIES_OF_A_KEY)


async def test_a_body_that_was_answered_is_held_no_more_even_where_the_answer_broke() -> None:
    intake = Intake(100)
    body = held(intake, "k", 400)

    async def breaks(*_: object) -> None:
        raise OSError

    with pytest.raises(OSError):
        await body.release_after(breaks)(ReadingClient())

    held(intake, "k", 400)


async def test_a_large_body_is_read_on_another_thread_and_a_small_one_at_once() -> None:
    intake = Intake(LARGE)

    small = await intake.work(LARGE - 1, threading.get_ident)
    large = await intake.work(LARGE, threading.get_ident)
    intake.close()

    assert small == threading.get_ident() != large
