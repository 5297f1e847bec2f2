"""`/v1/models`: functions and aliases with their locations. Pure.

An instance of a silent host counts like any other: the router probes it every few seconds and drops it when it stops
answering.
"""

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from cortex.functions.capabilities import ModelProfile
from cortex.functions.lifecycle import State
from cortex.functions.memo import Memo, NamedMemo
from cortex.functions.spec import Function
from cortex.platform.fleet import Fleet
from cortex.platform.record import HostRecord, Instance
from cortex.platform.scheduling.placement import Need, capacity, misfit, need
from cortex.router.model_description import abilities
from cortex.router.model_traits import known_models

OWNER = "cortex"
MOST_HOSTS = 100
"""Hosts in `feasible_on`: with a thousand of them, ten thousand functions would list ten million names."""
_HOSTS = b"\0"
"""Stands for the hosts in a held entry. JSON has no such byte."""
_BEST_FIRST = (
    State.READY, State.STARTING, State.PLACING, State.FETCHING, State.DRAINING, State.PARKING,
    State.SLEEPING, State.FROZEN, State.STOPPING, State.RECLAIMING, State.OTHER,
)  # fmt: skip


class Feasible:
    """On which hosts functions can run, as JSON: for each need once, and from one host of each capacity."""

    def __init__(self, hosts: Iterable[HostRecord]) -> None:
        self._hosts = _by_name(hosts)
        self._capacity = {host.name: capacity(host) for host in self._hosts}
        self._examples = {self._capacity[host.name]: host for host in self._hosts}
        self._by_need: dict[Need, bytes] = {}
        self._by_capacities: dict[frozenset[Hashable], bytes] = {}

    def on(self, need: Need) -> bytes:
        """Return the first `MOST_HOSTS` hosts by name that fit."""
        names = self._by_need.get(need)
        if names is None:
            names = self._by_need[need] = _fitting(need, self._hosts) if need.pinned_on else self._anywhere(need)
        return names

    def _anywhere(self, need: Need) -> bytes:
        fitting = frozenset(of for of, host in self._examples.items() if misfit(need, host) is None)
        names = self._by_capacities.get(fitting)
        if names is None:
            names = self._by_capacities[fitting] = _json(
                h.name for h in self._hosts if self._capacity[h.name] in fitting
            )
        return names


def _by_name(hosts: Iterable[HostRecord]) -> list[HostRecord]:
    return sorted(hosts, key=lambda host: host.name)


def _fitting(need: Need, hosts: Iterable[HostRecord]) -> bytes:
    return _json(host.name for host in hosts if misfit(need, host) is None)


def _json(names: Iterable[str]) -> bytes:
    return msgspec.json.encode(list(islice(names, MOST_HOSTS)))


class ModelListing:
    """The entries of functions and aliases as JSON; `created` is the Unix time that every model claims.

    An entry is encoded when something that it shows has changed, and held without `feasible_on`, which many functions
    share.
    """

    def __init__(self, created: int) -> None:
        self._created = created
        self._parts = NamedMemo(self._encode)

    def every(self, functions: Iterable[tuple[str, Function]], fleet: Fleet) -> Iterator[tuple[bytes, ...]]:
        """Yield the entry of each function under its id or an alias, in pieces."""
        profiles, feasible = known_models({h.name: h for h in fleet.records()}), Feasible(fleet.hosts.values())
        placed, failing = _instances(fleet), _failing(fleet)
        for name, function in functions:
            base = function.variant_of or function.id
            before, need, after = self._parts(name, function, placed.get(base, ()), base in failing, profiles.get(base))
            yield before, feasible.on(need), after

    def one(self, name: str, function: Function, fleet: Fleet, profile: ModelProfile | None) -> bytes:
        """Return the entry of a function under its id or an alias."""
        base = function.base_id
        placed = _instances(fleet, only=base).get(base, ())
        before, need, after = self._parts(name, function, placed, base in _failing(fleet), profile)
        return before + _fitting(need, _by_name(fleet.hosts.values())) + after

    def _encode(
        self,
        name: str,
        function: Function,
        placed: Sequence[tuple[str, Instance]],
        failing: bool,
        profile: ModelProfile | None,
    ) -> tuple[bytes, Need, bytes]:
        """Return the JSON of an OpenAI model entry with cortex's fields on state and location, before and after its
        hosts, and what these have to fit. An alias has its function's entry and `alias_of`."""
        ready = [i for _, i in placed if i.state is State.READY]
        described = {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": OWNER,
            "loaded": bool(ready),
            "state": furthest({i.state for _, i in placed}, failing=failing),
            "feasible_on": Raw(_HOSTS),
            "locations": [
                {"node": host, "status": _status(i), "vram_estimate_mb": (i.memory_mb or None)} for host, i in placed
            ],
            "alias_of": None if name == function.id else function.id,
            **abilities(function, profile, ready),
        }
        before, after = msgspec.json.encode(described).split(_HOSTS)
        return before, _requirement(function), after


_requirement = Memo(lambda function: replace(need(function, None), function="", priority=0))


def _instances(fleet: Fleet, only: str = "") -> Mapping[str, Sequence[tuple[str, Instance]]]:
    """Return each function's instances with their hosts, by host and id; of one function if `only` names it."""
    placed: dict[str, list[tuple[str, Instance]]] = defaultdict(list)
    for host in fleet.records():
        for instance in host.instances:
            if not only or instance.function == only:
                placed[instance.function].append((host.name, instance))
    for several in placed.values():
        if len(several) > 1:
            several.sort(key=lambda p: (p[0], p[1].id))
    return placed


def _failing(fleet: Fleet) -> Collection[str]:
    """Return the functions that are not started again yet because they failed."""
    return {f.function for host in fleet.hosts.values() for f in host.failures if f.retry_at > fleet.at}


def furthest(states: Collection[State], *, failing: bool) -> str:
    """Return the most advanced state, else `failing` or `cold`."""
    for candidate in _BEST_FIRST if states else ():
        if candidate in states:
            return candidate
    return "failing" if failing else "cold"


def _status(instance: Instance) -> str:
    """Return the state in the older gateway's terms where it has one: `loaded` or `loading`."""
    if instance.state is State.READY:
        return "loaded"
    if instance.state in (State.FETCHING, State.PLACING, State.STARTING):
        return "loading"
    return str(instance.state)
