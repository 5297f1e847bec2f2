"""When a ready worker counts as one that makes no progress."""

import pytest

from cortex.platform.record import RouterReport, Silence
from cortex.platform.scheduling.progress import (
    DOUBT_S,
    LEAST_FULL_S,
    LEAST_IDLE_S,
    LEAST_S,
    Proof,
    is_doubtful,
    is_hung,
    silence,
)


def a_router(id: str = "r", *, in_flight: int = 0, silent_s: float = 0.0, usual_s: float = 0.0) -> RouterReport:
    silent = {"one": Silence(for_s=silent_s, usual_s=usual_s)} if silent_s else {}
    return RouterReport(id=id, in_flight={"one": in_flight} if in_flight else {}, silent=silent)


def test_a_silence_is_the_shortest_that_a_router_reports() -> None:
    reports = [a_router("r", in_flight=1, silent_s=40, usual_s=1), a_router("s", in_flight=1, silent_s=20, usual_s=2)]

    assert silence("one", reports, None, 100.0) == Silence(for_s=20, usual_s=2)
    assert silence("two", reports, None, 100.0) is None


def test_an_instance_that_gives_bytes_to_one_router_makes_progress() -> None:
    reports = [a_router("r", in_flight=1, silent_s=40), a_router("s", in_flight=1)]

    assert silence("one", reports, None, 100.0) is None


def test_requests_through_the_agents_relay_do_not_show_progress() -> None:
    reports = [a_router("r", in_flight=1, silent_s=40), a_router("agent:here", in_flight=1)]

    assert silence("one", reports, None, 100.0) == Silence(for_s=40)


@pytest.mark.parametrize(("in_flight", "left"), [(1, Silence(for_s=10)), (0, None)])
def test_a_proof_ends_a_silence_for_good_where_no_client_waits(in_flight: int, left: Silence | None) -> None:
    reports = [a_router(in_flight=in_flight, silent_s=40)]

    assert silence("one", reports, Proof(sent=85.0, answered=90.0), 100.0) == left


@pytest.mark.parametrize(
    ("for_s", "usual_s", "full", "doubtful"),
    [
        (DOUBT_S - 1, 0.0, False, False),
        (DOUBT_S, 0.0, False, True),
        (DOUBT_S, 5.0, False, False),
        (50.0, 5.0, False, True),
        (LEAST_FULL_S - 1, 0.0, True, False),
        (LEAST_FULL_S, 0.0, True, True),
    ],
)
def test_a_worker_gets_a_proof_after_a_multiple_of_the_usual_time(
    for_s: float, usual_s: float, full: bool, doubtful: bool
) -> None:
    assert is_doubtful(Silence(for_s=for_s, usual_s=usual_s), full=full) is doubtful


@pytest.mark.parametrize(
    ("for_s", "usual_s", "full", "worked", "hung"),
    [
        (LEAST_S - 1, 0.0, False, True, False),
        (LEAST_S, 0.0, False, True, True),
        (LEAST_S, 7.0, False, True, False),
        (70.0, 7.0, False, True, True),
        (LEAST_IDLE_S - 1, 0.0, False, False, False),
        (LEAST_IDLE_S, 0.0, False, False, True),
        (LEAST_FULL_S - 1, 0.0, True, False, False),
        (LEAST_FULL_S, 0.0, True, True, True),
    ],
)
def test_a_worker_that_computes_is_given_more_time(
    for_s: float, usual_s: float, full: bool, worked: bool, hung: bool
) -> None:
    assert is_hung(Silence(for_s=for_s, usual_s=usual_s), full=full, worked=worked) is hung
