"""Times by the reader's clock, and records that never get older, with any overlap of reads."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cortex.platform.fleet import shift
from cortex.platform.record import Failure, HostRecord, RouterReport, used_instance
from cortex.platform.record_codec import Beat, beat
from cortex.platform.record_reader import GONE_S, MOST_USES, SAME_S, WINDOW_S, RecordReader
from tests.support.factories import HOST, a_host, an_instance

DAY_S = 86_400.0


def a_record(
    at: float, *, agent: str = "agent-1", started: float = 1.0, sequence: int = 0, ready: float = 0.0
) -> HostRecord:
    """A publication; without a sequence, its time stands for it."""
    return a_host(an_instance(ready=ready), at=at, agent=agent, started=started, sequence=sequence or round(at * 1000))


def read(
    reader: RecordReader, record: HostRecord | None, began: float, ended: float | None = None
) -> HostRecord | None:
    return reader.host(HOST, record, began, began if ended is None else ended)


# Times.


def test_shifting_a_record_moves_every_time_except_zero() -> None:
    instance = replace(an_instance(ready=2.0), phase_since=3.0, last_sign=4.0, started=5.0, deadline=6.0)
    failure = Failure(function="f", revision="r", instance="i", reason="x", at=8.0, retry_at=9.0)
    record = a_host(
        instance, replace(instance, id="cold", ready=0.0, deadline=0.0), failures=(failure,), at=10.0, started=1.0
    )

    moved = shift(record, 100.0)

    first, cold = moved.instances
    assert (moved.at, moved.started, moved.failures[0].at, moved.failures[0].retry_at) == (110.0, 101.0, 108.0, 109.0)
    assert (first.since, first.created, first.ready, first.phase_since) == (102.0, 102.0, 102.0, 103.0)
    assert (first.last_sign, first.started, first.deadline) == (104.0, 105.0, 106.0)
    assert (cold.ready, cold.deadline) == (0.0, 0.0)


@pytest.mark.parametrize("ahead_s", [-DAY_S, -60.0, 0.0, 60.0, DAY_S])
def test_times_of_a_record_are_converted_to_the_readers_clock(ahead_s: float) -> None:
    record = read(RecordReader(), a_record(1000.0 + ahead_s, ready=990.0 + ahead_s), 1000.0)

    assert record is not None
    assert (record.at, record.instances[0].ready) == (1000.0, 990.0)


def test_the_offset_is_the_smallest_difference() -> None:
    reader = RecordReader()
    read(reader, a_record(1000.0, ready=900.0), 1061.8)  # was there for 1.8 s
    read(reader, a_record(1002.0, ready=900.0), 1062.01)

    record = read(reader, a_record(1004.0, ready=900.0), 1065.0)

    assert record is not None
    assert record.instances[0].ready == pytest.approx(960.01)
    assert record.at == pytest.approx(1064.01)  # read a second after it was written


def test_small_changes_of_the_offset_do_not_move_times() -> None:
    reader = RecordReader()
    readings = [(1000.0 + n, 1000.04 + n - 0.02 * (n % 2)) for n in range(10)]

    matches = {r.instances[0].ready for at, view in readings if (r := read(reader, a_record(at, ready=900.0), view))}

    assert matches == {900.04}


def test_after_a_suspension_the_offset_adapts_within_two_windows() -> None:
    reader, stood_s = RecordReader(), 3600.0
    read(reader, a_record(1000.0), 1000.0)
    result = None
    for n in range(2, round(2 * WINDOW_S) + 4, 2):
        result = read(reader, a_record(1000.0 + n), 1000.0 + stood_s + n)

    assert result is not None
    assert abs(result.at - (1000.0 + stood_s + n)) <= SAME_S


def test_reading_the_same_record_again_does_not_change_the_offset() -> None:
    reader = RecordReader()
    read(reader, a_record(1000.0, ready=990.0), 1000.0)

    matches = [read(reader, a_record(1000.0, ready=990.0), 1000.0 + n) for n in range(1, 300, 10)]

    assert {r.at for r in matches if r} == {1000.0}


def test_each_agent_process_has_its_own_offset() -> None:
    reader = RecordReader()
    read(reader, a_record(1000.0), 1000.0)

    record = read(reader, a_record(5000.0, agent="agent-2", started=4999.0, ready=4999.0), 1002.0)

    assert record is not None
    assert (record.at, record.instances[0].ready) == (1002.0, 1001.0)


# Order.


def test_a_slow_read_of_an_older_record_is_discarded() -> None:
    reader = RecordReader()
    new = read(reader, a_record(12.0), 12.0, 12.1)

    assert read(reader, a_record(11.0), 10.0, 13.0) == new


def test_after_a_backward_step_a_new_agents_record_still_replaces_the_old_one() -> None:
    reader = RecordReader()
    read(reader, a_record(10.0, started=DAY_S), 10.0)

    record = read(reader, a_record(12.0, agent="agent-2", started=2.0, sequence=1), 12.0)

    assert record is not None
    assert record.agent == "agent-2"


def test_a_slow_read_neither_removes_nor_restores_a_host() -> None:
    reader = RecordReader()
    there = read(reader, a_record(11.0), 11.0, 11.1)
    assert read(reader, None, 10.0, 12.0) == there

    assert read(reader, None, 13.0, 13.1) is None
    assert read(reader, a_record(11.0), 12.5, 14.0) is None


def test_a_host_missing_for_long_is_forgotten() -> None:
    reader = RecordReader()
    reader.hosts([a_record(10.0)], 10.0, 10.1)

    assert reader.hosts([], 20.0, 20.1) == {}
    reader.hosts([], 20.1 + GONE_S, 20.2 + GONE_S)
    assert not reader._hosts


def test_a_record_without_a_sequence_is_read_as_is() -> None:
    reader = RecordReader()
    read(reader, a_host(at=10.0), 10.0)

    record = read(reader, a_host(at=8.0, epoch=7), 11.0)  # its wall clock was set back

    assert record is not None
    assert record.epoch == 7


def histories() -> st.SearchStrategy[list[HostRecord]]:
    """What one host's key held over time: publications of one agent process after the other."""
    lengths = st.lists(st.integers(1, 5), min_size=1, max_size=4)
    return lengths.map(
        lambda agents: [
            a_host(at=10.0 * n + k, agent=f"agent-{n}", started=10.0 * n, sequence=k + 1)
            for n, length in enumerate(agents, 1)
            for k in range(length)
        ]
    )


