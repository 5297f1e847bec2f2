"""Decides when a line of a batch may run, and ends lines whose place a request needs.

Lines never wait in the router and are in none of its queues: a line that may not run now is refused, and its batch
worker sends it again. Every request that waits here is therefore interactive, and precedes all batches:

- lines take the free places of ready instances, but only half of the places while interactive requests are in flight;
- they start a cold function only while no interactive request waits, and evict no instance that was used within
  `[gateway] batch_quiet_s`;
- lines whose answer has not begun are ended when an interactive request has to queue at their instance, when the
  instance closes to make room, and when interactive requests wait for a function that has no room.
"""

import asyncio
import time
from collections import Counter
from typing import Protocol

import structlog

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
"""Minimum time between two attempts to start a function for batches."""
MOST_STARTS = 1000
"""Functions that lines wait for at a time."""


class Line(Protocol):
    """A line that is at an instance."""

    def give_way(self, error: RequestError) -> bool:
        """End it, unless its answer has begun; False: it has begun, or it ends already."""


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

        (1) interactive requests wait for the function, or for room: refuse;
        (2) an instance has a free place: admit;
        (3) all places are taken: refuse;
        (4) the function is starting: refuse;
        (5) it is cold, and interactive requests wait for other starts: refuse;
        (6) it is cold: refuse, and start it if there is room.
        """
        function, view = target.base, self._view
        waiting = self._waiting()
        if function.id in waiting or self._without_room(waiting):  # (1)
            raise BatchWaits("interactive requests are waiting")
        ready = view.ready(function.id, target.revision)
        if any(self._has_place(target, instance) for instance in ready):  # (2)
            return
        if ready:  # (3)
            raise BatchWaits(f"all places at '{function.id}' are taken")
        if any(i.is_coming for i in view.of(function.id)):  # (4)
            raise BatchWaits(f"'{function.id}' is starting", retry_after=2)
        if waiting:  # (5)
            raise BatchWaits("interactive requests wait for a start", retry_after=2)
        if len(self._wanted) < MOST_STARTS:  # (6)
            self._wanted[function.id] = target
            self._wake.set()
        raise BatchWaits(f"'{function.id}' is cold; it starts when there is room beside what is in use", retry_after=2)

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
        """End one line at an instance, because a request queues there."""
        for line, at in self._lines.items():
            if at == instance and line.give_way(BatchWaits("an interactive request needs the place")):
                return

    async def watch(self) -> None:
        """End lines whose room others need, until cancelled. A function counts as one without room when it is so at two
        looks in a row, as its start may be about to begin at the first."""
        before: frozenset[str] = frozenset()
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._lines:
                before = frozenset()
                continue
            lacking = self._without_room(self._waiting())
            for line, instance in list(self._lines.items()):
                if lacking & before or self._view.is_closing(instance):
                    line.give_way(
                        BatchWaits("interactive requests wait for a function that needs the room", retry_after=2)
                    )
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
        """Return those of the functions that have no instance, ready or starting."""
        return frozenset(f for f in waiting if not self._view.of(f))
