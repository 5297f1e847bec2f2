"""Who is next in a row: by priority, then as they came; and nobody is passed for ever."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from cortex.platform.api_keys import Priority
from cortex.router.row import PASSES, Place, Row

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


def served(row: Row, running: Place) -> list[Place]:
    """Return who has a turn, one after the other, from the one that runs on."""
    order = [running]
    while (following := row.leave(order[-1])) is not None:
        order.append(following)
    return order


def test_a_high_one_has_the_next_turn_before_a_normal_one_and_that_before_a_low_one() -> None:
    row = Row(1)
    first, low, normal, high, second = (row.join(p) for p in (NORMAL, LOW, NORMAL, HIGH, HIGH))

    assert [first.turn, high.turn] == [True, False]
    assert served(row, first) == [first, high, second, normal, low]
    assert not row


def test_a_turn_that_is_free_is_had_at_once_whatever_the_priority() -> None:
    row = Row(2)

    assert [row.join(LOW).turn, row.join(LOW).turn, row.join(HIGH).turn] == [True, True, False]


def test_one_that_was_passed_often_enough_goes_before_all_that_come_later() -> None:
    row = Row(1)
    running, low = row.join(HIGH), row.join(LOW)
    before = 0
    while not low.turn:
        row.join(HIGH)
        following = row.leave(running)
        assert following is not None
        running, before = following, before + 1

    assert before == PASSES + 1


def test_one_that_leaves_the_row_is_passed_over_and_passes_nobody() -> None:
    row = Row(1)
    first, gone, second = row.join(NORMAL), row.join(HIGH), row.join(NORMAL)

    assert row.leave(gone) is None
    assert served(row, first) == [first, second]


@given(st.integers(1, 3), st.lists(st.sampled_from([*Priority, "ends", "leaves"]), max_size=120), st.randoms())
def test_nobody_starves_no_slot_is_idle_and_none_is_given_twice(
    slots: int, events: list[Priority | str], random: Random
) -> None:
    choice = random.choice
    row, running, waiting = Row(slots), [], []  # type: tuple[Row, list[Place], list[Place]]
    ahead: dict[Place, int] = {}
    turns: dict[Place, int] = {}

    def given_to(place: Place) -> None:
        for earlier in waiting:
            turns[earlier] += 1
        running.append(place)

    for event in events:
        if event == "ends" and running:
            running.remove(done := choice(running))
            following = row.leave(done)
            if following is not None:
                waiting.remove(following)
                given_to(following)
        elif event == "leaves" and waiting:
            waiting.remove(gone := choice(waiting))
            assert row.leave(gone) is None
        elif isinstance(event, Priority):
            place = row.join(event)
            if place.turn:
                given_to(place)
            else:
                ahead[place], turns[place] = len(waiting), 0
                waiting.append(place)

        assert len(running) <= slots
        assert not waiting or len(running) == slots
        assert row.waiting == waiting
        assert all(turns[place] <= ahead[place] + PASSES for place in waiting)
