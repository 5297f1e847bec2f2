"""What is noted of requests, and what the last hour adds up to. Times are given."""

import asyncio
from typing import Any

import pytest

from cortex.platform.faults import Faults
from cortex.router.api_types import Try
from cortex.router.metrics import latency
from cortex.router.metrics.traffic import BUCKET_S, HOUR, Traffic, merge
from cortex.router.request_record import RECENT, Finished, RequestRecord, RequestRecords, summary


def a_request_record(id: str = "req_1", *, function: str = "org/model", **noted: Any) -> RequestRecord:
    """A streamed request that has just begun."""
    request_record = RequestRecord(id, function, function, "chat", streams=True, read_s=0.0)
    request_record.began = 100.0
    for name, value in noted.items():
        setattr(request_record, name, value)
    return request_record


def a_finished(**noted: Any) -> RequestRecord:
    """Ten tokens in two seconds, the first after one."""
    values = {"first": 101.0, "last": 103.0, "ended": 103.0, "pieces": 10, "tokens_out": 11, "status": 200}
    return a_request_record(**(values | noted))


def test_the_gaps_between_pieces_are_counted_from_the_second_on() -> None:
    request_record = a_request_record()

    for now in (101.0, 101.1, 101.2, 103.2):
        request_record.piece(now)

    assert request_record.first_s == 1.0
    assert request_record.gaps is not None
    assert sum(request_record.gaps) == 3
    assert request_record.gaps_s == pytest.approx(2.2)


def test_a_rate_is_of_the_tokens_after_the_first() -> None:
    assert a_finished().tokens_per_s == 5.0
    assert a_finished(tokens_out=1).tokens_per_s is None
    assert a_finished(last=101.0).tokens_per_s is None


@pytest.mark.parametrize(
    ("status", "fault", "failed"),
    [
        (200, "", False),
        (200, "worker_error", True),  # in the stream
        (502, "worker_error", True),
        (503, "loading", True),
        (404, "unknown_model", False),
        (429, "rate_limited", False),
        (499, "client_gone", False),
        (200, "client_gone", False),
    ],
)
def test_a_request_failed_when_it_was_not_the_clients_doing(status: int, fault: str, failed: bool) -> None:
    assert a_finished(status=status, fault=fault).failed is failed


async def test_a_request_is_over_once_and_the_listeners_get_those_of_a_moment_together() -> None:
    batches: list[list[str]] = []
    settled = asyncio.Event()
    request_records = RequestRecords(
        [lambda finished: batches.append([r.id for r in finished]), lambda _: settled.set()]
    )
    request_record, other = a_request_record(), a_request_record("req_2")
    request_records.begin(request_record)
    request_records.begin(other)

    request_records.over(request_record)
    request_records.over(request_record)
    request_records.over(other)
    before = list(batches)
    await asyncio.wait_for(settled.wait(), 5)
    request_records.settle()

    assert (before, batches) == ([], [["req_1", "req_2"]])
    assert request_records.live() == []
    assert request_records.find("req_1") == [request_record]


async def test_a_line_of_a_batch_that_will_return_has_no_outcome() -> None:
    every, outcomes = list[str](), list[str]()
    request_records = RequestRecords(
        [lambda finished: every.extend(r.id for r in finished)],
        [lambda finished: outcomes.extend(r.id for r in finished)],
    )
    for id, fault in (("waits", "batch_waits"), ("fails", "no_capacity")):
        request_records.begin(request_record := a_request_record(id, status=503, fault=fault))
        request_records.over(request_record)

    request_records.settle()

    assert (every, outcomes) == (["waits", "fails"], ["fails"])
    assert request_records.find("waits") == []


async def test_only_so_many_requests_are_remembered() -> None:
    request_records = RequestRecords([])
    for number in range(RECENT + 5):
        request_records.begin(request_record := a_request_record(f"req_{number}"))
        request_records.over(request_record)

    assert request_records.find("req_4") == []
    assert len(request_records.find("req_5")) == 1


def test_cancelling_reaches_every_live_request_of_an_id() -> None:
    cancelled: list[int] = []
    request_records = RequestRecords([])
    for number in (1, 2):
        request_records.begin(a_request_record("same", cancel=lambda n=number: cancelled.append(n)))
    request_records.begin(a_request_record("other", cancel=lambda: cancelled.append(3)))

    assert request_records.cancel("same") == 2
    assert cancelled == [1, 2]


