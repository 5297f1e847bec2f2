"""The inputs of a decision, and their form in the record."""

from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.platform.decisions import DecisionRecord, from_fields, inputs_of, to_fields
from cortex.platform.record import InLine
from cortex.platform.scheduling.effects import Decision
from cortex.platform.scheduling.reasons import DecisionKind
from tests.support.factories import a_device, a_fleet, a_host, a_report, an_instance


def test_a_decision_is_unchanged_after_encoding_and_decoding() -> None:
    one = DecisionRecord(
        at=12.5, by="agent:here", what="placed", function="org/model", instance="one", host="here",
        reason="idle", why="idle", inputs={"memory_mb": 1000, "devices": [{"id": "gpu-0", "free_mb": 10}]},
    )  # fmt: skip

    assert from_fields("7-1", to_fields(one)) == replace(one, id="7-1")
    assert to_fields(DecisionRecord(what="ready")) == {"at": "0.000", "what": "ready"}


def test_an_invalid_decision_of_another_release_is_read_with_empty_fields() -> None:
    result = from_fields("7-1", {"what": "placed", "at": "noon", "inputs": "[", "new": "field"})

    assert (result.what, result.at, result.inputs) == ("placed", 0.0, {})


def test_a_decision_of_an_eviction_has_the_victim_and_the_other_candidates() -> None:
    victim = an_instance("old", state=State.DRAINING, ready=10.0)
    stays = an_instance("new", function="org/busy", ready=10.0)
    elsewhere = an_instance("far", function="org/far", devices=("gpu-1",))
    host = a_host(victim, stays, elsewhere, devices=(a_device("gpu-0"), a_device("gpu-1")))
    fleet = a_fleet(a_report(in_flight={"new": 3}), used={"i:new": 99.0})

    result = inputs_of(Decision(DecisionKind.EVICTED, "org/model", "old", "for org/next"), host, fleet, 100.0)

    assert (result["victim"]["idle_s"], result["victim"]["in_flight"]) == (90.0, 0)
    assert [(o["function"], o["idle_s"], o["in_flight"]) for o in result["others"]] == [("org/busy", 1.0, 3)]


def test_a_decision_of_a_placement_has_the_free_memory_before_it() -> None:
    host = a_host(an_instance("one"), an_instance("two", memory_mb=4000))

    result = inputs_of(Decision(DecisionKind.PLACED, "org/model", "one", "on gpu-0"), host, None, 100.0)

    assert result["devices"] == [{"id": "gpu-0", "budget_mb": 10_000, "foreign_mb": 0, "free_mb": 6000}]


def test_a_refusal_while_one_leaves_and_another_comes_has_no_negative_memory() -> None:
    leaves, comes = an_instance("one", memory_mb=8000), an_instance("two", memory_mb=8000, state=State.PLACING)

    result = inputs_of(Decision(DecisionKind.REFUSED, "f", "", "does not fit"), a_host(leaves, comes), None, 100.0)

    assert result["devices"][0]["free_mb"] == 0


def test_a_decision_of_a_failure_has_its_kind_and_the_time_of_the_retry() -> None:
    from cortex.platform.scheduling.failures import Failures, Incident

    failures = Failures()
    failures.add(an_instance("one"), Incident("it crashed"), 100.0)
    host = a_host(failures=failures.all())

    result = inputs_of(Decision(DecisionKind.FAILED, "org/model", "one", "it crashed"), host, None, 100.0)

    assert (result["kind"], result["in_a_row"]) == ("crash", 1)


def test_a_decision_of_a_rejection_in_line_has_the_time_of_the_turn() -> None:
    place = InLine(function="org/new", since=90.0, turn_at=130.0, closes=("one",))
    host = a_host(an_instance(), line=(InLine(function="org/first", since=80.0), place))

    result = inputs_of(Decision(DecisionKind.REFUSED, "org/new", "", "no room"), host, a_fleet(), 100.0)

    assert (result["in_line"], result["waited_s"], result["turn_in_s"]) == (2, 10.0, 30.0)
    assert "in_line" not in inputs_of(
        Decision(DecisionKind.REFUSED, "org/other", "", "no room"), host, a_fleet(), 100.0
    )
