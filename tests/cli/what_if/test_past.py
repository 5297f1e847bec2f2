"""What decisions say about a past time."""

from typing import Any

import pytest

from cortex.cli.what_if.past import Measured, Past, Visit, read_past
from cortex.platform.decisions import DecisionRecord

BEGIN, END = 1_800_000_000.0, 1_800_003_600.0


def a_decision(at: float, what: str, function: str = "f", instance: str = "i", **inputs: Any) -> DecisionRecord:
    return DecisionRecord(at=BEGIN + at, what=what, function=function, instance=instance, inputs=inputs)


def past(*decisions: DecisionRecord, last_used: dict[str, float] | None = None) -> Past:
    return read_past(decisions, BEGIN, END, idle_after_s=lambda _: 300.0, last_used=last_used or {})


def ready(at: float, instance: str = "i", function: str = "f") -> DecisionRecord:
    phases = {"placing": 3.0, "starting": 2.0, "loading": 7.0}
    return a_decision(at, "ready", function, instance, phases=phases, memory_mb=900)


def test_a_request_that_waited_arrived_before_its_answer_by_all_that_it_took() -> None:
    result = past(ready(112.0), a_decision(115.0, "waited", queued_ms=12_000, took_ms=15_000, status=200))

    assert result.visits[0] == Visit(BEGIN + 100.0, "f", 3.0)
    assert (result.did["f"].waits, result.did["f"].longest_wait_s, result.did["f"].starts) == (1, 12.0, 1)


def test_a_start_is_measured_from_the_workers_launch() -> None:
    assert past(ready(10.0)).measured == {"f": Measured(start_s=9.0)}


def test_an_instance_was_in_use_until_the_idle_time_of_its_drain() -> None:
    result = past(ready(100.0), a_decision(800.0, "draining", in_flight=0, idle_s=300.0))

    assert [v.at - BEGIN for v in result.visits] == [250.0, 400.0, 500.0]
    assert result.carried == ()


def test_an_instance_that_leaves_and_was_never_seen_to_start_was_ready_at_the_beginning() -> None:
    victim = {"in_flight": 0, "idle_s": 60.0}

    result = past(a_decision(120.0, "evicted", victim=victim), a_decision(121.0, "stopped", idle_s=61.0))

    assert (result.carried, [v.at - BEGIN for v in result.visits]) == (("f",), [60.0])
    assert result.did["f"].evictions == 1


def test_an_instance_that_is_still_ready_was_in_use_until_the_functions_last_use() -> None:
    result = past(ready(100.0), last_used={"f": BEGIN + 420.0})

    assert [v.at - BEGIN for v in result.visits] == [250.0, 400.0, 420.0]


def test_a_last_use_by_the_request_that_waited_is_no_other_request() -> None:
    waited = a_decision(20.0, "waited", queued_ms=12_000, took_ms=15_000, status=200)

    result = past(ready(17.0), waited, a_decision(30.5, "evicted", victim={"in_flight": 0, "idle_s": 10.0}))

    assert result.visits == [Visit(BEGIN + 5.0, "f", 3.0)]


def test_a_request_that_was_refused_counts_as_not_served() -> None:
    result = past(a_decision(50.0, "not_served", queued_ms=8000, took_ms=8000, status=503))

    assert (result.did["f"].not_served, result.visits) == (1, [Visit(BEGIN + 42.0, "f", 0.0)])


@pytest.mark.parametrize("inputs", [{"queued_ms": "x"}, {"victim": 3}, {"phases": [1]}, {"memory_mb": None}])
@pytest.mark.parametrize("what", ["ready", "waited", "evicted", "draining", "of a later release"])
def test_inputs_of_another_release_are_read_as_unknown(what: str, inputs: dict[str, Any]) -> None:
    assert past(a_decision(50.0, what, **inputs)).begin == BEGIN


def test_decisions_outside_the_time_are_left_out() -> None:
    assert past(ready(-10.0), ready(3700.0)).did == {}
