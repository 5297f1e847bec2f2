"""When a line of a batch may run, and when it gives way."""

import asyncio
from typing import Any, cast

import pytest

from cortex.functions.lifecycle import State
from cortex.platform.in_flight import InFlight
from cortex.platform.record import Instance
from cortex.router.activation.activator import Activator
from cortex.router.errors import BatchWaits, RequestError
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import Target
from cortex.router.request.batch_gate import BatchGate
from tests.support.factories import a_function, a_host, an_instance

TARGET = Target(a_function("f", target_concurrency=4), "r")
WITHIN_S = 10.0


class View:
    """A fleet with these instances, and functions that requests wait for at other routers."""

    def __init__(self, *instances: Instance, waited_for: frozenset[str] = frozenset(), elsewhere: int = 0) -> None:
        self._instances, self._waited_for, self._elsewhere = instances, waited_for, elsewhere
        self.closing: set[str] = set()

    def ready(self, function: str, revision: str) -> list[Instance]:
        return [i for i in self._instances if i.function == function and i.state is State.READY]

    def of(self, function: str) -> list[Instance]:
        return a_host(*self._instances).of(function)

    def elsewhere(self, instance: str) -> int:
        return self._elsewhere

    def waited_for(self) -> frozenset[str]:
        return self._waited_for

    def is_closing(self, instance: str) -> bool:
        return instance in self.closing


class Starts:
    """An activator that notes what it is to start."""

    def __init__(self) -> None:
        self.added: list[tuple[str, dict[str, Any]]] = []
        self.is_called = asyncio.Event()

    async def add(self, target: Target, **how: Any) -> None:
        self.added.append((target.function.id, how))
        self.is_called.set()


class Line:
    """A line at an instance."""

    def __init__(self) -> None:
        self.has_ended = asyncio.Event()

    def give_way(self, error: RequestError) -> bool:
        if self.has_ended.is_set():
            return False
        self.has_ended.set()
        return True


def a_gate(view: View, starts: Starts | None = None, in_flight: InFlight | None = None) -> BatchGate:
    """Return a gate."""
    activator = cast(Activator, starts or Starts())
    return BatchGate(cast(FleetView, view), activator, in_flight or InFlight("router"), quiet_s=300.0)


def an_f(state: State = State.READY, **more: Any) -> Instance:
    """Return an instance of the function."""
    return an_instance("i", function="f", state=state, **more)


def refusal(gate: BatchGate) -> str:
    """Return why a line may not run; empty: it may."""
    try:
        gate.admit(TARGET)
    except BatchWaits as error:
        return error.message
    return ""


async def test_a_line_boards_an_instance_with_a_place() -> None:
    assert refusal(a_gate(View(an_f()))) == ""


@pytest.mark.parametrize(("lines", "requests", "goes"), [(3, 0, True), (4, 0, False), (1, 1, False), (0, 1, True)])
async def test_lines_fill_an_instance_alone_and_half_of_it_beside_requests(
    lines: int, requests: int, goes: bool
) -> None:
    in_flight = InFlight("router")
    gate = a_gate(View(an_f()), in_flight=in_flight)
    for _ in range(lines):
        gate.enter(Line(), "i")
    for _ in range(lines + requests):
        in_flight.enter(object(), "f", "i")

    assert (refusal(gate) == "") is goes


async def test_a_line_waits_while_requests_wait_for_its_function() -> None:
    assert "wait" in refusal(a_gate(View(an_f(), waited_for=frozenset({"f"}))))


async def test_a_line_waits_while_another_function_has_no_room() -> None:
    assert "wait" in refusal(a_gate(View(an_f(), waited_for=frozenset({"g"}))))


async def test_a_line_goes_while_another_function_is_starting() -> None:
    starting = an_instance("j", function="g", state=State.STARTING)

    assert refusal(a_gate(View(an_f(), starting, waited_for=frozenset({"g"})))) == ""


async def test_a_cold_function_starts_beside_what_was_used_lately() -> None:
    starts = Starts()
    gate = a_gate(View(), starts)
    task = asyncio.create_task(gate.start())

    why = refusal(gate)

    await asyncio.wait_for(starts.is_called.wait(), WITHIN_S)
    task.cancel()
    assert "cold" in why
    assert starts.added == [("f", {"evict": True, "for_request": False, "unused_s": 300.0})]


async def test_a_cold_function_does_not_start_while_requests_wait_for_a_start() -> None:
    starts = Starts()
    starting = an_instance("j", function="g", state=State.STARTING)
    gate = a_gate(View(starting, waited_for=frozenset({"g"})), starts)

    why = refusal(gate)

    assert "start" in why
    assert not gate._wanted


async def test_a_function_that_is_starting_is_not_started_again() -> None:
    gate = a_gate(View(an_f(State.STARTING)))

    assert "starting" in refusal(gate)
    assert not gate._wanted


async def test_one_line_ends_for_a_request_that_queues_for_its_instance() -> None:
    gate, lines = a_gate(View(an_f())), [Line(), Line(), Line()]
    for line, instance in zip(lines, ("other", "i", "i"), strict=True):
        gate.enter(line, instance)

    gate.make_room("i")

    assert [line.has_ended.is_set() for line in lines] == [False, True, False]


async def test_two_requests_that_queue_at_an_instance_end_two_lines() -> None:
    gate, lines = a_gate(View(an_f())), [Line(), Line(), Line()]
    for line in lines:
        gate.enter(line, "i")

    gate.make_room("i")
    gate.make_room("i")

    assert [line.has_ended.is_set() for line in lines] == [True, True, False]


async def test_lines_end_when_a_function_lacks_room() -> None:
    gate, line = a_gate(View(an_f(), waited_for=frozenset({"g"}))), Line()
    gate.enter(line, "i")
    task = asyncio.create_task(gate.watch())

    await asyncio.wait_for(line.has_ended.wait(), WITHIN_S)

    task.cancel()


async def test_lines_end_when_their_instance_closes_for_another_functions_turn() -> None:
    view = View(an_f(), an_instance("o", function="f"))
    gate, line, other = a_gate(view), Line(), Line()
    gate.enter(other, "o")
    gate.enter(line, "i")
    view.closing.add("i")
    task = asyncio.create_task(gate.watch())

    await asyncio.wait_for(line.has_ended.wait(), WITHIN_S)

    task.cancel()
    assert not other.has_ended.is_set()
