"""The one place where requests wait for an instance, in this order:

(1) limit: at most `queue` requests wait for a function, fewer of a low priority; more are refused;
(2) start: until an instance is ready, for at most `start_timeout_s` over all attempts (`activation/activator.py`);
(3) gate: after a start, while requests of a higher priority wait for the function (`start_gate.py`);
(4) slot: at an instance with a fixed number of slots, until one is free (`slot_queue.py`).

A request that finds a ready instance with a free slot waits nowhere, and no await delays it. A server with a fixed
number of slots queues extra requests in an order of its own, or aborts the running one, so the router queues them.
Queues are per router worker: requests of several workers queue at the server.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from cortex.platform.api_keys import Priority
from cortex.platform.in_flight import InFlight
from cortex.platform.record import Instance
from cortex.router.activation.activator import Activator
from cortex.router.activation.load_balancing import choose
from cortex.router.errors import QueueFull, RequestError
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import Target
from cortex.router.request.adapters import able
from cortex.router.request.batch_gate import BatchGate
from cortex.router.request.slot_queue import Place, SlotQueue
from cortex.router.request.start_gate import StartGate, StartWaiter


class Candidate(Protocol):
    """A request that needs an instance of its target."""

    priority: Priority
    is_batch: bool

    @property
    def target(self) -> Target: ...
    @property
    def affinity(self) -> str | None: ...
    def give_way(self, error: RequestError) -> bool:
        """End a line of a batch; False: its answer has begun, or it ends already."""

    async def look_up(self) -> None:
        """Look the name up again, which may change the target. Raises RequestError."""


class Admission:
    """The requests of one router worker that wait or are at an instance."""

    def __init__(
        self, view: FleetView, activator: Activator, in_flight: InFlight, batch_quiet_s: float = 300.0
    ) -> None:
        self.view, self.activator, self.in_flight = view, activator, in_flight
        self.batch_gate = BatchGate(view, activator, in_flight, batch_quiet_s)
        self.gate = StartGate()
        self._queues: dict[str, SlotQueue] = {}
        self._futures: dict[Place, asyncio.Future[None]] = {}

    def ticket(self, candidate: Candidate) -> "Ticket":
        """Return the ticket for one attempt of a request."""
        return Ticket(self, candidate)

    @contextmanager
    def within_limit(self, target: Target, priority: Priority) -> Iterator[None]:
        """Count a request as waiting for a function. Raises QueueFull."""
        function, base = target.function, target.base.id
        if target.share:
            waiting = self.in_flight.waiting_for_share(function.id) + self.view.share_waiting_elsewhere(function.id)
        else:
            waiting = self.in_flight.waiting_for(base) + self.view.waiting_elsewhere(base)
        if waiting >= priority.share(function.queue):
            raise _full(waiting, function.id, self.activator.retry_after_s(base))
        with self.in_flight.waiting(base, target.share):
            yield

    def join_queue(self, instance: str, slots: int, priority: Priority, *, limit: int, function: str) -> Place:
        """Queue at an instance with `slots`. Raises QueueFull when `limit` requests wait already."""
        queue = self._queues.setdefault(instance, SlotQueue(slots))
        place = queue.join(priority, function)
        waiting = queue.waiting_of(function) - 1
        if not place.turn:
            if waiting >= limit:
                queue.leave(place)
                raise _full(waiting, function, 5)
            self._futures[place] = asyncio.get_running_loop().create_future()
        return place

    async def wait_for_slot(self, place: Place) -> None:
        """Return when it is the turn of a place."""
        if not place.turn:
            await self._futures[place]

    def leave_queue(self, instance: str, place: Place) -> None:
        """Give up a place, running or waiting, and wake the next one."""
        self._futures.pop(place, None)
        queue = self._queues[instance]
        next_place = queue.leave(place)
        if next_place is not None and not (future := self._futures[next_place]).done():
            future.set_result(None)  # done: it was cancelled and leaves by itself
        if not queue:
            del self._queues[instance]


class Ticket:
    """One attempt of a request to get an instance. As a context manager it gives its places back at the end."""

    def __init__(self, admission: Admission, candidate: Candidate) -> None:
        self._admission, self._candidate = admission, candidate
        self._waiter: StartWaiter | None = None
        self._boarded: tuple[str, str, str] | None = None
        """Function, instance and share by which it counts as in flight."""
        self._place: Place | None = None
        self._queue = ""
        """The instance at which it has its place."""

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, *_: object) -> None:
        if self._place is not None:
            self._admission.leave_queue(self._queue, self._place)
        if self._boarded is not None:
            self._admission.in_flight.leave(self, *self._boarded)
        if self._candidate.is_batch:
            self._admission.batch_gate.leave(self._candidate)
        if self._waiter is not None:
            self._waiter.leave()

    def board(self) -> Instance | None:
        """Choose a ready instance and count the request as in flight there, in one step: otherwise a report in between
        could state that this router has seen a drain and has nothing in flight. Raises BatchWaits for a line of a batch
        that has to stand back."""
        target, view = self._candidate.target, self._admission.view
        function = target.function
        if self._candidate.is_batch:
            self._admission.batch_gate.admit(target)
        ready = able(target, view.ready(target.base.id, target.revision), self._load)
        instance = choose(ready, self._load, self._candidate.affinity, function.target_concurrency)
        if instance is not None:
            boarded = self._boarded = target.base.id, instance.id, target.share
            self._admission.in_flight.enter(self, *boarded)
            if self._candidate.is_batch:
                self._admission.batch_gate.enter(self._candidate, instance.id)
        return instance

    async def wait_for_start(self, waited_s: float) -> Instance:
        """Wait for (1) to (3), then board. `waited_s` of the start timeout are used; it covers the whole request, even
        if its function is edited meanwhile.

        Raises QueueFull, NotReadyInTime, NoCapacity, StartFailed, RecordIsAway, or what `look_up` raises.
        """
        activator, candidate = self._admission.activator, self._candidate
        if self._waiter is not None:
            self._waiter.leave()  # an earlier wait, which had a time limit
        waiter = self._waiter = self._admission.gate.join(candidate.target.base.id, candidate.priority)
        began, queue_of = time.monotonic(), ""
        with ExitStack() as limit:
            while (instance := self.board()) is None:
                target = candidate.target
                function = target.function
                if function.id != queue_of:  # (1)
                    limit.close()
                    limit.enter_context(self._admission.within_limit(target, candidate.priority))
                    waiter.move_to(target.base.id)
                    queue_of = function.id
                deadline = began + function.start_timeout_s - waited_s
                await activator.wait_until_ready(target, deadline - time.monotonic())  # (2)
                await candidate.look_up()
                try:
                    await asyncio.wait_for(waiter.wait_for_higher(), deadline - time.monotonic())  # (3)
                except TimeoutError:
                    raise activator.late(candidate.target.function) from None
        return instance

    def join_queue(self, instance: str, slots: int | None) -> None:
        """Queue for one of an instance's slots (None: no limit), and leave the gate. Raises QueueFull."""
        if slots is not None:
            priority, function = self._candidate.priority, self._candidate.target.function
            self._queue = instance
            self._place = self._admission.join_queue(
                instance, slots, priority, limit=priority.share(function.queue), function=function.id
            )
            if self.must_wait and not self._candidate.is_batch:
                self._admission.batch_gate.make_room(instance)
        if self._waiter is not None:
            self._waiter.leave()

    @property
    def must_wait(self) -> bool:
        """Whether other requests are ahead at the instance."""
        return self._place is not None and not self._place.turn

    async def wait_for_slot(self) -> None:
        """Wait for (4)."""
        if self._place is not None:
            await self._admission.wait_for_slot(self._place)

    def _load(self, instance: str) -> int:
        return self._admission.in_flight.on(instance) + self._admission.view.elsewhere(instance)


def _full(waiting: int, function: str, retry_after: int) -> QueueFull:
    return QueueFull(f"{waiting} requests wait for '{function}' already", retry_after=retry_after)
