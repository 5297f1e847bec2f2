"""Receipts: what a decision was made on, and that it survives its way through the record."""

from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.platform.decisions import DecisionRecord, fields, numbers, receipt
from cortex.platform.record import InLine
from cortex.platform.scheduling.effects import Decision
from cortex.platform.scheduling.reasons import DecisionKind
from tests.support.factories import a_device, a_fleet, a_host, a_report, an_instance


def test_a_receipt_is_the_same_after_its_way_through_the_stream() -> None:
    one = DecisionRecord(
        at=12.5, by="agent:here", what="placed", function="org/model", instance="one", host="here",
        reason="idle", why="idle", numbers={"memory_mb": 1000, "devices": [{"id": "gpu-0", "free_mb": 10}]},
    )  # fmt: skip

    assert receipt("7-1", fields(one)) == replace(one, id="7-1")
    assert fields(DecisionRecord(what="ready")) == {"at": "0.000", "what": "ready"}


def test_what_another_release_wrote_does_not_stop_anybody_from_reading() -> None:
    found = receipt("7-1", {"what": "placed", "at": "noon", "numbers": "[", "new": "field"})

    assert (found.what, found.at, found.numbers) == ("placed", 0.0, {})


def test_an_eviction_says_who_stayed_and_why_the_victim_was_the_cheapest() -> None:
    victim = an_instance("old", state=State.DRAINING, ready=10.0)
    stays = an_instance("new", function="org/busy", ready=10.0)
    elsewhere = an_instance("far", function="org/far", devices=("gpu-1",))
    host = a_host(victim, stays, elsewhere, devices=(a_device("gpu-0"), a_device("gpu-1")))
    fleet = a_fleet(a_report(in_flight={"new": 3}), used={"i:new": 99.0})

    found = numbers(Decision(DecisionKind.EVICTED, "org/model", "old", "for org/next"), host, fleet, 100.0)

    assert (found["victim"]["idle_s"], found["victim"]["in_flight"]) == (90.0, 0)
    assert [(o["function"], o["idle_s"], o["in_flight"]) for o in found["others"]] == [("org/busy", 1.0, 3)]


def test_a_placement_says_what_was_free_before_it() -> None:
    host = a_host(an_instance("one"), an_instance("two", memory_mb=4000))

    found = numbers(Decision(DecisionKind.PLACED, "org/model", "one", "on gpu-0"), host, None, 100.0)

    assert found["devices"] == [{"id": "gpu-0", "budget_mb": 10_000, "foreign_mb": 0, "free_mb": 6000}]


def test_a_failure_says_its_kind_and_when_it_is_tried_again() -> None:
    from cortex.platform.scheduling.failures import Failures, Incident

    failures = Failures()
    failures.add(an_instance("one"), Incident("it crashed"), 100.0)
    host = a_host(failures=failures.all())

    found = numbers(Decision(DecisionKind.FAILED, "org/model", "one", "it crashed"), host, None, 100.0)

    assert (found["kind"], found["in_a_row"]) == ("crash", 1)


def test_a_refusal_of_one_in_line_says_when_its_turn_comes() -> None:
    place = InLine(function="org/new", since=90.0, turn_at=130.0, closes=("one",))
    host = a_host(an_instance(), line=(InLine(function="org/first", since=80.0), place))

    found = numbers(Decision(DecisionKind.REFUSED, "org/new", "", "no room"), host, a_fleet(), 100.0)

    assert (found["in_line"], found["waited_s"], found["turn_in_s"]) == (2, 10.0, 30.0)
    assert "in_line" not in numbers(Decision(DecisionKind.REFUSED, "org/other", "", "no room"), host, a_fleet(), 100.0)
