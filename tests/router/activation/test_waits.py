"""What a function in line waits for, in numbers and in words."""

from typing import Any

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.platform.fleet import Fleet
from cortex.platform.record import HostRecord, InLine
from cortex.router.activation.waits import ready_in_s, room_text, waits
from tests.support.factories import a_host, an_instance

NOW = 1000.0
CLOSING: dict[str, Any] = {"state": State.DRAINING, "yields_to": "f", "deadline": NOW + 90}


def a_host_with(name: str, *line: InLine) -> HostRecord:
    """A host whose instance `one` is of `org/model`."""
    return replace(a_host(an_instance()), name=name, line=line)


def in_line(function: str = "f", *, turn_at: float = NOW + 10, start_s: float = 0.0) -> InLine:
    return InLine(function=function, since=NOW - 5, turn_at=turn_at, closes=("one",), start_s=start_s)


def test_the_soonest_turn_of_all_hosts_comes_first_and_a_place_without_one_last() -> None:
    fleet = Fleet(
        hosts={
            "a": a_host_with("a", in_line(turn_at=NOW + 30)),
            "b": a_host_with("b", in_line("other"), in_line()),
            "c": a_host_with("c", in_line(turn_at=0.0)),
        }
    )

    result = waits(fleet, "f", NOW)

    assert [(w.host, w.position, w.turn_in_s) for w in result] == [("b", 2, 10.0), ("a", 1, 30.0), ("c", 1, None)]


def test_the_estimate_includes_the_start() -> None:
    fleet = Fleet(hosts={"a": a_host_with("a", in_line(start_s=3.0))})

    assert ready_in_s(fleet, "f", NOW) == 13.0
    assert ready_in_s(fleet, "other", NOW) is None


def test_without_a_turn_there_is_no_estimate() -> None:
    assert ready_in_s(Fleet(hosts={"a": a_host_with("a", in_line(turn_at=0.0))}), "f", NOW) is None


def test_a_wait_behind_others_names_the_last_of_them_and_whose_start_was_never_measured() -> None:
    first = in_line("first", turn_at=NOW + 2, start_s=3.0)
    second = InLine(function="second", since=NOW - 4, turn_at=NOW + 9, closes=("reserved for first", "one"))
    third = InLine(
        function="f", since=NOW - 3, turn_at=NOW + 15, closes=("reserved for first", "reserved for second", "one")
    )

    (result,) = waits(Fleet(hosts={"a": a_host_with("a", first, second, third)}), "f", NOW)

    assert (result.closes, result.unmeasured) == (("second",), ("second",))
    assert str(result).endswith("behind 2 others; second closes for it in at most 15 s and the first start of second")


def test_a_turn_behind_one_that_waits_for_requests_in_flight_has_no_bound_in_seconds() -> None:
    closing = an_instance("two", function="busy", **CLOSING)
    coming = an_instance("one", function="g", state=State.PLACING, waits_for=("two",))
    host = replace(a_host(closing, coming), name="a", line=(in_line(),))

    (result,) = waits(Fleet(hosts={"a": host}), "f", NOW)

    assert str(result) == (
        "has waited for memory on a for 5 s; g closes for it after a turn that begins when the requests of busy end"
    )


def test_several_instances_close_for_a_function_of_several_devices() -> None:
    host = replace(a_host(an_instance(), an_instance("two", function="g")), name="a")
    line = InLine(function="f", since=NOW - 5, turn_at=NOW + 10, closes=("one", "two"))

    (result,) = waits(Fleet(hosts={"a": replace(host, line=(line,))}), "f", NOW)

    assert str(result) == "has waited for memory on a for 5 s; g and org/model close for it in at most 10 s"


@pytest.mark.parametrize(
    ("before", "text"),
    [
        ((), ""),
        ((CLOSING,), "waits until the requests of g0 end, in at most 90 s"),
        ((CLOSING | {"state": State.STOPPING},), "waits until g0 has left"),
        (({"state": State.DRAINING}, {"state": State.STOPPING}), "waits until g0 and g1 have left"),
    ],
)
def test_a_placed_instance_says_what_it_waits_for(before: tuple[dict[str, Any], ...], text: str) -> None:
    others = [an_instance(f"i{n}", function=f"g{n}", **values) for n, values in enumerate(before)]
    placed = an_instance(function="f", state=State.PLACING, waits_for=tuple(i.id for i in others))

    assert room_text(placed, a_host(placed, *others), NOW) == text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ((in_line(),), "has waited for memory on a for 5 s; org/model closes for it in at most 10 s"),
        (
            (in_line("other"), in_line(start_s=41.2)),
            "has waited for memory on a for 5 s, behind 1 other; org/model closes for it in at most 10 s, and its start"
            " takes about 42 s",
        ),
        ((in_line(turn_at=0.0),), "has waited for memory on a for 5 s; no instance in use can be closed for it"),
    ],
)
def test_a_wait_reads_as_a_sentence(line: tuple[InLine, ...], words: str) -> None:
    (result,) = waits(Fleet(hosts={"a": a_host_with("a", *line)}), "f", NOW)

    assert str(result) == words
