"""The health report of a router worker."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from cortex.functions.catalogue import Catalogue
from cortex.platform.faults import Fault
from cortex.platform.record import Fleet, SilentHost
from cortex.router.api_types import BackgroundFault, HostSilence, NodeCount
from cortex.router.health import MOST_NAMED, health_report
from cortex.router.model_listing import listing
from cortex.router.runtime import Runtime
from tests.support.factories import a_function, a_host, an_instance

NOW = 1000.0
HOST = a_host()
SILENT = SilentHost(record=replace(a_host(an_instance()), name="z"), since=NOW - 12)
FAULT = Fault("sweep", "KeyError", 2, NOW - 3)


def a_runtime(fleet: Fleet, *, away: bool = False, problem: str = "", fault: Fault | None = None) -> Runtime:
    view = SimpleNamespace(fleet=fleet, away=away)
    double = SimpleNamespace(
        view=view,
        live_catalogue=SimpleNamespace(problem=problem),
        faults=SimpleNamespace(recent=lambda: (fault,) if fault else ()),
        registry=SimpleNamespace(foreign=""),
    )
    return cast(Runtime, double)


def alive(**rest: Any) -> Fleet:
    return Fleet(hosts={HOST.name: HOST}, at=NOW - 1, **rest)


@pytest.mark.parametrize(
    ("runtime", "status"),
    [
        (a_runtime(alive()), "ok"),
        (a_runtime(Fleet()), "degraded"),
        (a_runtime(alive(), away=True), "degraded"),
        (a_runtime(alive(), problem="models.toml is gone"), "degraded"),
        (a_runtime(alive(silent={"z": SILENT})), "degraded"),
        (a_runtime(alive(silent={"z": SILENT}, cordoned=frozenset("z"))), "ok"),
        (a_runtime(alive(), fault=FAULT), "degraded"),
    ],
)
def test_any_problem_makes_a_router_degraded(runtime: Runtime, status: str) -> None:
    assert health_report(runtime, NOW).status == status


def test_a_silent_host_is_listed_with_its_silence_and_serving_instances() -> None:
    answer = health_report(a_runtime(alive(silent={"z": SILENT})), NOW)

    assert answer.silent == {"z": HostSilence(silent_s=12, serving=1)}
    assert answer.nodes == NodeCount(healthy=1, total=2)
    assert answer.record_read_s_ago == 1


def test_the_list_of_silent_hosts_is_bounded_and_the_latest_stay() -> None:
    many = {f"h{n}": replace(SILENT, since=float(n)) for n in range(MOST_NAMED + 5)}

    listed = health_report(a_runtime(alive(silent=many)), NOW).silent

    assert (len(listed), "h0" in listed, f"h{MOST_NAMED + 4}" in listed) == (MOST_NAMED, False, True)


def test_a_failed_background_task_is_listed_with_its_age() -> None:
    answer = health_report(a_runtime(alive(), fault=FAULT), NOW)

    assert answer.background == (BackgroundFault(work="sweep", error="KeyError", count=2, failed_s_ago=3),)


def test_an_instance_of_a_silent_host_is_listed_as_loaded() -> None:
    function = a_function()

    (entry,) = listing(Catalogue({function.id: function}), alive(silent={"z": SILENT}), 0)

    assert (entry["loaded"], entry["state"]) == (True, "ready")
    assert entry["locations"] == [{"node": "z", "status": "loaded", "vram_estimate_mb": 1000}]
    assert entry["feasible_on"] == [HOST.name]
