"""Decides when a line of a batch may run, and ends lines whose place a request needs.

Lines never wait in the router and count in no queue: one that may not run now is refused, and its batch worker sends it
again. So all requests that wait here are somebody's who waits for an answer, and a batch stands behind them all:

- it fills the places of ready instances, half of them where requests are in flight too;
- it starts a cold function only while no request waits for room anywhere, and has nothing evicted for it that was used
  within `[gateway] batch_quiet_s`;
- lines without an answer are ended when a request has to queue for their instance, when an instance closes for another
  function's turn, and when requests wait for a function that has no room.
"""

import asyncio
import time
from collections import Counter
from typing import Protocol

import structlog

from cortex.functions.lifecycle import State
from cortex.functions.servers import max_concurrency, server_of
from cortex.platform.in_flight import InFlight
from cortex.platform.record import Instance
from cortex.platform.registry import RecordUnavailable
from cortex.router.activation.activator import Activator
from cortex.router.errors import BatchWaits, RequestError
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import Target

log = structlog.get_logger()

LOOK_S = 0.5
START_S = 5.0
"""Between two attempts to start a function for batches."""
MOST_STARTS = 1000


class Line(Protocol):
    """A line that is at an instance."""

    def give_way(self, error: RequestError) -> None:
        """End it, unless its answer has begun."""


class BatchGate:
    """The lines of one router worker. `watch()` and `start()` run while it does."""

    def __init__(self, view: FleetView, activator: Activator, in_flight: InFlight, quiet_s: float) -> None:
        self._view, self._activator, self._in_flight, self._quiet_s = view, activator, in_flight, quiet_s
        self._lines: dict[Line, str] = {}
        self._on: Counter[str] = Counter()
        self._wanted: dict[str, Target] = {}
        self._started_at: dict[str, float] = {}
        self._wake = asyncio.Event()

    def admit(self, target: Target) -> None:
        """Let a line board an instance of its function now. Raises BatchWaits:

        (1) requests wait for the function, or for room;
        (2) an instance has a place;
        (3) all places are taken;
        (4) it is starting;
        (5) it is cold, and requests wait for other starts;
        (6) it is cold: start it, if it fits.
        """
        function, view = target.base, self._view
        waiting = self._waiting()
        if function.id in waiting or self._without_room(waiting):  # (1)
            raise BatchWaits("requests that are no batch's wait")
        ready = view.ready(function.id, target.revision)
        if any(self._has_place(target, instance) for instance in ready):  # (2)
            return
        if ready:  # (3)
            raise BatchWaits(f"every place at '{function.id}' is taken")
        if any(i.is_coming for i in self._instances(function.id)):  # (4)
            raise BatchWaits(f"'{function.id}' is starting", retry_after=2)
        if waiting:  # (5)
            raise BatchWaits("requests that are no batch's wait for a start", retry_after=2)
        if len(self._wanted) < MOST_STARTS:  # (6)
            self._wanted[function.id] = target
            self._wake.set()
        raise BatchWaits(f"'{function.id}' is cold; it starts when it fits beside what is in use", retry_after=2)

    def enter(self, line: Line, instance: str) -> None:
        """Count a line at an instance."""
        self._lines[line] = instance
        self._on[instance] += 1

    def leave(self, line: Line) -> None:
        """Stop counting a line."""
        instance = self._lines.pop(line, None)
        if instance is not None:
            self._on[instance] -= 1
            if not self._on[instance]:
                del self._on[instance]

    def make_room(self, instance: str) -> None:
        """End a line at an instance, because a request queues there."""
        for line, at in self._lines.items():
            if at == instance:
                line.give_way(BatchWaits("a request that is no batch's needs the place"))
                return

    async def watch(self) -> None:
        """End lines that others need the room of, until cancelled. A function that lacks room at two looks in a row
        does so: at one alone its start may just be under way."""
        before: frozenset[str] = frozenset()
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._lines:
                before = frozenset()
                continue
            lacking = self._without_room(self._waiting())
            for line, instance in list(self._lines.items()):
                if lacking & before or self._view.is_closing(instance):
                    line.give_way(BatchWaits("a function that requests wait for needs the room", retry_after=2))
            before = lacking

    async def start(self) -> None:
        """Start functions that batches want, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            wanted, self._wanted = self._wanted, {}
            now = time.monotonic()
            self._started_at = {f: at for f, at in self._started_at.items() if now - at < START_S}
            for function, target in wanted.items():
                if function in self._started_at or self._waiting():
                    continue
                self._started_at[function] = now
                try:
                    await self._activator.add(target, evict=True, for_request=False, unused_s=self._quiet_s)
                except (RequestError, RecordUnavailable) as error:
                    log.info("batch_start_waits", function=function, why=str(error))

    def _has_place(self, target: Target, instance: Instance) -> bool:
        function = target.base
        slots = max_concurrency(function, server_of(function, instance.server))
        places = min(function.target_concurrency, slots or function.target_concurrency)
        load = self._in_flight.on(instance.id) + self._view.elsewhere(instance.id)
        if load > self._on[instance.id]:
            places = max(1, places // 2)
        return load < places

    def _waiting(self) -> frozenset[str]:
        """Return the functions that requests wait for, here or at other routers."""
        return frozenset(self._in_flight.counts()[1]) | self._view.waited_for()

    def _without_room(self, waiting: frozenset[str]) -> frozenset[str]:
        """Return those of them that have no instance and none on its way."""
        return frozenset(
            f for f in waiting if not any(i.is_coming or i.state is State.READY for i in self._instances(f))
        )

    def _instances(self, function: str) -> list[Instance]:
        return [i for host in self._view.fleet.hosts.values() for i in host.of(function)]
