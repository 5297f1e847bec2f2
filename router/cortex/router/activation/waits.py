"""The wait of a function in line, as text for operators and rejected clients. Pure."""

from collections.abc import Iterable
from math import ceil

from msgspec import Struct

from cortex.platform.fleet import Fleet
from cortex.platform.record import HostRecord, InLine


class Wait(Struct, frozen=True, kw_only=True):
    """A function's place in the line of one host."""

    host: str
    position: int
    """1: it is next."""
    waited_s: float
    turn_in_s: float | None
    """The latest time until instances in use are closed for it; None: none can be."""
    closes: tuple[str, ...]
    """Their functions."""
    start_s: float | None
    """Duration of an earlier start."""

    def __str__(self) -> str:
        waits = f"has waited for memory on {self.host} for {self.waited_s:.0f} s"
        before = f", behind {self.position - 1} other{'s' if self.position > 2 else ''}" if self.position > 1 else ""
        if self.turn_in_s is None:
            return f"{waits}{before}; no instance in use can be closed for it"
        holders = ", ".join(self.closes) or "what is before it in line"
        takes = f", and its start takes about {ceil(self.start_s)} s" if self.start_s else ""
        return f"{waits}{before}; {holders} closes for it in at most {ceil(self.turn_in_s)} s{takes}"


class Place(Struct, frozen=True):
    """A function's position in the line of a host."""

    host: HostRecord
    position: int
    waiter: InLine


def places_in_line(fleet: Fleet) -> dict[str, list[Place]]:
    """Return the places of every function that is in line."""
    places: dict[str, list[Place]] = {}
    for host in fleet.hosts.values():
        for position, waiter in enumerate(host.line, 1):
            places.setdefault(waiter.function, []).append(Place(host, position, waiter))
    return places


def waits_at(places: Iterable[Place], now: float) -> list[Wait]:
    """Return what a function waits for at these places, the soonest turn first."""
    return sorted((_wait(p, now) for p in places), key=lambda w: (w.turn_in_s is None, w.turn_in_s, w.host))


def waits(fleet: Fleet, function: str, now: float) -> list[Wait]:
    """Return what a function waits for, the soonest turn first."""
    return waits_at(places_in_line(fleet).get(function, ()), now)


def ready_in_s(fleet: Fleet, function: str, now: float) -> float | None:
    """Return within how many seconds a function in line is ready, but for the requests in flight before it; None: it
    is in no line, or no instance can be closed for it."""
    soonest = next(iter(waits(fleet, function, now)), None)
    if soonest is None or soonest.turn_in_s is None:
        return None
    return soonest.turn_in_s + (soonest.start_s or 0.0)


def _wait(place: Place, now: float) -> Wait:
    functions, waiter = {i.id: i.function for i in place.host.instances}, place.waiter
    return Wait(
        host=place.host.name,
        position=place.position,
        waited_s=round(max(0.0, now - waiter.since), 1),
        turn_in_s=round(max(0.0, waiter.turn_at - now), 1) if waiter.turn_at else None,
        closes=tuple(sorted({functions[i] for i in waiter.closes if i in functions})),
        start_s=waiter.start_s or None,
    )
