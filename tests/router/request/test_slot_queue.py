"""The order of waiting requests: by priority, then by arrival; each is overtaken a bounded number of times."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.platform.api_keys import Priority
from cortex.router.request import slot_queue
from cortex.router.request.slot_queue import PASSES, Place, SlotQueue

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


def served(line: SlotQueue, running: Place) -> list[Place]:
    """Return who has a turn, one after the other, from the one that runs on."""
    order = [running]
    while (following := line.leave(order[-1])) is not None:
        order.append(following)
    return order


def test_a_high_one_has_the_next_turn_before_a_normal_one_and_that_before_a_low_one() -> None:
    line = SlotQueue(1)
    first, low, normal, high, second = (line.join(p) for p in (NORMAL, LOW, NORMAL, HIGH, HIGH))

    assert [first.turn, high.turn] == [True, False]
    assert served(line, first) == [first, high, second, normal, low]
    assert not line


def test_a_turn_that_is_free_is_had_at_once_whatever_the_priority() -> None:
    line = SlotQueue(2)

    assert [line.join(LOW).turn, line.join(LOW).turn, line.join(HIGH).turn] == [True, True, False]


def test_one_that_was_passed_often_enough_goes_before_all_that_come_later() -> None:
    line = SlotQueue(1)
    running, low = line.join(HIGH), line.join(LOW)
    before = 0
    while not low.turn and before < 5 * PASSES:
        line.join(HIGH)
        following = line.leave(running)
        assert following is not None
        running, before = following, before + 1

    assert before == PASSES + 1


def test_one_that_leaves_the_row_is_passed_over_and_passes_nobody() -> None:
    line = SlotQueue(1)
    first, gone, second = line.join(NORMAL), line.join(HIGH), line.join(NORMAL)

    assert line.leave(gone) is None
    assert served(line, first) == [first, second]


@given(st.integers(1, 3), st.lists(st.sampled_from([*Priority, "ends", "leaves"]), max_size=120), st.randoms())
def test_nobody_starves_no_slot_is_idle_and_none_is_given_twice(
    slots: int, events: list[Priority | str], random: Random
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slot_queue, "PASSES", 2)  # so that few events reach the bound
        held(slots, events, random)


def held(slots: int, events: list[Priority | str], random: Random) -> None:
    """Let it happen, and look after each step."""
    choice = random.choice
    line, running, waiting = SlotQueue(slots), [], []  # type: tuple[SlotQueue, list[Place], list[Place]]
    ahead: dict[Place, int] = {}
    turns: dict[Place, int] = {}

    def given_to(place: Place) -> None:
        for earlier in waiting:
            turns[earlier] += 1
        running.append(place)

    for event in events:
        if event == "ends" and running:
            running.remove(done := choice(running))
            following = line.leave(done)
            if following is not None:
                waiting.remove(following)
                given_to(following)
        elif event == "leaves" and waiting:
            waiting.remove(gone := choice(waiting))
            assert line.leave(gone) is None
        elif isinstance(event, Priority):
            place = line.join(event)
            if place.turn:
                given_to(place)
            else:
                ahead[place], turns[place] = len(waiting), 0
                waiting.append(place)

        assert len(running) <= slots
        assert not waiting or len(running) == slots
        assert line.waiting == waiting
        assert all(turns[place] <= ahead[place] + slot_queue.PASSES for place in waiting)
