"""The rules of turns: who may be closed, when, for whom, and in which order. Time is a number."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function
from cortex.platform.record import HostRecord, Instance, Use
from cortex.platform.scheduling.placement import NoRoom, Placement, place
from cortex.platform.scheduling.turns import (
    FORGET_S,
    MOST_IN_LINE,
    REPORTED_S,
    Line,
    Turn,
    Waiter,
    closable_at,
    next_turn,
    reservation_id,
    tenure_s,
    with_reservations,
)
from tests.support.factories import a_device, a_function, a_host, a_need, an_instance

NOW = 1000.0
BUSY = Use(in_flight={"one": 1}, used={"i:one": NOW})
JUST_USED = Use(used={"i:one": NOW - 1})
HOLDER = a_function("org/model")
TWO_GPUS = (a_device("gpu-0"), a_device("gpu-1"))


def a_holder(id: str = "one", *, ready: float = 0.0, start_s: float = 1.0, **rest: Any) -> Instance:
    """An instance that fills `gpu-0`, was ready at `ready` and took `start_s` to start."""
    return replace(an_instance(id, ready=ready, **{"memory_mb": 10_000, **rest}), started=ready - start_s)


def a_waiter(id: str = "org/new", *, since: float = NOW, priority: int = 0, mb: int = 8000, **rest: Any) -> Waiter:
    """A function in line for 8000 MiB on one device."""
    devices = rest.pop("devices", 1)
    function = a_function(id, priority=priority, **rest)
    wanted = a_need(mb, function=id, priority=priority, devices=devices)
    return Waiter(function=function, need=wanted, since=since, joined=since, renewed=NOW)


def turn_of(waiter: Waiter, host: HostRecord, use: Use, now: float = NOW, **rest: Any) -> Turn | None:
    """The waiter's next turn on a host whose instances are all of default functions."""
    functions = {i.id: a_function(i.function) for i in host.instances}
    return next_turn(waiter, host, use, functions, now, **rest)


# When an instance in use may be closed.


@pytest.mark.parametrize(("start_s", "tenure"), [(0.5, 15.0), (5.0, 15.0), (20.0, 60.0)])
def test_tenure_is_a_few_times_the_start_and_never_less_than_its_least(start_s: float, tenure: float) -> None:
    assert tenure_s(HOLDER, start_s) == tenure
    assert closable_at(a_holder(ready=NOW, start_s=start_s), HOLDER, a_waiter(), BUSY, NOW) == NOW + min(tenure, 60.0)


@pytest.mark.parametrize(
    ("instance", "waiter", "use"),
    [
        (a_holder(pinned=True), a_waiter(), BUSY),
        (a_holder(priority=1), a_waiter(), BUSY),
        (a_holder(), a_waiter(turn_wait_s=0.0), BUSY),
        (a_holder(), a_waiter(), Use(known=False)),
        (a_holder(state=State.DRAINING), a_waiter(), BUSY),
        (a_holder(state=State.STOPPING), a_waiter(), BUSY),
    ],
    ids=["pinned", "of higher priority", "waiter closes nothing", "use unknown", "draining", "stopping"],
)
def test_some_are_never_closed(instance: Instance, waiter: Waiter, use: Use) -> None:
    assert closable_at(instance, HOLDER, waiter, use, NOW) is None


def test_a_busy_instance_past_its_tenure_is_closed_at_once() -> None:
    at = closable_at(a_holder(ready=NOW - 15), HOLDER, a_waiter(), BUSY, NOW)

    assert at == NOW


def test_a_waiter_overtaken_for_too_long_cuts_a_long_tenure_short() -> None:
    holder = a_holder(ready=NOW - 40, start_s=100.0)

    assert closable_at(holder, HOLDER, a_waiter(since=NOW - 50), BUSY, NOW) == NOW + 10
    assert closable_at(holder, HOLDER, a_waiter(since=NOW - 90), BUSY, NOW) == NOW - 25  # its least tenure


def test_an_instance_used_a_moment_ago_keeps_its_protection_until_it_has_overtaken() -> None:
    holder = a_holder(ready=NOW - 500)

    assert closable_at(holder, HOLDER, a_waiter(since=NOW), JUST_USED, NOW) == NOW + 10
    assert closable_at(holder, HOLDER, a_waiter(since=NOW - 10), JUST_USED, NOW) == NOW


def test_an_instance_that_was_just_loaded_waits_for_its_first_request() -> None:
    assert closable_at(a_holder(ready=NOW - 1), HOLDER, a_waiter(), Use(), NOW) == NOW + 29


