"""Which functions want one more instance. Pure; asked by the router that holds the sweep lease.

One at a time: as long as an instance is on its way, nobody asks for the next. An instance of a silent host counts: it
serves as long as it answers. Scaling in is the agents' business:
an instance that idles is reaped like any other, down to the minimum.
"""

from collections.abc import Iterable

from msgspec import Struct

from cortex.functions.lifecycle import COMING
from cortex.functions.spec import Function
from cortex.platform.record import Fleet, use

PATIENCE_S = 3.0
"""How long a function must stay over its target concurrency: a burst that is over before an instance could be
ready is not worth one."""


class Want(Struct, frozen=True):
    """One more instance. `promised`: it is part of the minimum, and others may be evicted for it."""

    function: str
    promised: bool


class Scaling:
    """Remembers since when each function has had more to do than its instances should."""

    def __init__(self) -> None:
        self._over_since: dict[str, float] = {}

    def wanted(self, functions: Iterable[Function], fleet: Fleet, now: float) -> list[Want]:
        """Return what to start, in the order of the catalogue:

        (1) nothing while one is on its way;
        (2) what is missing of the minimum;
        (3) nothing more at the maximum, or for a function that is cold: requests wake it;
        (4) one more when requests in flight per instance have stayed over the target.
        """
        busy = use(fleet).in_flight
        over: dict[str, float] = {}
        wanted = []
        for function in functions:
            there = [i for h in fleet.records() for i in h.of(function.id)]
            if any(i.state in COMING for i in there):  # (1)
                continue
            if len(there) < function.min:  # (2)
                wanted.append(Want(function.id, promised=True))
                continue
            if not there or len(there) >= function.max:  # (3)
                continue
            if sum(busy.get(i.id, 0) for i in there) > function.target_concurrency * len(there):  # (4)
                since = over[function.id] = self._over_since.get(function.id, now)
                if now - since >= PATIENCE_S:
                    wanted.append(Want(function.id, promised=False))
        self._over_since = over
        return wanted
