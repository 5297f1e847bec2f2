"""Which functions need one more instance. Pure; called by the router that holds the sweep lease.

One at a time: while an instance is on its way up, no other is requested. An instance of a silent host counts: it serves
as long as it answers. Agents scale in: they reap idle instances down to the minimum.
"""

from collections.abc import Iterable

from msgspec import Struct

from cortex.functions.lifecycle import COMING
from cortex.functions.spec import Function
from cortex.platform.record import Fleet, use

PATIENCE_S = 3.0
"""How long a function must exceed its target concurrency: a short burst ends before another instance is ready."""


class Want(Struct, frozen=True):
    """One more instance. `promised`: it is part of the minimum, and others may be evicted for it."""

    function: str
    promised: bool


class Scaling:
    """Tracks since when each function exceeds its target concurrency."""

    def __init__(self) -> None:
        self._over_since: dict[str, float] = {}

    def wanted(self, functions: Iterable[Function], fleet: Fleet, now: float) -> list[Want]:
        """Return what to start, in the order of the catalogue:

        (1) nothing while one is on its way up;
        (2) instances that the minimum lacks;
        (3) nothing more at the maximum, or for a function that is cold: requests start it;
        (4) one more when requests in flight per instance have stayed over the target.
        """
        busy = use(fleet).in_flight
        over: dict[str, float] = {}
        wants = []
        for function in functions:
            instances = [i for h in fleet.records() for i in h.of(function.id)]
            if any(i.state in COMING for i in instances):  # (1)
                continue
            if len(instances) < function.min:  # (2)
                wants.append(Want(function.id, promised=True))
                continue
            if not instances or len(instances) >= function.max:  # (3)
                continue
            if sum(busy.get(i.id, 0) for i in instances) > function.target_concurrency * len(instances):  # (4)
                since = over[function.id] = self._over_since.get(function.id, now)
                if now - since >= PATIENCE_S:
                    wants.append(Want(function.id, promised=False))
        self._over_since = over
        return wants
