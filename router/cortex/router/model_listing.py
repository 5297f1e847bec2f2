"""`/v1/models`: every function and alias, in catalogue order, with its locations. Pure.

An instance of a silent host counts like any other: the router probes it every few seconds and drops it when it stops
answering.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

from msgspec.structs import replace

from cortex.functions.capabilities import ModelProfile
from cortex.functions.catalogue import Catalogue
from cortex.functions.lifecycle import State
from cortex.functions.memo import Memo
from cortex.functions.spec import Function
from cortex.platform.fleet import Fleet
from cortex.platform.record import Failure, HostRecord, Instance
from cortex.platform.scheduling.placement import Need, misfit, need
from cortex.router.model_description import abilities
from cortex.router.model_traits import known_models

OWNER = "cortex"
MOST_HOSTS = 100
"""Hosts in `feasible_on`: with a thousand of them, ten thousand functions would list ten million names."""
_BEST_FIRST = (
    State.READY, State.STARTING, State.PLACING, State.FETCHING, State.DRAINING, State.PARKING,
    State.SLEEPING, State.FROZEN, State.STOPPING, State.RECLAIMING, State.OTHER,
)  # fmt: skip


class Placed:
    """The fleet by function: computed once for a whole list, or for one function, `only`."""

    def __init__(self, fleet: Fleet, only: str = "") -> None:
        self._fleet = fleet
        self._by_name: list[HostRecord] = []
        self._instances: dict[str, list[tuple[str, Instance]]] = defaultdict(list)
        self._failures: dict[str, list[Failure]] = defaultdict(list)
        self._feasible: dict[Need, list[str]] = {}
        for host in fleet.records():
            for instance in host.instances:
                if not only or instance.function == only:
                    self._instances[instance.function].append((host.name, instance))
        for host in fleet.hosts.values():
            for failure in host.failures:
                if not only or failure.function == only:
                    self._failures[failure.function].append(failure)

    def instances(self, function: str) -> list[tuple[str, Instance]]:
        """Return a function's instances with their hosts, by host and id."""
        placed = self._instances.get(function)
        return sorted(placed, key=lambda p: (p[0], p[1].id)) if placed else []

    def state(self, function: str) -> str:
        """Return the state of a function's most advanced instance, else `failing` or `cold`."""
        failures, placed = self._failures.get(function), self._instances.get(function)
        failing = failures is not None and any(f.retry_at > self._fleet.at for f in failures)
        return furthest({i.state for _, i in placed} if placed else (), failing=failing)

    def feasible_on(self, function: Function) -> list[str]:
        """Return the first `MOST_HOSTS` hosts by name on which a function can run. Functions with the same need share
        the list."""
        requirement = _requirement(function)
        hosts = self._feasible.get(requirement)
        if hosts is None:
            self._by_name = self._by_name or sorted(self._fleet.hosts.values(), key=lambda h: h.name)
            fitting = (h.name for h in self._by_name if misfit(requirement, h) is None)
            hosts = self._feasible[requirement] = list(islice(fitting, MOST_HOSTS))
        return hosts


_requirement = Memo(lambda function: replace(need(function, None), function="", priority=0))
_unprofiled = Memo(lambda function: abilities(function, None, ()))
"""What is known of a function from its entry alone."""


def listing(catalogue: Catalogue, fleet: Fleet, created: int) -> Iterator[dict[str, Any]]:
    """Yield one entry per function and alias; an alias has its function's entry and `alias_of`."""
    profiles, placed = known_models({h.name: h for h in fleet.records()}), Placed(fleet)

    def of(function: Function) -> dict[str, Any]:
        return entry(function, placed, created, profiles.get(function.base_id))

    yield from map(of, catalogue.functions.values())
    for alias, target in catalogue.aliases.items():
        yield {**of(catalogue.functions[target]), "id": alias, "alias_of": target}


def entry(function: Function, placed: Placed, created: int, profile: ModelProfile | None) -> dict[str, Any]:
    """Return a function's OpenAI model entry, with cortex's fields on state and location."""
    instances = placed.instances(function.base_id)
    ready = [i for _, i in instances if i.state is State.READY]
    known = abilities(function, profile, ready) if profile is not None or ready else _unprofiled(function)
    return {
        "id": function.id,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        "loaded": bool(ready),
        "state": placed.state(function.base_id),
        "feasible_on": placed.feasible_on(function),
        "locations": [
            {"node": host, "status": _status(i), "vram_estimate_mb": (i.memory_mb or None)} for host, i in instances
        ],
        "alias_of": None,
        **known,
    }


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