def test_a_start_under_way_is_never_closable_now() -> None:
    starting = replace(a_holder(state=State.STARTING), created=NOW - 500)

    at = closable_at(starting, replace(HOLDER, turn_min_s=0.0), a_waiter(since=NOW - 500), BUSY, NOW)

    assert at is not None
    assert at > NOW


# Whom a turn takes.


def test_a_turn_closes_the_busy_where_nothing_idle_frees_enough() -> None:
    turn = turn_of(a_waiter(), a_host(a_holder(ready=NOW - 15)), BUSY)

    assert turn == Turn(NOW, Placement(devices=("gpu-0",), memory_mb=8000, evict=("one",), waits_for=("one",)))


def test_a_turn_takes_the_device_that_is_free_soonest() -> None:
    host = a_host(a_holder("one", ready=NOW - 1), a_holder("two", ready=NOW - 10, devices=("gpu-1",)), devices=TWO_GPUS)

    turn = turn_of(a_waiter(), host, Use(in_flight={"one": 1, "two": 1}))

    assert turn is not None
    assert (turn.at, turn.placement.devices) == (NOW + 5, ("gpu-1",))


def test_a_function_of_two_devices_has_its_turn_when_both_holders_may_be_closed() -> None:
    host = a_host(a_holder("one", ready=NOW - 1), a_holder("two", ready=NOW - 10, devices=("gpu-1",)), devices=TWO_GPUS)

    turn = turn_of(a_waiter(devices=2), host, Use(in_flight={"one": 1, "two": 1}))

    assert turn is not None
    assert (turn.at, turn.placement.evict) == (NOW + 14, ("two", "one"))


def test_where_a_pinned_instance_holds_the_memory_there_is_no_turn() -> None:
    assert turn_of(a_waiter(), a_host(a_holder(pinned=True)), BUSY) is None


def test_a_cordoned_host_gives_no_turns() -> None:
    assert turn_of(a_waiter(), a_host(a_holder()), BUSY, cordoned=True) is None


# The line.


def in_line(*waiters: Waiter) -> Line:
    line = Line()
    for waiter in waiters:
        line.join(waiter)
    return line


def test_the_longest_waiter_is_first_and_a_higher_priority_before_it() -> None:
    late, early, high = (
        a_waiter("late", since=NOW - 1),
        a_waiter("early", since=NOW - 9),
        a_waiter("high", since=NOW, priority=1),
    )

    line = in_line(late, early, high)

    assert [w.function for w in line.in_order()] == ["high", "early", "late"]
    assert line.ahead_of(late) == [high, early]
    assert line.ahead_of(high) == []


def test_a_function_keeps_its_place_when_its_first_request_has_left() -> None:
    line = in_line(a_waiter("f", since=NOW - 20))

    assert line.waiter(a_function("f"), a_need(function="f"), 1.0, NOW).since == NOW - 20


def test_a_wait_that_differs_by_less_than_a_second_is_the_same() -> None:
    line = in_line(a_waiter("f", since=NOW - 20))

    assert line.waiter(a_function("f"), a_need(function="f"), 20.9, NOW).since == NOW - 20
    assert line.waiter(a_function("f"), a_need(function="f"), 21.1, NOW).since == NOW - 21.1


@pytest.mark.parametrize(
    ("use", "coming", "at", "stays"),
    [
        (Use(waiting={"f": 1}), set(), NOW + FORGET_S, True),
        (Use(waiting={"f": 1}), set(), NOW + FORGET_S + 0.1, False),
        (Use(waiting={"f": 1}), {"f"}, NOW, False),
        (Use(), set(), NOW + REPORTED_S, True),
        (Use(), set(), NOW + REPORTED_S + 0.1, False),
        (Use(known=False), set(), NOW + REPORTED_S + 0.1, True),
    ],
    ids=["renewed", "not renewed", "comes up elsewhere", "not reported yet", "no request left", "reports away"],
)
def test_a_function_is_in_line_as_long_as_it_waits(use: Use, coming: set[str], at: float, stays: bool) -> None:
    line = in_line(a_waiter("f"))

    line.prune(use, coming, at)

    assert bool(line) is stays


def test_the_line_is_bounded_and_those_in_it_keep_their_places() -> None:
    line = in_line(*(a_waiter(f"f{n}") for n in range(MOST_IN_LINE)))

    line.join(a_waiter("one too many", since=0.0))
    line.join(a_waiter("f0", since=NOW - 5))

    order = [w.function for w in line.in_order()]
    assert len(order) == MOST_IN_LINE
    assert order[0] == "f0"


