"""The routers' reports, with the last reports of routers that fell silent. Pure.

A router that ends removes its report. One that only stops reporting may be cut off from Redis and still serve: its last
requests in flight count as in flight until a look at the worker shows that it is idle.
"""

from msgspec import Struct
from msgspec.structs import replace

from cortex.platform.fleet import Fleet, use
from cortex.platform.record import Instance, RouterReport, Use

SILENT_S = 5.0
"""A report this old when it vanished has expired: a router that ends removes one of the last second."""
REMEMBERED_S = 3600.0
"""How long the report of a silent router counts at most."""
MOST_SILENT = 200
"""Silent routers in the table; the one that fell silent first is removed first."""


class _Snapshot(Struct, frozen=True):
    """A report, and since when it is unchanged, by this host's clock."""

    report: RouterReport
    since: float


class Reports(Struct):
    """The routers' reports as one host reads them."""

    current: dict[str, _Snapshot] = {}
    silent: dict[str, _Snapshot] = {}
    fleet: Fleet | None = None
    """The last reading of the record; None while it cannot be trusted."""

    def take(self, fleet: Fleet | None, now: float, *, instances: tuple[Instance, ...]) -> None:
        """Take a reading of the record; None when it cannot be read or trusted."""
        self.fleet = fleet
        if fleet is None:
            return
        for id, before in self.current.items():
            if id not in fleet.routers and now - before.since >= SILENT_S and before.report.in_flight:
                self.silent[id] = _Snapshot(before.report, now)
        self.current = {id: self._snapshot(report, now) for id, report in fleet.routers.items()}
        here = {i.id for i in instances}
        for id, silent in list(self.silent.items()):
            left = {i: n for i, n in silent.report.in_flight.items() if i in here}
            if id in fleet.routers or not left or now - silent.since > REMEMBERED_S:
                del self.silent[id]
            else:
                self.silent[id] = replace(silent, report=replace(silent.report, in_flight=left))
        while len(self.silent) > MOST_SILENT:
            del self.silent[next(iter(self.silent))]

    def use(self) -> Use:
        """Return the usage of instances, silent routers included. Unknown while the record cannot be trusted."""
        if self.fleet is None:
            return Use(known=False)
        silent = {id: replace(snapshot.report, waiting={}) for id, snapshot in self.silent.items()}
        return use(replace(self.fleet, routers={**silent, **self.fleet.routers}))

    def any_silent(self, instance: str) -> bool:
        """Whether a silent router had requests in flight on an instance."""
        return any(instance in snapshot.report.in_flight for snapshot in self.silent.values())

    def forget_silent(self, instance: str) -> None:
        """Drop what silent routers had in flight on an instance: a look showed that it is idle."""
        for id, snapshot in list(self.silent.items()):
            left = {i: n for i, n in snapshot.report.in_flight.items() if i != instance}
            self.silent[id] = replace(snapshot, report=replace(snapshot.report, in_flight=left))

    def _snapshot(self, report: RouterReport, now: float) -> _Snapshot:
        before = self.current.get(report.id)
        return before if before is not None and before.report == report else _Snapshot(report, now)
