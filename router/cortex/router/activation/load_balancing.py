"""Which instance serves a request, and which hosts to ask for a new one. Pure."""

from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import blake2b
from math import ceil

from cortex.functions.spec import Function, revision
from cortex.platform.record import Fleet, HostRecord, Instance, Use
from cortex.platform.scheduling.placement import Need, NoRoom, Placement, When, place

SLACK = 1.25
"""How much more than its share of all requests an instance takes to keep sessions together."""

SESSION_HEADERS = ("x-claude-code-session-id", "x-session-affinity", "x-session-id", "session-id", "thread-id")
"""How clients name their session, most telling first."""


def affinity(headers: Mapping[str, str], asked: str | None) -> str | None:
    """Return what all requests of one session have in common; `asked` is what the body says."""
    return next((value for name in SESSION_HEADERS if (value := headers.get(name))), asked)


def choose(
    ready: Sequence[Instance], load: Callable[[str], int], session: str | None = None, enough: int = 1
) -> Instance | None:
    """Return the instance to serve a request:

    (1) there is no choice;
    (2) the session's own, which has its prompt in the cache, unless that one is busier than its share or has
        `enough` in flight; then the next in the session's order, which is the same in every router;
    (3) the one with the fewest requests in flight; the lowest id among equals.
    """
    if len(ready) < 2:  # (1)
        return ready[0] if ready else None
    if session is not None:  # (2)
        in_flight = {i.id: load(i.id) for i in ready}
        share = max(2, ceil(SLACK * (sum(in_flight.values()) + 1) / len(ready)))
        for instance in sorted(ready, key=lambda i: _rank(session, i.id)):
            if in_flight[instance.id] < min(share, enough):
                return instance
    return min(ready, key=lambda i: (load(i.id), i.id))  # (3)


def _rank(session: str, instance: str) -> bytes:
    """Rendezvous hashing: when an instance comes or goes, only its own sessions move."""
    return blake2b(f"{session}\0{instance}".encode(), digest_size=8).digest()


def hosts_to_ask(
    need: Need, function: Function, fleet: Fleet, use: Use, now: float, beside: Collection[str] = ()
) -> list[str]:
    """Return the hosts that may take a function, best first. A guess: the agent asked decides.

    In order: those that have an instance of it other than `beside`, for it may serve and no other be needed; those it
    is pinned on, those that hold its weights, room without eviction, the fewest evictions, those that may have room
    later, and the name. Hosts it can never run on, and cordoned ones, are left out.
    """
    ranked = []
    rev = revision(function)
    for host in fleet.hosts.values():
        if host.name in fleet.cordoned:
            continue
        has_one = any(i.revision == rev and i.id not in beside for i in host.of(function.id))
        guess = place(need, host, use, now, cordoned=host.name in fleet.cordoned)
        if isinstance(guess, NoRoom) and guess.when is When.NEVER and not has_one:
            continue
        pinned = host.name in function.pinned_on
        evictions = len(guess.evict) if isinstance(guess, Placement) else 1_000_000
        ranked.append((not has_one, not pinned, function.id not in host.weights, evictions, host.name))
    return [name for *_, name in sorted(ranked)]


def considered(need: Need, function: Function, fleet: Fleet, use: Use, now: float) -> list[dict[str, object]]:
    """Return what every host was good for, best first: how many would have to leave there, or why it cannot."""
    order = hosts_to_ask(need, function, fleet, use, now)
    asked = [_considered(need, fleet.hosts[name], fleet, use, now) for name in order]
    never = [_considered(need, h, fleet, use, now) for name, h in sorted(fleet.hosts.items()) if name not in order]
    return asked + never


def _considered(need: Need, host: HostRecord, fleet: Fleet, use: Use, now: float) -> dict[str, object]:
    guess = place(need, host, use, now, cordoned=host.name in fleet.cordoned)
    if isinstance(guess, NoRoom):
        return {"host": host.name, "why_not": guess.reason}
    return {"host": host.name, "evict": list(guess.evict), "devices": list(guess.devices)}


def why_nowhere(need: Need, fleet: Fleet, use: Use, now: float) -> str:
    """Say for every host why it cannot take a function."""
    if not fleet.hosts:
        silent = f"; {', '.join(sorted(fleet.silent))} used to report, and does not now" if fleet.silent else ""
        return f"no host is alive{silent}"
    said = (_why(need, h, fleet, use, now) for h in sorted(fleet.hosts.values(), key=lambda h: h.name))
    return "; ".join(said)


def _why(need: Need, host: HostRecord, fleet: Fleet, use: Use, now: float) -> str:
    guess = place(need, host, use, now, cordoned=host.name in fleet.cordoned)
    return f"{host.name}: {guess.reason if isinstance(guess, NoRoom) else 'has room'}"