def test_reserved_memory_is_not_free_for_functions_behind() -> None:
    host = a_host(a_holder("one", ready=NOW - 1), devices=TWO_GPUS)
    first = a_waiter("first", devices=2)
    first = replace(first, turn=turn_of(first, host, BUSY))

    second = a_waiter("second")
    other = place(second.need, host, BUSY, NOW)
    behind = place(second.need, with_reservations(host, [first]), BUSY, NOW)

    assert isinstance(other, Placement)
    assert isinstance(behind, NoRoom)


# Properties.


@st.composite
def holders(draw: st.DrawFn) -> tuple[Instance, Function, Use]:
    """An instance in any state of use, its function, and what is reported of it."""
    ready = NOW - draw(st.floats(0, 500))
    function = a_function("org/model", turn_min_s=draw(st.floats(0, 60)), priority=draw(st.integers(-1, 1)))
    instance = a_holder(
        ready=ready,
        start_s=draw(st.floats(0, 120)),
        pinned=draw(st.booleans()),
        priority=function.priority,
        state=draw(st.sampled_from([State.READY, State.READY, State.STARTING, State.DRAINING])),
    )
    last = draw(st.one_of(st.none(), st.floats(ready, NOW)))
    use = Use(
        known=draw(st.booleans()) or draw(st.booleans()),
        in_flight={"one": draw(st.integers(0, 2))},
        used={} if last is None else {"i:one": last},
    )
    return instance, function, use


@given(holders(), st.floats(0, 300), st.floats(0, 120), st.integers(-1, 1))
def test_a_closed_instance_is_closable_and_has_had_its_least_tenure(
    holder: tuple[Instance, Function, Use], waited_s: float, turn_wait_s: float, priority: int
) -> None:
    instance, function, use = holder
    waiter = a_waiter(since=NOW - waited_s, turn_wait_s=turn_wait_s, priority=priority)

    at = closable_at(instance, function, waiter, use, NOW)

    if at is None or at > NOW:
        return
    assert use.known
    assert turn_wait_s > 0
    assert not instance.pinned
    assert instance.priority <= priority
    assert instance.state is State.READY
    assert NOW - instance.ready >= function.turn_min_s or not use.in_flight["one"]


@given(holders(), st.floats(1, 120))
def test_a_busy_instance_that_may_be_closed_at_all_is_closable_within_the_wait_or_its_least_tenure(
    holder: tuple[Instance, Function, Use], turn_wait_s: float
) -> None:
    instance, function, use = holder
    waiter = a_waiter(since=NOW, turn_wait_s=turn_wait_s, priority=1)

    at = closable_at(instance, function, waiter, use, NOW)

    if at is not None and instance.state is State.READY and use.in_flight["one"]:
        assert at <= max(NOW + turn_wait_s, instance.ready + function.turn_min_s)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.floats(0, 400), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 2),
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 90)), max_size=3),
)
def test_a_turn_names_only_instances_and_none_before_its_time(
    placed: list[tuple[int, float, bool]], devices: int, before: list[tuple[int, float]]
) -> None:
    instances = [
        a_holder(f"i{n}", ready=NOW - age, memory_mb=3000, devices=(f"gpu-{device}",))
        for n, (device, age, _) in enumerate(placed)
    ]
    use = Use(in_flight={f"i{n}": int(busy) for n, (*_, busy) in enumerate(placed)})
    host = a_host(*instances, devices=TWO_GPUS)
    functions = {i.id: a_function(i.function) for i in instances}
    ahead: list[Waiter] = []
    for n, (priority, waited_s) in enumerate(before):
        other = a_waiter(f"w{n}", since=NOW - waited_s, priority=priority)
        ahead.append(replace(other, turn=next_turn(other, with_reservations(host, ahead), use, functions, NOW)))
        functions[reservation_id(other.need.function)] = other.function
    waiter = a_waiter(devices=devices, priority=2)

    turn = next_turn(waiter, with_reservations(host, ahead), use, functions, NOW)

    if turn is not None:
        assert turn.at >= NOW
        if turn.at == NOW:
            assert set(turn.placement.evict) <= {i.id for i in instances}


@given(st.lists(st.tuples(st.text("abc", min_size=1, max_size=2), st.integers(0, 2), st.floats(0, 100)), max_size=8))
def test_the_order_of_the_line_is_total_and_the_same_however_it_came_about(
    came: list[tuple[str, int, float]],
) -> None:
    waiters = {id: a_waiter(id, priority=priority, since=NOW - waited) for id, priority, waited in came}

    forward, backward = in_line(*waiters.values()), in_line(*reversed(waiters.values()))

    assert forward.in_order() == backward.in_order()
    ranks = [(-w.priority, w.since) for w in forward.in_order()]
    assert ranks == sorted(ranks)
