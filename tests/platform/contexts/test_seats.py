"""Which request uses which slot, and which conversations are certain to be in them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.platform.agent_messages import LeaveSeat, Seat, TakeSeat
from cortex.platform.contexts.fit import LEAST_TOKENS, MOST_SAVED, worth_saving
from cortex.platform.contexts.seats import GONE_S, WAIT_FORGOTTEN_S, Seats, SlotContext
from cortex.platform.fleet import Fleet
from cortex.platform.record import RouterReport


def a_request(id: str, *marks: str, owner: str = "me", slots: int = 2, router: str = "r1", **rest: Any) -> TakeSeat:
    return TakeSeat(id=id, router=router, instance="i1", owner=owner, marks=marks, slots=slots, **rest)


def serve(seats: Seats, id: str, *marks: str, now: float = 0.0, **rest: Any) -> Seat:
    """Serve a request, whole."""
    seat = seats.take(a_request(id, *marks, **rest), now, None)
    assert seat is not None
    seats.leave(LeaveSeat(id=id, instance="i1", mark=marks[-1] if marks else "", tokens=2000))
    return seat


def marks_held(seats: Seats, **unseated: int) -> list[str]:
    return [c.mark for c in seats.conversations("i1", unseated)]


def test_a_conversation_continues_in_its_slot_and_another_takes_the_next_one() -> None:
    seats = Seats()

    answers = [serve(seats, "1", "a1"), serve(seats, "2", "b1"), serve(seats, "3", "a1", "a2"), serve(seats, "4", "c1")]

    assert answers == [
        Seat(slot=0),
        Seat(slot=1),
        Seat(slot=0, may_reuse=True, continues=1),
        Seat(slot=1, may_reuse=True),  # its own key's, so what they share may be used
    ]
    assert marks_held(seats) == ["a2", "c1"]


def test_the_number_of_messages_counts_from_the_first_mark() -> None:
    seats = Seats()
    serve(seats, "1", "a7")

    assert serve(seats, "2", "a6", "a7", "a8", first=6).continues == 7


def test_no_owner_continues_or_reuses_what_another_has_left() -> None:
    seats = Seats()
    serve(seats, "1", "a1", slots=1)

    assert serve(seats, "2", "a1", "a2", owner="you", slots=1) == Seat(slot=0)
    assert serve(seats, "3", "a1", "a2", slots=1) == Seat(slot=0)


def test_a_request_waits_for_a_slot_in_the_order_of_arrival() -> None:
    seats = Seats()
    seats.take(a_request("1", slots=1), 0.0, None)

    waits = [seats.take(a_request(id, slots=1), 0.1, None) for id in ("2", "3", "2")]
    seats.leave(LeaveSeat(id="1", instance="i1"))
    later, earlier = seats.take(a_request("3", slots=1), 0.2, None), seats.take(a_request("2", slots=1), 0.2, None)

    assert waits == [None, None, None]
    assert later is None
    assert earlier == Seat(slot=0, may_reuse=True)
    assert seats.take(a_request("2", slots=1), 0.3, None) == earlier  # the answer was lost


def test_a_waiting_request_that_is_gone_holds_up_none() -> None:
    seats = Seats()
    seats.take(a_request("1", slots=1), 0.0, None)
    for id in ("2", "3"):
        seats.take(a_request(id, slots=1), 0.0, None)
    seats.leave(LeaveSeat(id="1", instance="i1"))
    seats.leave(LeaveSeat(id="2", instance="i1"))

    assert seats.take(a_request("4", slots=1), 1.0, None) is None
    assert seats.take(a_request("4", slots=1), WAIT_FORGOTTEN_S + 0.1, None) is not None


def test_after_a_request_in_unknown_slots_nothing_is_reused_or_saved() -> None:
    seats = Seats()
    serve(seats, "1", "a1")
    before = seats.disturbances("i1")
    seats.take(a_request("2", slots=0), 0.0, None)

    during, meanwhile = serve(seats, "3", "a1"), seats.disturbances("i1")
    during_held = marks_held(seats)
    seats.leave(LeaveSeat(id="2", instance="i1"))

    assert (during.may_reuse, during_held, marks_held(seats)) == (False, [], [])
    assert meanwhile == -1
    assert seats.disturbances("i1") > before
    assert serve(seats, "4", "a1") == Seat(slot=0)
    assert marks_held(seats) == ["a1"]


def test_a_request_that_a_router_sent_without_a_seat_makes_the_slots_unknown() -> None:
    seats = Seats()
    serve(seats, "1", "a1")

    assert marks_held(seats, r1=0, r2=0) == ["a1"]
    assert marks_held(seats, r1=0, r2=1) == []
    serve(seats, "2", "a1")
    assert marks_held(seats, r1=0, r2=1) == ["a1"]
    reports = Fleet(routers={"r2": RouterReport(id="r2", unseated={"i1": 2})})
    seat = seats.take(a_request("3", "a1"), 0.0, reports)
    assert seat is not None
    assert not seat.may_reuse


@pytest.mark.parametrize(
    ("report", "ends"),
    [
        (None, True),
        (RouterReport(id="r1", in_flight={"i2": 1}), True),
        (RouterReport(id="r1", in_flight={"i1": 1}), False),
    ],
)
def test_a_seat_ends_when_its_router_has_nothing_in_flight(report: RouterReport | None, ends: bool) -> None:
    seats = Seats()
    seats.take(a_request("1", "a1", slots=1), 0.0, None)
    fleet = Fleet(routers={"r1": report} if report else {})

    early = seats.take(a_request("2", slots=1), GONE_S - 1, fleet)
    blind = seats.take(a_request("2", slots=1), GONE_S + 1, None)
    late = seats.take(a_request("2", slots=1), GONE_S + 1, fleet)

    assert (early, blind) == (None, None)
    assert (late is not None) is ends


def test_a_request_that_leaves_a_seat_of_an_earlier_agent_makes_the_slots_unknown() -> None:
    seats = Seats()
    serve(seats, "2", "b1")

    seats.leave(LeaveSeat(id="1", instance="i1", mark="a1", tokens=2000))

    assert marks_held(seats) == []


def test_another_number_of_slots_or_the_end_of_an_instance_forgets_its_conversations() -> None:
    seats = Seats()
    serve(seats, "1", "a1")
    assert serve(seats, "2", "a1", slots=3) == Seat(slot=0)

    seats.forget("i1")

    assert marks_held(seats) == []
    seats.leave(LeaveSeat(id="2", instance="i1", mark="a1", tokens=9))
    assert marks_held(seats) == []


def test_the_longest_conversations_are_saved_and_no_short_ones() -> None:
    held = [SlotContext(slot=n, mark="m", tokens=LEAST_TOKENS - 1 + n) for n in range(MOST_SAVED + 3)]

    saved = worth_saving(held)

    assert len(saved) == MOST_SAVED
    assert saved[0] == held[-1]
    assert all(c.tokens >= LEAST_TOKENS for c in saved)


@given(st.lists(st.tuples(st.sampled_from(("take", "leave", "cut", "unknown")), st.integers(0, 5)), max_size=60))
def test_a_request_reuses_only_what_its_owner_has_left_and_what_is_held_is_there(steps: list[tuple[str, int]]) -> None:
    seats, slots, live = Seats(), {n: {""} for n in range(2)}, dict[str, TakeSeat]()
    for number, (step, choice) in enumerate(steps):
        id, owner = str(number), f"owner{choice % 2}"
        if step in ("take", "unknown"):
            marks = (f"{owner}-{choice}", f"{owner}-{choice}-{number}")
            request = a_request(id, *marks, owner=owner, slots=0 if step == "unknown" else 2)
            seat = seats.take(request, 0.0, None)
            if seat is None:
                seats.leave(LeaveSeat(id=id, instance="i1"))
                continue
            live[id] = request
            company = {r.owner for r in live.values() if not r.slots}
            if seat.slot is None:  # llama.cpp may put it anywhere
                slots = {s: held | {owner} for s, held in slots.items()}
            else:
                assert not seat.may_reuse or slots[seat.slot] == {owner}
                slots[seat.slot] = {owner} | company
        elif live:
            id, request = list(live.items())[choice % len(live)]
            del live[id]
            seats.leave(LeaveSeat(id=id, instance="i1", mark=request.marks[-1] if step == "leave" else "", tokens=1))
        for held in seats.conversations("i1", {}):
            assert slots[held.slot] == {held.mark.partition("-")[0]}
