"""Which instance serves a request, and which hosts to try for a new one. Pure."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import count, islice
from math import ceil
from operator import attrgetter
from types import MappingProxyType

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function, revision
from cortex.platform.fleet import Fleet
from cortex.platform.record import HostRecord, Instance, Use
from cortex.platform.scheduling.placement import Need, NoRoom, Placement, When, place
from cortex.platform.scheduling.placement import need as need_of
from cortex.platform.scheduling.saved_state import LocalWeights

SLACK = 1.25
"""Factor by which an instance may exceed its share of all requests, to keep sessions together."""

_RETURNS: Mapping[State, int] = MappingProxyType({State.SLEEPING: 0, State.FROZEN: 1, State.PARKING: 2})
"""Order of hosts by the state of an instance that can return."""
_NO_RETURN = 3

MOST_LISTED = 12
"""Hosts in the inputs of a decision."""

SESSION_HEADERS = (
    b"x-claude-code-session-id", b"x-session-affinity", b"x-session-id", b"session-id", b"thread-id",
)  # fmt: skip
"""Headers with a client's session id, most specific first."""
_SESSION_HEADERS = frozenset(SESSION_HEADERS)


def affinity(headers: Mapping[bytes, bytes], body_session: str | None) -> str | None:
    """Return the session of a request: from its headers, else from its body."""
    if _SESSION_HEADERS.isdisjoint(headers):
        return body_session
    for name in SESSION_HEADERS:
        if value := headers.get(name):
            return value.decode("latin-1")
    return body_session


