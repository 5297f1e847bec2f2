"""What a function in line waits for, in numbers and in words."""

import pytest
from msgspec.structs import replace

from cortex.platform.fleet import Fleet
from cortex.platform.record import HostRecord, InLine
from cortex.router.activation.waits import ready_in_s, waits
from tests.support.factories import a_host, an_instance

NOW = 1000.0


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
