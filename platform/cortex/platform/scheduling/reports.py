"""What the routers report, and what is still believed of those that fell silent. Pure.

A router that ends takes its report away. One that only stops reporting may be cut off from Redis, and go on serving:
what it last had in flight counts as in flight until the workers themselves say otherwise.
"""

from msgspec import Struct
from msgspec.structs import replace

from cortex.platform.record import Fleet, Instance, RouterReport, Use, use

SILENT_S = 5.0
"""A report that was this old when it vanished has expired: a router that ends takes away one of the last second."""
REMEMBERED_S = 3600.0
"""How long a silent router is believed at most."""
MOST_SILENT = 200
"""Silent routers remembered; the one that fell silent first is forgotten first."""


class _Heard(Struct, frozen=True):
    """A report, and since when it has been the same, by this host's clock."""

    report: RouterReport
    since: float


class Reports:
    """The routers' reports as one host reads them."""

    def __init__(self) -> None:
        self._heard: dict[str, _Heard] = {}
        self._silent: dict[str, _Heard] = {}
        self.fleet: Fleet | None = None
        """The last reading of the record; None while it cannot be trusted."""

    def take(self, fleet: Fleet | None, now: float, *, instances: tuple[Instance, ...]) -> None:
        """Take a reading of the record; None when there is none, or silence would say nothing."""
        self.fleet = fleet
        if fleet is None:
            return
        for id, before in self._heard.items():
            if id not in fleet.routers and now - before.since >= SILENT_S and before.report.in_flight:
                self._silent[id] = _Heard(before.report, now)
        self._heard = {id: self._as_heard(report, now) for id, report in fleet.routers.items()}
        here = {i.id for i in instances}
        for id, silent in list(self._silent.items()):
            left = {i: n for i, n in silent.report.in_flight.items() if i in here}
            if id in fleet.routers or not left or now - silent.since > REMEMBERED_S:
                del self._silent[id]
            else:
                self._silent[id] = replace(silent, report=replace(silent.report, in_flight=left))
        while len(self._silent) > MOST_SILENT:
            del self._silent[next(iter(self._silent))]

    def use(self) -> Use:
        """Return what instances are doing, silent routers included. Unknown while the record cannot be trusted."""
        if self.fleet is None:
            return Use(known=False)
        silent = {id: replace(heard.report, waiting={}) for id, heard in self._silent.items()}
        return use(replace(self.fleet, routers={**silent, **self.fleet.routers}))

    def any_silent(self, instance: str) -> bool:
        """Whether a silent router had requests in flight on an instance."""
        return any(instance in heard.report.in_flight for heard in self._silent.values())

    def is_quiet(self, instance: str) -> None:
        """The worker itself has nothing to do: silent routers are not believed about it any more."""
        for id, heard in list(self._silent.items()):
            left = {i: n for i, n in heard.report.in_flight.items() if i != instance}
            self._silent[id] = replace(heard, report=replace(heard.report, in_flight=left))

    def _as_heard(self, report: RouterReport, now: float) -> _Heard:
        before = self._heard.get(report.id)
        return before if before is not None and before.report == report else _Heard(report, now)
