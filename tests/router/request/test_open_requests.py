"""Which requests are open on an instance, and for how long none of them has received a byte."""

import asyncio
import time

import pytest

from cortex.router.request.open_requests import MOST_TIMES, WORTH_REPORTING_S, OpenRequests
from cortex.router.request.upstream import Broken
from cortex.router.request_record import Finished, RequestRecord

LATER_S = 1000.0
"""Far enough in the future that every silence is worth reporting."""


def a_request_record() -> RequestRecord:
    return RequestRecord("r", "f", "f", "chat", streams=True, read_s=0.0)


def silent(open_requests: OpenRequests, present: tuple[str, ...] = ("one",)) -> bool:
    return bool(open_requests.silences(time.monotonic() + LATER_S, present))


def test_an_instance_that_owes_an_answer_is_silent_until_it_gives_one() -> None:
    open_requests = OpenRequests()
    with open_requests.track("one", a_request_record()):
        at_once = open_requests.silences(time.monotonic() + WORTH_REPORTING_S / 2, ("one",))
        later = silent(open_requests)

    assert (at_once, later, silent(open_requests)) == ({}, True, False)


def test_what_a_client_left_waiting_counts_until_the_next_answer() -> None:
    open_requests = OpenRequests()
    with pytest.raises(asyncio.CancelledError), open_requests.track("one", a_request_record()):
        raise asyncio.CancelledError
    left = silent(open_requests)
    with open_requests.track("one", a_request_record()):
        pass

    assert (left, silent(open_requests)) == (True, False)


def test_a_byte_for_one_request_is_progress_for_all() -> None:
    open_requests, streams = OpenRequests(), a_request_record()
    with open_requests.track("one", a_request_record()), open_requests.track("one", streams):
        streams.piece(time.monotonic() + LATER_S)

        assert not silent(open_requests)


def test_all_open_requests_count_when_the_first_connection_breaks() -> None:
    open_requests = OpenRequests()
    with (
        open_requests.track("one", a_request_record()),
        pytest.raises(Broken),
        open_requests.track("one", a_request_record()),
    ):
        raise Broken("closed")

    assert open_requests.lose("one") == 2


def test_instances_that_are_gone_are_forgotten() -> None:
    open_requests = OpenRequests()
    with pytest.raises(asyncio.CancelledError), open_requests.track("one", a_request_record()):
        raise asyncio.CancelledError

    assert not silent(open_requests, ())
    assert not silent(open_requests)


def test_a_silence_is_reported_with_the_usual_time_to_a_first_byte() -> None:
    open_requests = OpenRequests()
    for _ in range(3 * MOST_TIMES):
        record = a_request_record()
        with open_requests.track("one", record):
            record.first = time.monotonic() + 2.0
        open_requests.finished(Finished([record]))
    with open_requests.track("one", a_request_record()):
        silences = open_requests.silences(time.monotonic() + LATER_S, ("one",))

    assert silences["one"].usual_s == pytest.approx(2.0, rel=0.1)
