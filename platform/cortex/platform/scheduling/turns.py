"""Whose turn it is on devices that more functions want than fit. Pure.

Functions that compete for the same memory share it in time. When requests wait for a function and only instances in
use hold the memory, those that would leave if they were idle are *closed*: they get no new requests, finish those in
flight, and leave. Nothing in flight is cut. These rules bound both sides:

- Tenure. An instance in use is not closed before it was ready for `turn_min_s`, or three times as long as its own
  start took, if that is longer: a switch costs a start, so at most a quarter of the time goes into starts.
- Overtaking. When requests have waited for `turn_wait_s`, only `turn_min_s` of the tenure counts. With `turn_wait_s`
  0 a function closes nothing: it waits until others are idle.
- Order. Among equals in priority the function whose requests wait longest is next. What it is to get is reserved: a
  function behind it is placed only where that leaves its reservation alone.
- Pinned instances, and those of a higher priority, are never closed.
"""

from collections.abc import Iterable, Mapping, Set
from math import floor

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.lifecycle import COMING, State
from cortex.functions.spec import Function, revision
from cortex.platform.record import HostRecord, InLine, Instance, Use
from cortex.platform.scheduling.placement import FIRST_SERVE_S, RESIDENCY_S, Need, Placement, When, place

TENURE_STARTS = 3.0
"""How many times as long as its start took an instance in use serves at least, while none has waited too long."""

FORGET_S = 6.0
"""How long after its last request for a place a function stays in line: routers repeat it every second."""

REPORTED_S = 3.0
"""How long after it came into line a function's waiting requests may be missing from the routers' reports."""

MOST_IN_LINE = 256
"""Functions in one host's line. One more is refused a place in it until another leaves."""

SAME_S = 1.0
"""How much earlier a function must have begun to wait for that to be news: what is published wakes all routers."""

ROUNDED_S = 10.0
"""Estimates that move with time are rounded up to this: each new value is published to all routers."""


class Turn(Struct, frozen=True):
    """When a function can be placed at the latest, and where."""

    at: float
    spot: Placement


class Waiter(Struct, frozen=True, kw_only=True):
    """A function in line."""

    function: Function
    need: Need
    since: float
    """Since when its first request waits."""
    joined: float
    renewed: float
    """When a router last requested a place for it."""
    turn: Turn | None = None
    start_s: float = 0.0

    @property
    def rank(self) -> tuple[float, float, str]:
        """Its place in line: the lowest is next."""
        return (-self.need.priority, self.since, self.need.function)


def tenure_s(function: Function, start_s: float) -> float:
    """Return how long an instance in use serves before it is closed, as long as no request has waited too long."""
    return max(function.turn_min_s, TENURE_STARTS * start_s)


def closable_at(
    instance: Instance, holder: Function, waiter: Waiter, use: Use, now: float, start_s: float = 0.0
) -> float | None:
    """Return when an instance may be closed for a waiter, which may be in the past; None: never, or it leaves already.

    (1) the use is unknown, the waiter closes nothing, or the instance is pinned or of a higher priority: never;
    (2) it is on its way up: as if it were ready after `start_s`, the time its start took before;
    (3) it is ready and was never used: when its first request has had time to come;
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
    return at if busy else max(at, waiter.since + RESIDENCY_S)  # (4), (5)


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
    """Return the soonest turn of a waiter on a host: the placement as ever, with those that may be closed by then among
    the victims. None: waiting does not help, or only for what is idle already.

    `functions` are the specs of the host's instances, and `starts` the seconds a start took before, by revision.
    """
    start_times = starts or {}
    times = {}
    for instance in host.instances:
        holder = functions.get(instance.id)
        if holder is not None:
            at = closable_at(instance, holder, waiter, use, now, start_times.get(instance.revision, 0.0))
            if at is not None:
                times[instance.id] = max(at, now)
    for at in sorted(set(times.values())):
        closable = frozenset(i for i, t in times.items() if t <= at)
        spot = place(waiter.need, host, use, now, strategy=strategy, cordoned=cordoned, closable=closable)
        if isinstance(spot, Placement):
            return Turn(at, spot)
        if spot.when is When.NEVER:
            return None
    return None


class Line:
    """The functions that wait for memory on one host."""

    def __init__(self) -> None:
        self._waiters: dict[str, Waiter] = {}

    def __bool__(self) -> bool:
        return bool(self._waiters)

    def waiter(self, function: Function, need: Need, waited_s: float, now: float) -> Waiter:
        """Return a function as one that waits: since its requests do, or since it is in line if that is longer."""
        before = self._waiters.get(function.id)
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
        """Put a function in line, or renew its place."""
        if waiter.need.function in self._waiters or len(self._waiters) < MOST_IN_LINE:
            self._waiters[waiter.need.function] = waiter

    def leave(self, function: str) -> None:
        """Take a function out: it has a place, or needs none any more."""
        self._waiters.pop(function, None)

    def prune(self, use: Use, coming: Set[str], now: float) -> None:
        """Take out the functions that no router requests a place for any more, that no request waits for, and those
        that are `coming` up somewhere."""
        for function, waiter in list(self._waiters.items()):
            stale = now - waiter.renewed > FORGET_S
            left = use.known and not use.waiting.get(function) and now - waiter.joined > REPORTED_S
            if stale or left or function in coming:
                del self._waiters[function]

    def ahead_of(self, waiter: Waiter) -> list[Waiter]:
        """Return the others whose turn comes before a waiter's."""
        others = (w for w in self._waiters.values() if w.need.function != waiter.need.function)
        return sorted((w for w in others if w.rank < waiter.rank), key=lambda w: w.rank)

    def in_order(self) -> tuple[InLine, ...]:
        """Return the line as the record has it."""
        return tuple(
            InLine(
                function=w.need.function,
                since=w.since,
                priority=w.need.priority,
                turn_at=w.turn.at if w.turn else 0.0,
                closes=w.turn.spot.evict if w.turn else (),
                devices=w.turn.spot.devices if w.turn else (),
                start_s=w.start_s,
            )
            for w in sorted(self._waiters.values(), key=lambda w: w.rank)
        )


def with_reservations(host: HostRecord, waiters: Iterable[Waiter]) -> HostRecord:
    """Return a host on which the turns of these waiters are taken: nothing that comes later counts on their room."""
    reservations = tuple(_reservation(w, w.turn) for w in waiters if w.turn is not None)
    return replace(host, instances=(*host.instances, *reservations)) if reservations else host


def reservation_id(waiter: Waiter) -> str:
    """Return the id of the instance that stands for a waiter's reservation."""
    return f"reserved for {waiter.need.function}"


def _reservation(waiter: Waiter, turn: Turn) -> Instance:
    return Instance(
        id=reservation_id(waiter),
        function=waiter.need.function,
        revision=revision(waiter.function),
        state=State.PLACING,
        since=turn.at,
        created=turn.at,
        devices=turn.spot.devices,
        memory_mb=turn.spot.memory_mb,
        priority=waiter.need.priority,
    )
