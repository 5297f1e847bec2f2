"""Which instance serves a request, and which hosts to ask for a new one. Pure."""

from collections.abc import Callable, Sequence

from cortex.functions.spec import Function
from cortex.platform.placement import Need, NoRoom, Placement, When, place
from cortex.platform.record import Fleet, HostRecord, Instance, Use


def choose(ready: Sequence[Instance], load: Callable[[str], int]) -> Instance | None:
    """Return the instance with the fewest requests in flight; the lowest id among equals."""
    if len(ready) < 2:
        return ready[0] if ready else None
    return min(ready, key=lambda i: (load(i.id), i.id))


def hosts_to_ask(need: Need, function: Function, fleet: Fleet, use: Use, now: float) -> list[str]:
    """Return the hosts that may take a function, best first. A guess: the agent asked decides.

    In order: those it is pinned on, room without eviction, the fewest evictions, those that may have room
    later, and the name. Hosts it can never run on, and cordoned ones, are left out.
    """
    ranked = []
    for host in fleet.hosts.values():
        if host.name in fleet.cordoned:
            continue
        guess = place(need, host, use, now, cordoned=host.name in fleet.cordoned)
        if isinstance(guess, NoRoom) and guess.when is When.NEVER:
            continue
        pinned = host.name in function.pinned_on
        evictions = len(guess.evict) if isinstance(guess, Placement) else 1_000_000
        ranked.append((not pinned, evictions, host.name))
    return [name for *_, name in sorted(ranked)]


def why_nowhere(need: Need, fleet: Fleet, use: Use, now: float) -> str:
    """Say for every host why it cannot take a function."""
    if not fleet.hosts:
        return "no host is alive"
    said = (_why(need, h, fleet, use, now) for h in sorted(fleet.hosts.values(), key=lambda h: h.name))
    return "; ".join(said)


def _why(need: Need, host: HostRecord, fleet: Fleet, use: Use, now: float) -> str:
    guess = place(need, host, use, now, cordoned=host.name in fleet.cordoned)
    return f"{host.name}: {guess.reason if isinstance(guess, NoRoom) else 'has room'}"