@given(st.data())
def test_in_any_order_of_reads_the_newest_record_remains(data: st.DataObject) -> None:
    history = data.draw(histories())
    moments = st.floats(0, 100, allow_nan=False)
    reads = data.draw(st.lists(st.tuples(moments, moments, moments).map(sorted), min_size=1, max_size=12))
    fetched = {tuple(r): history[min(len(history) - 1, int(r[1] / 100 * len(history)))] for r in reads}
    reader, view = RecordReader(), []

    for began, at, ended in sorted(reads, key=lambda r: r[2]):
        record = read(reader, fetched[began, at, ended], began, ended)
        assert record is not None
        view.append((record.agent, record.sequence))

    order = [(h.agent, h.sequence) for h in history]
    newest = max(order.index((h.agent, h.sequence)) for h in fetched.values())
    assert view[-1] == order[newest]
    assert view == sorted(view, key=order.index)


@given(st.data())
def test_a_read_without_overlap_has_the_final_state(data: st.DataObject) -> None:
    moments = st.tuples(st.floats(0, 100, allow_nan=False), st.floats(0, 100, allow_nan=False)).map(sorted)
    agents = st.builds(
        a_host,
        at=st.floats(1, 9),
        agent=st.sampled_from(["a", "b", "c"]),
        started=st.floats(1, 9),
        sequence=st.just(1),
    )
    reader = RecordReader()
    for began, ended in sorted(data.draw(st.lists(moments, max_size=12)), key=lambda r: r[1]):
        read(reader, data.draw(st.none() | agents), began, ended)
    truth = data.draw(st.none() | agents)

    record = read(reader, truth, 101.0, 102.0)

    assert (record and record.agent) == (truth and truth.agent)


# Last uses.

ONE = used_instance("one")


def used(reader: RecordReader, scores: Mapping[str, float], redis_now: float, now: float) -> float:
    return reader.last_uses(scores, redis_now, now)[ONE]


@pytest.mark.parametrize("ahead_s", [-DAY_S, -60.0, 0.0, 60.0, DAY_S])
def test_a_last_use_is_converted_by_its_age_on_redis_clock(ahead_s: float) -> None:
    assert used(RecordReader(), {ONE: 500.0 + ahead_s}, 510.0 + ahead_s, 1000.0) == 990.0


