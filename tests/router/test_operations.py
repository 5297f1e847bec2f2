"""What operators do to functions and hosts."""

from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from cortex.functions.catalogue import Catalogue
from cortex.functions.lifecycle import State
from cortex.platform.agent_messages import Accepted
from cortex.platform.fleet import Fleet
from cortex.platform.record import HostRecord, Override
from cortex.platform.registry import Registry
from cortex.router.activation.agents import AgentUnavailable
from cortex.router.errors import BadRequest, NoCapacity
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue, Target
from cortex.router.operations import Operations
from tests.support.catalogues import fake
from tests.support.factories import a_host, an_instance


class Stage:
    """A record, agents and an activator that keep what they receive; `hosts` is the fleet."""

    def __init__(self, folder: Path, *hosts: HostRecord) -> None:
        (folder / "models.toml").write_text(fake("f", max=2))
        self.catalogue = LiveCatalogue(folder / "models.toml")
        self.fleet_now = Fleet(hosts={h.name: h for h in hosts})
        self.view = FleetView(cast(Registry, self), "router-1")
        double = cast(Any, self)
        self.operations = Operations(double, self.view, self.catalogue, double, double, double)
        self.away: set[str] = set()
        self.has_room = True
        self.cooled: list[str] = []
        self.sent: list[tuple[str, Catalogue]] = []
        self.moves: list[tuple[str, str]] = []

    async def fleet(self, now: float) -> Fleet:
        return replace(self.fleet_now, at=now)

    async def override(self, function: str, override: Override) -> None:
        self.fleet_now = replace(self.fleet_now, overrides={function: override})

    async def cordon(self, host: str, *, cordoned: bool) -> None:
        self.fleet_now = replace(self.fleet_now, cordoned=frozenset({host} if cordoned else ()))

    async def cool(self, host: HostRecord, function: str, *, at_once: bool, park: bool = False) -> list[str]:
        if host.name in self.away:
            raise AgentUnavailable("no answer")
        self.cooled.append(host.name)
        self._publish_draining(host)
        return [i.id for i in host.instances if i.function == function]

    async def send_catalogue(self, host: HostRecord, catalogue: Catalogue, digest: str) -> None:
        if host.name in self.away:
            raise AgentUnavailable("no answer")
        self.sent.append((host.name, catalogue))

    async def drain(self, host: HostRecord) -> list[str]:
        self._publish_draining(host)
        return [i.id for i in host.instances]

    def _publish_draining(self, host: HostRecord) -> None:
        changed = replace(host, instances=tuple(replace(i, state=State.DRAINING) for i in host.instances))
        self.fleet_now = replace(self.fleet_now, hosts={**self.fleet_now.hosts, host.name: changed})

    async def move(self, target: Target, source: str) -> Accepted | None:
        self.moves.append((target.function.id, source))
        if len(self.moves) == 1:
            return None  # another router has the claim
        if not self.has_room:
            raise NoCapacity("no room")
        other = replace(a_host(an_instance("new", function="f")), name="host-b")
        self.fleet_now = replace(self.fleet_now, hosts={**self.fleet_now.hosts, "host-b": other})
        await self.view.refresh()
        return Accepted("new", State.STARTING)


@pytest.mark.parametrize(("has_room", "moved"), [(True, ["f"]), (False, [])])
async def test_a_drained_host_is_cordoned_and_its_functions_move_where_there_is_room(
    tmp_path: Path, has_room: bool, moved: list[str]
) -> None:
    stage = Stage(tmp_path, a_host(an_instance("old", function="f")))
    stage.has_room = has_room

    result = await stage.operations.drain("host-a")

    assert result == (moved, ["old"])
    assert stage.view.fleet.cordoned == {"host-a"}
    assert stage.moves == [("f", "host-a")] * 2
    assert [i.state for i in stage.view.fleet.hosts["host-a"].instances] == [State.DRAINING]


async def test_a_drain_starts_nothing_elsewhere_for_a_function_that_has_no_ready_instance(tmp_path: Path) -> None:
    stage = Stage(tmp_path, a_host(an_instance("old", function="f", state=State.STARTING)))

    assert await stage.operations.drain("host-a") == ([], ["old"])
    assert stage.moves == []


async def test_a_function_is_cooled_on_its_hosts_and_those_that_do_not_answer_are_named(tmp_path: Path) -> None:
    here, silent = a_host(an_instance("one", function="f")), a_host(an_instance("two", function="f"))
    stage = Stage(tmp_path, here, replace(silent, name="host-b"), replace(a_host(), name="host-c"))
    stage.away = {"host-b"}
    await stage.view.refresh()

    result = await stage.operations.cool("f", at_once=False)

    assert result == (["one"], ["host-b"])
    assert stage.cooled == ["host-a"]
    assert [i.state for i in stage.view.fleet.hosts["host-a"].instances] == [State.DRAINING]


async def test_an_override_that_leaves_min_above_max_is_rejected_and_changes_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    function = stage.catalogue.resolve("f").function

    with pytest.raises(BadRequest, match="min 3 and max 2"):
        await stage.operations.override("f", min=3)

    assert stage.catalogue.resolve("f").function == function


async def test_a_pinned_function_is_pinned_at_its_hosts_before_the_command_ends(tmp_path: Path) -> None:
    elsewhere = replace(a_host(an_instance("two", function="g")), name="elsewhere")
    away = replace(a_host(an_instance("three", function="f")), name="away")
    stage = Stage(tmp_path, away, a_host(an_instance("one", function="f")), elsewhere)
    stage.away = {"away"}

    await stage.operations.override("f", pinned=True)

    assert [(host, catalogue.functions["f"].pinned) for host, catalogue in stage.sent] == [("host-a", True)]


async def test_an_override_applies_at_once_and_adds_to_the_earlier_ones(tmp_path: Path) -> None:
    stage = Stage(tmp_path)

    await stage.operations.override("f", pinned=True)
    changed = await stage.operations.override("f", min=1)

    assert (changed.pinned, changed.min, changed.max) == (True, 1, 2)
