"""The waits of a function in line and of a placed instance, as text for operators and rejected clients. Pure."""

from collections.abc import Iterable, Sequence
from math import ceil

from msgspec import Struct

from cortex.functions.lifecycle import State
from cortex.functions.names import join_names
from cortex.platform.fleet import Fleet
from cortex.platform.record import HostRecord, InLine, Instance
from cortex.platform.scheduling.turns import reservation_id


class Wait(Struct, frozen=True, kw_only=True):
    """A function's place in the line of one host."""

    host: str
    position: int
    """1: it is next."""
    waited_s: float
    turn_in_s: float | None
    """The latest time until instances in use are closed for it; None: none can be."""
    closes: tuple[str, ...]
    """Their functions; of those before it in line, the last to have its turn."""
    start_s: float | None
    """Duration of an earlier start."""
    unmeasured: tuple[str, ...] = ()
    """Functions before it whose starts were never measured: these come on top of `turn_in_s`."""
    after: tuple[str, ...] = ()
    """Functions whose requests in flight end before those in `closes` start: their time comes on top of it too."""

    def __str__(self) -> str:
        waits = f"has waited for memory on {self.host} for {self.waited_s:.0f} s"
        before = f", behind {self.position - 1} other{'s' if self.position > 2 else ''}" if self.position > 1 else ""
        if self.turn_in_s is None:
            return f"{waits}{before}; no instance in use can be closed for it"
        holders = join_names(self.closes) or "what is before it in line"
        close = "close" if len(self.closes) > 1 else "closes"
        if self.after:
            return f"{waits}{before}; {holders} {close} for it after a turn that begins when {_ends(self.after)}"
        more = f" and the first start of {join_names(self.unmeasured)}" if self.unmeasured else ""
        takes = f", and its start takes about {ceil(self.start_s)} s" if self.start_s else ""
        return f"{waits}{before}; {holders} {close} for it in at most {ceil(self.turn_in_s)} s{more}{takes}"


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


def room_text(instance: Instance, host: HostRecord, now: float) -> str:
    """Return which instances a placed one waits for, and until when at most; empty: for none."""
    before = [i for i in host.instances if i.id in instance.waits_for] if instance.state is State.PLACING else []
    if not before:
        return ""
    if closing := _closing(before):
        latest_s = max(0, ceil(max(i.deadline for i in closing) - now))
        return f"waits until {_ends(_functions(closing))}, in at most {latest_s} s"
    return f"waits until {join_names(_functions(before))} {'has' if len(before) == 1 else 'have'} left"


def _closing(instances: Iterable[Instance]) -> list[Instance]:
    return [i for i in instances if i.yields_to and i.state is State.DRAINING]


def _functions(instances: Iterable[Instance]) -> tuple[str, ...]:
    return tuple(sorted({i.function for i in instances}))


def _ends(functions: Sequence[str]) -> str:
    return f"the requests of {join_names(functions)} end"


def _wait(place: Place, now: float) -> Wait:
    functions, waiter = {i.id: i.function for i in place.host.instances}, place.waiter
    ahead = {reservation_id(w.function): w for w in place.host.line[: place.position - 1]}
    before = [ahead[c] for c in waiter.closes if c in ahead]
    gone = {c for w in before for c in w.closes}  # by the turns of those before it
    functions |= {reservation: w.function for reservation, w in ahead.items()}
    awaited = {w for i in place.host.instances if i.id in waiter.closes and i.is_coming for w in i.waits_for}
    return Wait(
        host=place.host.name,
        position=place.position,
        waited_s=round(max(0.0, now - waiter.since), 1),
        turn_in_s=round(max(0.0, waiter.turn_at - now), 1) if waiter.turn_at else None,
        closes=tuple(sorted({functions[c] for c in waiter.closes if c in functions and c not in gone})),
        start_s=waiter.start_s or None,
        unmeasured=tuple(sorted(w.function for w in before if not w.start_s)),
        after=_functions(_closing(i for i in place.host.instances if i.id in awaited)),
    )
