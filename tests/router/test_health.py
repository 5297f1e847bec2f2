"""The health report of a router worker."""

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from msgspec.structs import replace

from cortex.platform.faults import Fault, Faults
from cortex.platform.fleet import Fleet, SilentHost
from cortex.platform.registry import Registry
from cortex.router.api_types import BackgroundFault, Health, HostSilence, NodeCount
from cortex.router.fleet_view import FleetView
from cortex.router.health import MOST_NAMED, health_report
from cortex.router.live_catalogue import LiveCatalogue
from cortex.router.model_listing import ModelListing
from tests.support.factories import a_function, a_host, an_instance

NOW = 1000.0
HOST = a_host()
SILENT = SilentHost(record=replace(a_host(an_instance()), name="z"), since=NOW - 12)
FAULT = Fault("sweep", "KeyError", 2, NOW - 3)


def report(fleet: Fleet, *, away: bool = False, problem: str = "", fault: Fault | None = None) -> Health:
    view = SimpleNamespace(fleet=fleet, away=away)
    faults = SimpleNamespace(recent=lambda: (fault,) if fault else ())
    catalogue, registry = SimpleNamespace(problem=problem), SimpleNamespace(foreign="")
    return health_report(
        cast(FleetView, view), cast(LiveCatalogue, catalogue), cast(Registry, registry), cast(Faults, faults), NOW
    )


def alive(**rest: Any) -> Fleet:
    return Fleet(hosts={HOST.name: HOST}, at=NOW - 1, **rest)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (report(alive()), "ok"),
        (report(Fleet()), "degraded"),
        (report(alive(), away=True), "degraded"),
        (report(alive(), problem="models.toml is gone"), "degraded"),
        (report(alive(silent={"z": SILENT})), "degraded"),
        (report(alive(silent={"z": SILENT}, cordoned=frozenset("z"))), "ok"),
        (report(alive(), fault=FAULT), "degraded"),
    ],
)
def test_any_problem_makes_a_router_degraded(answer: Health, status: str) -> None:
    assert answer.status == status


def test_a_silent_host_is_listed_with_its_silence_and_serving_instances() -> None:
    answer = report(alive(silent={"z": SILENT}))

    assert answer.silent == {"z": HostSilence(silent_s=12, serving=1)}
    assert answer.nodes == NodeCount(healthy=1, total=2)
    assert answer.record_read_s_ago == 1


def test_the_list_of_silent_hosts_is_bounded_and_the_latest_stay() -> None:
    many = {f"h{n}": replace(SILENT, since=float(n)) for n in range(MOST_NAMED + 5)}

    listed = report(alive(silent=many)).silent

    assert (len(listed), "h0" in listed, f"h{MOST_NAMED + 4}" in listed) == (MOST_NAMED, False, True)


def test_a_failed_background_task_is_listed_with_its_age() -> None:
    answer = report(alive(), fault=FAULT)

    assert answer.background == (BackgroundFault(work="sweep", error="KeyError", count=2, failed_s_ago=3),)


def test_an_instance_of_a_silent_host_is_listed_as_loaded() -> None:
    function = a_function()

    entry = msgspec.json.decode(ModelListing(0).one(function.id, function, alive(silent={"z": SILENT}), None))

    assert (entry["loaded"], entry["state"]) == (True, "ready")
    assert entry["locations"] == [{"node": "z", "status": "loaded", "vram_estimate_mb": 1000}]
    assert entry["feasible_on"] == [HOST.name]
