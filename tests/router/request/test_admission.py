"""Waiting for an instance: the queue's limit, and the slots of an instance."""

import asyncio
from typing import Any, cast

import pytest

from cortex.platform.api_keys import Priority
from cortex.platform.in_flight import InFlight
from cortex.platform.record import Instance
from cortex.router.activation.activator import Activator
from cortex.router.errors import QueueFull, RequestError
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import Target
from cortex.router.request.admission import Admission, Ticket
from tests.support.factories import a_function, an_instance

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


class View:
    """A fleet with these ready instances, and this many requests that wait at other routers."""

    def __init__(self, *ready: Instance, elsewhere: int = 0) -> None:
        self.instances, self._elsewhere = list(ready), elsewhere

    def ready(self, function: str, revision: str) -> list[Instance]:
        return self.instances

    def elsewhere(self, instance: str) -> int:
        return 0

    def waiting_elsewhere(self, function: str) -> int:
        return self._elsewhere

    def share_waiting_elsewhere(self, function: str) -> int:
        return 0

    def retry_after_s(self, function: str) -> int:
        return 7


class Request:
    """A request for a function, of a priority."""

    affinity = None
    is_batch = False

    def __init__(self, priority: Priority = NORMAL, **function: Any) -> None:
        self.priority, self.target = priority, Target(a_function("f", **function), "r")

    def give_way(self, error: RequestError) -> bool:
        return False

    async def look_up(self) -> None:
        return None


def an_admission(*ready: Instance, elsewhere: int = 0) -> Admission:
    view = View(*ready, elsewhere=elsewhere)
    return Admission(cast(FleetView, view), cast(Activator, view), InFlight("router-1"))


def queued(admission: Admission, slots: int | None = 1, priority: Priority = NORMAL, queue: int = 9) -> Ticket:
    """Return a ticket in the slot queue of the instance `i`."""
    ticket = admission.ticket(Request(priority, queue=queue))
    ticket.join_queue("i", slots)
    return ticket


@pytest.mark.parametrize(
    ("arrivals", "order"),
    [
        ([NORMAL] * 4, [0, 1, 2, 3]),
        ([NORMAL, NORMAL, LOW, HIGH], [0, 3, 1, 2]),
        ([LOW, LOW, NORMAL, HIGH, HIGH], [0, 3, 4, 2, 1]),
    ],
)
async def test_requests_get_a_slot_by_priority_and_then_in_order_of_arrival(
    arrivals: list[Priority], order: list[int]
) -> None:
    admission, done = an_admission(), []

    async def one(number: int) -> None:
        with queued(admission, priority=arrivals[number]) as ticket:
            await ticket.wait_for_slot()
            await asyncio.sleep(0)
            done.append(number)

    await asyncio.gather(*(one(n) for n in range(len(arrivals))))

    assert done == order
    assert not admission._queues
    assert not admission._futures
    assert not admission.gate._waiting


async def test_a_request_that_leaves_the_queue_frees_its_place() -> None:
    admission = an_admission()

    async def one() -> None:
        with queued(admission) as ticket:
            await ticket.wait_for_slot()

    with queued(admission) as first:
        await first.wait_for_slot()
        waiting = asyncio.create_task(one())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    with queued(admission) as third:
        assert not third.must_wait
        await asyncio.wait_for(third.wait_for_slot(), 1)


async def test_a_request_that_is_cancelled_as_it_gets_the_slot_passes_it_on() -> None:
    """The one before ends in the same moment in which the next is cancelled."""
    admission, has_slot = an_admission(), asyncio.Event()

    async def one(then: asyncio.Event) -> None:
        with queued(admission) as ticket:
            await ticket.wait_for_slot()
            then.set()

    with queued(admission) as first:
        await first.wait_for_slot()
        leaving = asyncio.create_task(one(asyncio.Event()))
        behind = asyncio.create_task(one(has_slot))
        await asyncio.sleep(0)
        leaving.cancel()
    await asyncio.wait_for(has_slot.wait(), 5)
    await asyncio.gather(leaving, behind, return_exceptions=True)

    assert leaving.cancelled()
    assert not admission._queues


async def test_a_slot_queue_at_its_limit_rejects_a_request_and_takes_one_with_a_higher_limit() -> None:
    admission = an_admission()
    with queued(admission, queue=1), queued(admission, queue=1):
        with pytest.raises(QueueFull, match="1 requests wait for 'f' already"):
            queued(admission, queue=1)
        with queued(admission, queue=2) as fourth:
            assert fourth.must_wait


async def test_at_an_instance_without_a_limit_no_request_waits() -> None:
    admission = an_admission()
    with queued(admission, None) as first, queued(admission, None) as second:
        assert (first.must_wait, second.must_wait) == (False, False)
        await first.wait_for_slot()
        await second.wait_for_slot()


async def test_a_request_that_joins_a_slot_queue_holds_up_no_lower_one_at_the_gate() -> None:
    admission = an_admission()
    low = admission.gate.join("f", LOW)
    with admission.ticket(Request(HIGH)) as high:
        high.join_queue("i", 1)
        await asyncio.wait_for(low.wait_for_higher(), 5)


async def test_a_ticket_that_waits_for_a_start_twice_is_at_the_gate_once() -> None:
    class NeverReady(View):
        async def wait_until_ready(self, target: Target, within_s: float) -> None:
            await asyncio.Event().wait()

    view = NeverReady()
    admission = Admission(cast(FleetView, view), cast(Activator, view), InFlight("router-1"))

    with admission.ticket(Request()) as ticket:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ticket.wait_for_start(0.0), 0.001)

    assert not admission.gate._waiting


async def test_a_request_counts_as_in_flight_from_boarding_to_the_end_of_its_ticket() -> None:
    admission = an_admission(an_instance("i", function="f"))
    with admission.ticket(Request()) as ticket:
        instance = ticket.board()
        in_flight = admission.in_flight.on("i")

    assert instance is not None
    assert (in_flight, admission.in_flight.counts()) == (1, ({}, {}))


def test_requests_that_wait_at_other_routers_count_towards_the_limit() -> None:
    alone, shared, function = an_admission(), an_admission(elsewhere=1), Target(a_function("f", queue=2), "r")

    with alone.within_limit(function, NORMAL), shared.within_limit(function, NORMAL):
        accepted = accepts(alone, function, NORMAL), accepts(shared, function, NORMAL)

    assert accepted == (True, False)
    assert shared.in_flight.waiting_for("f") == 0


def test_a_request_over_the_limit_learns_when_the_function_is_expected_to_be_ready() -> None:
    admission = an_admission()

    with pytest.raises(QueueFull) as error, admission.within_limit(Target(a_function("f", queue=0), "r"), NORMAL):
        pass

    assert error.value.retry_after == 7


def test_a_low_priority_has_a_smaller_share_of_the_queue() -> None:
    admission, function = an_admission(elsewhere=2), Target(a_function("f", queue=4), "r")

    assert not accepts(admission, function, LOW)
    assert accepts(admission, function, NORMAL)


def accepts(admission: Admission, function: Target, priority: Priority) -> bool:
    try:
        with admission.within_limit(function, priority):
            return True
    except QueueFull:
        return False
