"""Fleet snapshots for tests of the overview and the status page."""

from typing import Any

from cortex.functions.catalogue import Catalogue
from cortex.functions.spec import Function, revision
from cortex.platform.fleet import Fleet
from cortex.platform.record import HostRecord, RouterReport
from cortex.router.overview.snapshot import FleetSnapshot

NOW = 10_000.0


def a_snapshot(
    *functions: Function,
    hosts: tuple[HostRecord, ...] = (),
    in_flight: dict[str, int] | None = None,
    waiting: dict[str, int] | None = None,
    used: dict[str, float] | None = None,
    aliases: dict[str, str] | None = None,
    cordoned: tuple[str, ...] = (),
    **rest: Any,
) -> FleetSnapshot:
    """Return the snapshot of a router with these functions and hosts, whose records are fresh."""
    report = RouterReport(id="router-1", in_flight=in_flight or {}, waiting=waiting or {})
    fleet = Fleet(
        hosts={h.name: h for h in hosts},
        routers={"router-1": report},
        used=used or {},
        cordoned=frozenset(cordoned),
        at=NOW,
    )
    return FleetSnapshot(
        catalogue=Catalogue({f.id: f for f in functions}, aliases or {}),
        revisions={f.id: revision(f) for f in functions},
        fleet=fleet,
        now=NOW,
        **rest,
    )
