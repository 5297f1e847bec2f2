"""What a router worker says of itself."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from cortex.functions.catalogue import Catalogue
from cortex.platform.faults import Fault
from cortex.platform.record import Fleet, SilentHost
from cortex.router.health import MOST_NAMED, standing
from cortex.router.model_listing import listing
from cortex.router.runtime import Runtime
from tests.support.factories import a_function, a_host, an_instance

NOW = 1000.0
HOST = a_host()
SILENT = SilentHost(record=replace(a_host(an_instance()), name="z"), since=NOW - 12)
FAULT = Fault("sweep", "KeyError", 2, NOW - 3)


def a_runtime(fleet: Fleet, *, away: bool = False, problem: str = "", fault: Fault | None = None) -> Runtime:
    view = SimpleNamespace(fleet=fleet, away=away)
    directory, faults = SimpleNamespace(problem=problem), SimpleNamespace(recent=lambda: (fault,) if fault else ())
    return cast(
        Runtime, SimpleNamespace(view=view, directory=directory, faults=faults, registry=SimpleNamespace(foreign=""))
    )


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
def test_a_router_is_well_or_degraded(runtime: Runtime, status: str) -> None:
    assert standing(runtime, NOW)["status"] == status


def test_a_silent_host_is_named_with_its_age_and_what_serves_there() -> None:
    answer = standing(a_runtime(alive(silent={"z": SILENT})), NOW)

    assert answer["silent"] == {"z": {"silent_s": 12, "serving": 1}}
    assert answer["nodes"] == {"healthy": 1, "total": 2}
    assert answer["record_read_s_ago"] == 1


def test_no_more_silent_hosts_are_named_than_the_bound() -> None:
    many = {f"h{n}": replace(SILENT, since=float(n)) for n in range(MOST_NAMED + 5)}

    named = standing(a_runtime(alive(silent=many)), NOW)["silent"]

    assert (len(named), "h0" in named, f"h{MOST_NAMED + 4}" in named) == (MOST_NAMED, False, True)


def test_background_work_that_failed_is_named_with_its_age() -> None:
    answer = standing(a_runtime(alive(), fault=FAULT), NOW)

    assert answer["background"] == [{"work": "sweep", "error": "KeyError", "count": 2, "failed_s_ago": 3}]


def test_an_instance_of_a_silent_host_is_listed_as_loaded() -> None:
    function = a_function()

    (entry,) = listing(Catalogue({function.id: function}), alive(silent={"z": SILENT}), 0)

    assert (entry["loaded"], entry["state"]) == (True, "ready")
    assert entry["locations"] == [{"node": "z", "status": "loaded", "vram_estimate_mb": 1000}]
    assert entry["feasible_on"] == [HOST.name]
