"""Which functions need one more instance. Pure; called by the router that holds the sweep lease.

One of a function at a time: while an instance is on its way up, no other is requested. An instance of a silent host
counts: it serves as long as it answers. So does one that rehearses its first sleep: it serves again right after that.
Agents scale in: they reap idle instances down to the minimum.
"""

import enum
from collections import defaultdict
from collections.abc import Iterable

from msgspec import Struct

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function
from cortex.platform.fleet import Fleet, use, without_successors
from cortex.platform.record import Instance, Use
from cortex.platform.scheduling.placement import Placement, need, place
from cortex.platform.scheduling.saved_state import LocalWeights

PATIENCE_S = 3.0
"""How long a function must exceed its target concurrency: a short burst ends before another instance is ready."""


class Cause(enum.Enum):
    """Why one more instance is wanted."""

    MINIMUM = enum.auto()
    """Others may be evicted for it."""
    BASELINE = enum.auto()
    LOAD = enum.auto()


class Want(Struct, frozen=True):
    """One more instance."""

    function: str
    cause: Cause


class Scaling:
    """Tracks since when each function exceeds its target concurrency."""

    def __init__(self) -> None:
        self._over_since: dict[str, float] = {}

    def wanted(self, functions: Iterable[Function], fleet: Fleet, now: float) -> list[Want]:
        """Return what to start, in the order of the catalogue:

        (1) nothing while one is on its way up, other than to replace one that serves;
        (2) instances that the minimum lacks;
        (3) the instance of a baseline, in room that is free while no request waits for another function; one at a time;
        (4) nothing more at the maximum, or for a function that is cold: requests start it;
        (5) one more when requests in flight per instance have stayed over the target.
        """
        usage, placed = use(fleet), _instances(fleet)
        over: dict[str, float] = {}
        wants: list[Want] = []
        for function in functions:
            instances = placed.get(function.id, ())
            if any(i.is_coming for i in instances):  # (1)
                continue
            if len(instances) < function.min:  # (2)
                wants.append(Want(function.id, Cause.MINIMUM))
                continue
            if function.baseline and not instances:  # (3)
                is_first = all(w.cause is not Cause.BASELINE for w in wants)
                if is_first and not _awaits_another(function, usage) and _has_room(function, fleet, usage, now):
                    wants.append(Want(function.id, Cause.BASELINE))
                continue
            if not instances or len(instances) >= function.max:  # (4)
                continue
            in_flight = sum(usage.in_flight.get(i.id, 0) for i in instances)
            if in_flight > function.target_concurrency * len(instances):  # (5)
                since = over[function.id] = self._over_since.get(function.id, now)
                if now - since >= PATIENCE_S:
                    wants.append(Want(function.id, Cause.LOAD))
        self._over_since = over
        return wants


def _instances(fleet: Fleet) -> dict[str, list[Instance]]:
    """Return the instances of each function that serve it or will. One pass over the fleet: a catalogue has thousands
    of functions, most of them cold."""
    every: dict[str, list[Instance]] = defaultdict(list)
    for host in fleet.records():
        for instance in host.instances:
            every[instance.function].append(instance)
    return {
        function: [i for i in without_successors(here) if i.state is State.READY or i.is_coming or i.comes_back]
        for function, here in every.items()
    }


def _awaits_another(function: Function, usage: Use) -> bool:
    """Whether requests wait for any other function."""
    return any(waiting for other, waiting in usage.waiting.items() if other != function.id)


def _has_room(function: Function, fleet: Fleet, usage: Use, now: float) -> bool:
    """Whether a host has room for a function that nothing holds. An estimate: the agent decides."""
    for host in fleet.hosts.values():
        weights = LocalWeights("", host.weights[function.id]) if function.id in host.weights else None
        requirement = need(function, weights, devices=host.devices)
        placement = place(requirement, host, usage, now, cordoned=host.name in fleet.cordoned)
        if isinstance(placement, Placement) and not placement.waits_for:
            return True
    return False