def test_a_forward_step_of_redis_clock_makes_no_use_older() -> None:
    reader = RecordReader()
    used(reader, {ONE: 500.0}, 501.0, 1000.0)

    assert used(reader, {ONE: 500.0}, 502.0 + DAY_S, 1001.0) == 999.0


def test_a_backward_step_of_redis_clock_keeps_earlier_uses() -> None:
    reader = RecordReader()
    used(reader, {ONE: 500.0}, 501.0, 1000.0)

    assert used(reader, {ONE: 500.0}, 502.0 - DAY_S, 1001.0) == 999.0


def test_a_new_use_in_redis_future_counts_as_now() -> None:
    reader = RecordReader()
    first = used(reader, {ONE: 500.0 + DAY_S}, 500.0, 1000.0)

    assert (first, used(reader, {ONE: 500.0 + DAY_S}, 600.0, 1100.0)) == (1000.0, 1000.0)


def test_an_empty_redis_does_not_remove_uses_at_once() -> None:
    reader = RecordReader()
    used(reader, {ONE: 500.0}, 500.0, 1000.0)

    assert used(reader, {}, 510.0, 1010.0) == 1000.0
    assert reader.last_uses({}, 510.0 + GONE_S, 1010.0 + GONE_S) == {}


def test_only_the_latest_uses_are_stored() -> None:
    record = RecordReader().last_uses({f"i:{n}": float(n) for n in range(MOST_USES + 5)}, 1e6, 1e6)

    assert len(record) == MOST_USES
    assert "i:4" not in record


# Routers' reports.


def test_the_report_of_a_dead_router_counts_for_one_lifetime_however_long_redis_keeps_it() -> None:
    reader, last = RecordReader(), RouterReport(id="r1", at=500.0, waiting={"f": 2})

    counted = [bool(reader.reports([last], 1000.0 + s, 10.0)) for s in (0.0, 3.0, 9.9, 10.0, 60.0)]

    assert counted == [True, True, True, False, False]


def test_the_report_of_a_router_that_goes_on_counts_also_when_its_clock_stands_back() -> None:
    reader = RecordReader()
    reader.reports([RouterReport(id="r1", at=500.0)], 1000.0, 10.0)

    reports = reader.reports([RouterReport(id="r1", at=400.0)], 1060.0, 10.0)

    assert list(reports) == ["r1"]


def test_a_router_that_reports_again_after_a_pause_counts_again() -> None:
    reader = RecordReader()
    for s in (0.0, 20.0):
        reader.reports([RouterReport(id="r1", at=500.0)], 1000.0 + s, 10.0)

    reports = reader.reports([RouterReport(id="r1", at=521.0)], 1021.0, 10.0)

    assert list(reports) == ["r1"]


# Heartbeats.


def test_after_a_heartbeat_a_record_is_as_if_it_was_read() -> None:
    first = replace(a_record(1000.0, ready=900.0), change="agent-1.1")
    second = replace(first, at=1002.0, sequence=first.sequence + 1)
    one, other = RecordReader(), RecordReader()
    for reader in (one, other):
        read(reader, first, 1000.5)

    record = one.after(Beat(second.sequence, second.at, second.change, HOST), 1002.1)

    assert record == read(other, second, 1002.1)


@pytest.mark.parametrize("change", ["agent-1.2", "agent-2.1", ""])
def test_a_heartbeat_of_a_record_that_was_not_read_is_no_record(change: str) -> None:
    reader = RecordReader()
    read(reader, replace(a_record(1000.0), change="agent-1.1" if change else ""), 1000.0)

    assert reader.after(Beat(9, 1002.0, change, HOST), 1002.0) is None
    assert reader.after(Beat(9, 1002.0, "agent-1.1", "host-unknown"), 1002.0) is None


def test_a_heartbeat_before_the_record_that_was_read_changes_nothing() -> None:
    reader, record = RecordReader(), replace(a_record(1000.0, sequence=8), change="agent-1.1")
    present = read(reader, record, 1000.0)

    assert reader.after(Beat(7, 998.0, "agent-1.1", HOST), 1000.1) == present


def test_a_heartbeat_is_in_its_message() -> None:
    sent = Beat(7, 1800000000.123456, "0f.3", "host-a:1")

    assert beat(sent.message().removeprefix("beat:")) == sent


@pytest.mark.parametrize("text", ["", "host-a", "1:2", "1:2:3", "x:1.0:c:host-a", "1:x:c:host-a"])
def test_another_message_is_no_heartbeat(text: str) -> None:
    assert beat(text) is None