def choose(
    ready: Sequence[Instance], load: Callable[[str], int], session: str | None = None, enough: int = 1
) -> Instance | None:
    """Return the instance to serve a request:

    (1) there is no choice;
    (2) the session's instance, which has its prompt in the cache, unless it is busier than its share or has `enough`
        in flight; then the next in the session's order, which is the same in every router;
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
    """Rendezvous hashing: when an instance is added or removed, only its own sessions move."""
    return blake2b(f"{session}\0{instance}".encode(), digest_size=8).digest()


class HostOrder:
    """Hosts, best first. Each is estimated only when the order is read as far as that."""

    def __init__(
        self, hosts: Iterator[str], estimates: Mapping[str, Placement | NoRoom] = MappingProxyType({})
    ) -> None:
        """`estimates` gets the estimate of each host as it is made."""
        self.estimates = estimates
        self._known: list[str] = []
        self._rest = hosts

    def __iter__(self) -> Iterator[str]:
        for number in count():
            if number == len(self._known):
                following = next(self._rest, None)
                if following is None:
                    return
                self._known.append(following)
            yield self._known[number]

    def first(self, number: int) -> list[str]:
        """Return the first hosts, at most so many."""
        return list(islice(self, number))


def hosts_to_ask(
    need: Need,
    function: Function,
    fleet: Fleet,
    use: Use,
    now: float,
    exclude: Collection[str] = (),
    present: Mapping[str, Sequence[Instance]] | None = None,
) -> HostOrder:
    """Return the hosts that may run a function, best first. An estimate: the agent decides.

    In order: hosts with an instance of it that is not in `exclude`, which may already serve, or leaves only to come
    back; hosts with one that is parked, asleep before frozen, or that is being parked; hosts it is pinned on, hosts
    with its weights, room without eviction, the fewest evictions, possible room later, and the name. Hosts on which it
    can never run, and cordoned ones, are left out. `present` has the function's instances by host, where a caller knows
    them.
    """
    estimates: dict[str, Placement | NoRoom] = {}
    return HostOrder(_in_order(need, function, fleet, use, now, exclude, present, estimates), estimates)


def _in_order(
    need: Need,
    function: Function,
    fleet: Fleet,
    use: Use,
    now: float,
    exclude: Collection[str],
    present: Mapping[str, Sequence[Instance]] | None,
    estimates: dict[str, Placement | NoRoom],
) -> Iterator[str]:
    groups: dict[tuple[bool, int, bool, bool], list[HostRecord]] = {}
    rev, cordoned, pinned_on = revision(function), fleet.cordoned, function.pinned_on
    others: list[HostRecord] = []  # nearly all of a thousand hosts: they have nothing of it
    for name, host in fleet.hosts.items():
        if name in cordoned:
            continue
        there = host.instances if present is None else present.get(name)
        if not there and function.id not in host.weights and name not in pinned_on:
            others.append(host)
            continue
        has_one, returns = False, _NO_RETURN
        same = there and [i for i in there if (i.function, i.revision) == (function.id, rev) and i.id not in exclude]
        if same:
            has_one = any(i.state is State.READY or i.is_coming or i.comes_back for i in same)
            returns = min(_RETURNS.get(i.state, _NO_RETURN) for i in same)
        rank = (not has_one, returns, name not in pinned_on, function.id not in host.weights)
        groups.setdefault(rank, []).append(host)
    groups.setdefault((True, _NO_RETURN, True, True), []).extend(others)
    for rank in sorted(groups):
        has_none = rank[:2] == (True, _NO_RETURN)
        evicting: list[tuple[int, str]] = []
        for host in sorted(groups[rank], key=attrgetter("name")):
            estimate = estimates[host.name] = place(need, host, use, now)
            if isinstance(estimate, NoRoom) and estimate.when is When.NEVER and has_none:
                continue
            evictions = len(estimate.evict) if isinstance(estimate, Placement) else 1_000_000
            if evictions:
                evicting.append((evictions, host.name))
            else:
                yield host.name
        yield from (name for _, name in sorted(evicting))


def candidates(need: Need, order: HostOrder, fleet: Fleet, use: Use, now: float) -> list[dict[str, object]]:
    """Return the estimates for the first hosts of an order, then for hosts that are not in it, `MOST_LISTED` in all:
    the evictions, or why the function does not fit."""
    first = order.first(MOST_LISTED)
    left = MOST_LISTED - len(first)
    never = sorted(fleet.hosts.keys() - set(first))[:left] if left else []  # the order ends before them
    return [
        _describe(
            name,
            order.estimates.get(name) or place(need, fleet.hosts[name], use, now, cordoned=name in fleet.cordoned),
        )
        for name in (*first, *never)
        if name in fleet.hosts
    ]


def _describe(host: str, estimate: Placement | NoRoom) -> dict[str, object]:
    if isinstance(estimate, NoRoom):
        return {"host": host, "why_not": estimate.reason}
    return {"host": host, "evict": list(estimate.evict), "devices": list(estimate.devices)}


def why_nowhere(need: Need, fleet: Fleet, use: Use, now: float) -> str:
    """Return for every host why it cannot run a function."""
    if not fleet.hosts:
        silent = f"; {', '.join(sorted(fleet.silent))} no longer reports" if fleet.silent else ""
        return f"no host is alive{silent}"
    reasons = (_why(need, h, fleet, use, now) for h in sorted(fleet.hosts.values(), key=lambda h: h.name))
    return "; ".join(reasons)


def _why(need: Need, host: HostRecord, fleet: Fleet, use: Use, now: float) -> str:
    estimate = place(need, host, use, now, cordoned=host.name in fleet.cordoned)
    return f"{host.name}: {estimate.reason if isinstance(estimate, NoRoom) else 'has room'}"


def blocked_by_foreign_memory(function: Function, fleet: Fleet, use: Use, now: float) -> str:
    """Return why a function without an instance cannot start, if processes outside cortex hold the memory on every host
    that could run it; "" otherwise. An estimate: the agent decides."""
    if not any(host.foreign for host in fleet.hosts.values()):
        return ""
    reasons = []
    for host in sorted(fleet.hosts.values(), key=lambda h: h.name):
        weights = LocalWeights("", host.weights[function.id]) if function.id in host.weights else None
        requirement = need_of(function, weights, devices=host.devices)
        estimate = place(requirement, host, use, now, cordoned=host.name in fleet.cordoned)
        if host.of(function.id) or not isinstance(estimate, NoRoom):
            return ""
        if estimate.foreign_mb:
            reasons.append(f"{host.name}: {estimate.reason}")
        elif estimate.when is When.LATER:
            return ""
    return "; ".join(reasons)
