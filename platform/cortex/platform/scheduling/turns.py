"""Turns: which function gets devices that more functions need than fit. Pure.

Functions that compete for the same memory share it in time. When requests wait for a function and instances in use hold
the memory, those that could be evicted if they were idle are *closed*: they get no new requests, finish those in
flight, and stop. No request in flight is cut. These rules bound both sides:

- Tenure. An instance in use is not closed before it was ready for `turn_min_s`, or three times as long as its own
  start took, if that is longer: a switch costs a start, so at most a quarter of the time goes into starts.
- Overtaking. When requests have waited for `turn_wait_s`, only `turn_min_s` of the tenure counts. With `turn_wait_s`
  0 a function closes nothing: it waits until others are idle.
- Order. Among equal priorities the function whose requests have waited longest is next. Its placement is reserved:
  functions behind it are placed only outside the reservation.
- Pinned instances, and those of a higher priority, are never closed.
"""

from collections.abc import Iterable, Mapping, Set
from math import floor

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.lifecycle import COMING, State
from cortex.functions.spec import Function
from cortex.platform.record import HostRecord, InLine, Instance, Tier, Use
from cortex.platform.scheduling.eviction import FIRST_SERVE_S, residency_s
from cortex.platform.scheduling.placement import Need, Placement, When, place

TENURE_STARTS = 3.0
"""Minimum tenure of an instance in use, in durations of its own start, unless a request has waited too long."""

FORGET_S = 6.0
"""A function leaves the line this long after its last request for a place: routers repeat it every second."""

REPORTED_S = 3.0
"""How long after it joined the line a function's requests may be missing from the routers' reports."""

MOST_IN_LINE = 256
"""Functions in one host's line. Another can join only after one has left."""

SAME_S = 1.0
"""An earlier start of the wait is published only if it differs by more: each change wakes all routers."""

ROUNDED_S = 10.0
"""Estimates that move with time are rounded up to this: each new value is published to all routers."""


class Turn(Struct, frozen=True):
    """The latest time at which a function can be placed, and its placement."""

    at: float
    placement: Placement


class Waiter(Struct, frozen=True, kw_only=True):
    """A function in line."""

    function: Function
    need: Need
    since: float
    """When its oldest request began to wait."""
    joined: float
    renewed: float
    """When a router last requested a place for it."""
    turn: Turn | None = None
    start_s: float = 0.0

    @property
    def rank(self) -> tuple[float, float, str]:
        """Its position in line: the lowest is next."""
        return (-self.need.priority, self.since, self.need.function)


def tenure_s(function: Function, start_s: float) -> float:
    """Return how long an instance in use serves before it is closed, unless a request has waited too long."""
    return max(function.turn_min_s, TENURE_STARTS * start_s)


def closable_at(
    instance: Instance, holder: Function, waiter: Waiter, use: Use, now: float, start_s: float = 0.0
) -> float | None:
    """Return when an instance may be closed for a waiter, which may be in the past; None: never, or it is leaving.

    (1) usage is unknown, the waiter closes nothing, or the instance is pinned or of a higher priority: never;
    (2) it is on its way up: as if it were ready after `start_s`, the duration of an earlier start;
    (3) it is ready and was never used: after the time for its first request;
    (4) it is busy: after its tenure, which ends early when the waiter has been overtaken for too long;
    (5) it was used a moment ago: likewise, and not before the waiter has waited as long as it is protected.
    """
    if not use.known or not waiter.function.turn_wait_s or instance.pinned:  # (1)
        return None
    if instance.priority > waiter.need.priority:
        return None
    if instance.state in COMING:  # (2)
        at = instance.created + start_s + tenure_s(holder, start_s)
        return at if at > now else (floor((now + holder.turn_min_s) / ROUNDED_S) + 1) * ROUNDED_S
    if instance.state is not State.READY:
        return None
    busy = use.in_flight.get(instance.id, 0) > 0
    if not busy and use.last_used(instance) <= instance.ready:  # (3)
        return instance.ready + FIRST_SERVE_S
    took_s = max(0.0, instance.ready - instance.started)
    tenure = instance.ready + tenure_s(holder, took_s)
    at = max(instance.ready + holder.turn_min_s, min(tenure, waiter.since + waiter.function.turn_wait_s))
    return at if busy else max(at, waiter.since + residency_s(instance, Tier.SLEEP))  # (4), (5)