def test_cancelling_for_a_key_leaves_the_requests_that_others_gave_the_same_id() -> None:
    cancelled: list[str] = []
    request_records = RequestRecords([])
    for who in ("ann", "bob", ""):
        request_record = a_request_record("same", cancel=lambda who=who: cancelled.append(who))
        request_record.who = who
        request_records.begin(request_record)

    assert request_records.cancel("same", "bob") == 1
    assert request_records.cancel("same", "") == 1
    assert cancelled == ["bob", ""]


def test_what_is_shown_of_a_request_says_which_workers_broke() -> None:
    request_record = a_request_record()
    request_record.forward("i-1", "here")
    request_record.broke("connection refused")
    request_record.forward("i-2", "there")

    shown = summary(request_record, "router-1")

    assert shown.tries == (Try("i-1", "here", "connection refused"),)
    assert (shown.instance, shown.host, shown.phase, shown.router) == ("i-2", "there", "forwarded", "router-1")


def test_requests_of_ten_seconds_share_a_bucket() -> None:
    traffic = Traffic()
    for now in (1000.0, 1009.0, 1010.0):
        traffic.add(Finished([a_finished()]), now)

    hour, lately = traffic.since(1011.0)

    assert [(b.at, b.requests) for b in hour] == [(1000, 2), (1010, 1)]
    assert lately["org/model"].requests == 3
    assert lately["org/model"].timed_tokens / lately["org/model"].timed_s == 5.0


def test_traffic_keeps_an_hour() -> None:
    traffic = Traffic()
    for bucket in range(HOUR + 10):
        traffic.add(Finished([a_finished()]), 1000.0 + bucket * BUCKET_S)

    hour, lately = traffic.since(1000.0 + (HOUR + 9) * BUCKET_S)

    assert len(hour) == HOUR
    assert lately["org/model"].requests == 30
    assert traffic.since(99999.0) == ([], {})


def test_what_several_workers_saw_is_added_up() -> None:
    one, two = Traffic(), Traffic()
    one.add(Finished([a_finished()]), 1000.0)
    two.add(Finished([a_finished(status=502)]), 1000.0)
    two.add(Finished([a_finished(function="org/other")]), 1010.0)

    hour, lately = merge(t.since(1011.0) for t in (one, two))

    assert [(b.at, b.requests, b.errors) for b in hour] == [(1000, 2, 1), (1010, 1, 0)]
    assert {f: b.requests for f, b in lately.items()} == {"org/model": 2, "org/other": 1}


def test_percentiles_of_several_workers_are_those_of_all_their_requests_together() -> None:
    one, two = Traffic(), Traffic()
    for _ in range(97):
        one.add(Finished([a_finished(first=100.1, last=100.2, ended=100.2)]), 1000.0)
    for _ in range(3):
        two.add(Finished([a_finished(first=109.0, last=110.0, ended=110.0)]), 1000.0)

    (bucket,), _ = merge(t.since(1011.0) for t in (one, two))

    assert bucket.durations == latency.merge([one.since(1011.0)[0][0].durations, two.since(1011.0)[0][0].durations])
    assert latency.percentile(bucket.durations, 0.95) == pytest.approx(0.2, rel=0.1)
    assert latency.percentile(bucket.durations, 0.99) == pytest.approx(10.0, rel=0.1)
    assert latency.percentile(bucket.first_tokens, 0.99) == pytest.approx(9.0, rel=0.1)


async def test_a_listener_that_raises_is_a_fault_and_the_others_get_the_requests() -> None:
    faults, finished = Faults(), list[RequestRecord]()

    def breaks(_: object) -> None:
        raise ValueError

    request_records, request_record = RequestRecords([breaks, finished.extend], faults=faults), a_request_record()
    request_records.begin(request_record)
    request_records.over(request_record)
    request_records.settle()

    assert finished == [request_record]
    assert [(fault.work, fault.kind) for fault in faults.all()] == [("requests", "ValueError")]


@pytest.mark.parametrize(
    ("waited", "path", "start"),
    [
        (False, "sleep", "hot"),
        (True, "sleep", "sleep"),
        (True, "freeze", "freeze"),
        (True, "warm", "cold"),
        (True, "plain", "cold"),
        (True, "", "cold"),
    ],
)
def test_the_start_of_a_request_that_waited_is_the_tier_from_which_its_worker_returned(
    waited: bool, path: str, start: str
) -> None:
    request_record = a_request_record()
    request_record.cold = waited
    request_record.forward("i-1", "here", path)

    assert (request_record.start, summary(request_record, "router-1").start) == (start, start)


def test_finished_requests_are_grouped_by_what_they_are_counted_by() -> None:
    records = [a_request_record("a"), a_request_record("b", status=502), a_request_record("c")]

    groups = Finished(records).alike

    assert [[r.id for r in group] for group in groups] == [["a", "c"], ["b"]]