def next_turn(
    waiter: Waiter,
    host: HostRecord,
    use: Use,
    functions: Mapping[str, Function],
    now: float,
    *,
    strategy: str = "lru",
    cordoned: bool = False,
    starts: Mapping[str, float] | None = None,
) -> Turn | None:
    """Return the earliest turn of a waiter on a host: a placement whose victims may include instances that can be
    closed by then. None: waiting does not help, or no instance has to be closed.

    `functions` are the specs of the host's instances, `starts` the seconds of earlier starts of each.
    """
    start_times = starts or {}
    times = {}
    for instance in host.instances:
        holder = functions.get(instance.id)
        if holder is not None:
            at = closable_at(instance, holder, waiter, use, now, start_times.get(instance.id, 0.0))
            if at is not None:
                times[instance.id] = max(at, now)
    for at in sorted(set(times.values())):
        closable = frozenset(i for i, t in times.items() if t <= at)
        placement = place(waiter.need, host, use, now, strategy=strategy, cordoned=cordoned, closable=closable)
        if isinstance(placement, Placement):
            return Turn(at, placement)
        if placement.when is When.NEVER:
            return None
    return None


class Line(Struct):
    """The functions that wait for memory on one host."""

    waiters: dict[str, Waiter] = {}

    def __bool__(self) -> bool:
        return bool(self.waiters)

    def waiter(self, function: Function, need: Need, waited_s: float, now: float) -> Waiter:
        """Return a function as a waiter: since its requests wait, or since it joined the line if that is longer."""
        before = self.waiters.get(function.id)
        since = now - waited_s
        if before is not None and since > before.since - SAME_S:
            since = before.since
        return Waiter(
            function=function,
            need=need,
            since=since,
            joined=before.joined if before else now,
            renewed=now,
        )

    def join(self, waiter: Waiter) -> None:
        """Add a function to the line, or renew its position."""
        if waiter.need.function in self.waiters or len(self.waiters) < MOST_IN_LINE:
            self.waiters[waiter.need.function] = waiter

    def leave(self, function: str) -> None:
        """Remove a function: it has a placement, or no longer needs one."""
        self.waiters.pop(function, None)

    def prune(self, use: Use, starting: Set[str], now: float) -> None:
        """Remove functions that no router requests a place for, that no request waits for, and those with an instance
        on its way up (`starting`)."""
        for function, waiter in list(self.waiters.items()):
            stale = now - waiter.renewed > FORGET_S
            left = use.known and not use.waiting.get(function) and now - waiter.joined > REPORTED_S
            if stale or left or function in starting:
                del self.waiters[function]

    def ahead_of(self, waiter: Waiter) -> list[Waiter]:
        """Return the waiters that precede this one."""
        others = (w for w in self.waiters.values() if w.need.function != waiter.need.function)
        return sorted((w for w in others if w.rank < waiter.rank), key=lambda w: w.rank)

    def in_order(self) -> tuple[InLine, ...]:
        """Return the line for the record."""
        return tuple(
            InLine(
                function=w.need.function,
                since=w.since,
                priority=w.need.priority,
                turn_at=w.turn.at if w.turn else 0.0,
                closes=w.turn.placement.evict if w.turn else (),
                devices=w.turn.placement.devices if w.turn else (),
                start_s=w.start_s,
            )
            for w in sorted(self.waiters.values(), key=lambda w: w.rank)
        )


def with_reservations(host: HostRecord, waiters: Iterable[Waiter]) -> HostRecord:
    """Return a host with the turns of these waiters reserved: later placements do not use their memory."""
    reservations = tuple(_reservation(w, w.turn) for w in waiters if w.turn is not None)
    return replace(host, instances=(*host.instances, *reservations)) if reservations else host


def reservation_id(function: str) -> str:
    """Return the id of the instance that represents the reservation of a function in line."""
    return f"reserved for {function}"


def _reservation(waiter: Waiter, turn: Turn) -> Instance:
    return Instance(
        id=reservation_id(waiter.need.function),
        function=waiter.need.function,
        revision="",
        state=State.PLACING,
        since=turn.at,
        created=turn.at,
        devices=turn.placement.devices,
        memory_mb=turn.placement.memory_mb,
        priority=waiter.need.priority,
    )
