"""Background tasks continue after an exception in one round."""

import asyncio
import io
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog
from msgspec.structs import replace

from cortex.functions.catalogue import Catalogue
from cortex.platform import clock, log
from cortex.platform.agent_messages import Neighbour, Neighbours
from cortex.platform.cancel import cancel_tasks
from cortex.platform.faults import Faults
from cortex.platform.fleet import Fleet
from cortex.platform.in_flight import InFlight
from cortex.platform.record import HostRecord, RouterReport
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.settings import Log
from cortex.router.activation.agents import AgentUnavailable
from cortex.router.background import Reporter, Sweeper
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue
from cortex.router.request.open_requests import OpenRequests
from tests.support.catalogues import fake
from tests.support.factories import HOST, a_host, an_instance


async def test_a_sweep_step_that_raises_does_not_stop_the_other_steps() -> None:
    counts: list[str] = []
    present = an_instance("here")
    fleet = Fleet(
        hosts={HOST: a_host(present)}, used={"i:here": 1.0, "i:gone": 1.0, "i:lately": clock.now(), "f:org/model": 1.0}
    )
    forgotten: list[str] = []

    class Broken:
        """A catalogue whose first use is a fault, and whose second meets a lost record."""

        @property
        def is_deliberate(self) -> bool:
            raise ValueError("a fault")

        @property
        def hosted(self) -> Catalogue:
            raise RecordUnavailable("no answer")

    async def forget_used(members: Iterable[str]) -> None:
        forgotten.extend(members)

    faults = Faults(counts.append)
    registry, view = SimpleNamespace(forget_used=forget_used), SimpleNamespace(fleet=fleet)
    nothing = cast(Any, None)
    sweeper = Sweeper(cast(Registry, registry), cast(FleetView, view), cast(Any, Broken()), nothing, nothing, faults)

    await sweeper.sweep()

    assert counts == ["sweep"]
    assert [f.kind for f in faults.recent()] == ["ValueError"]
    assert forgotten == ["i:gone"]


async def test_a_report_that_cannot_be_written_keeps_the_last_uses_for_the_next(tmp_path: Path) -> None:
    reporter, in_flight, record = a_reporter(tmp_path)
    record.is_away = True
    with in_flight.track("f", "one"):
        pass
    task = asyncio.create_task(reporter.run())
    async with asyncio.timeout(5):
        await record.attempt.wait()
    await cancel_tasks([task])
    record.is_away = False

    await reporter.sign_off()

    assert record.touched == [{"f:f", "i:one"}]
    assert record.removed == ["router-1"]


class Record:
    """A record that can be away."""

    def __init__(self) -> None:
        self.is_away = False
        self.attempt = asyncio.Event()
        self.touched: list[set[str]] = []
        self.removed: list[str] = []

    async def publish_router(self, report: RouterReport) -> None:
        self.attempt.set()
        if self.is_away:
            raise RecordUnavailable("no answer")

    async def touch(self, used: dict[str, float]) -> None:
        self.touched.append(set(used))

    async def remove_router(self, router: str) -> None:
        self.removed.append(router)


def a_reporter(folder: Path) -> tuple[Reporter, InFlight, Record]:
    record, in_flight = Record(), InFlight("router-1")
    (folder / "models.toml").write_text(fake("f"))
    registry = cast(Registry, record)
    view = FleetView(registry, "router-1")
    reporter = Reporter(registry, view, in_flight, OpenRequests(), LiveCatalogue(folder / "models.toml"))
    return reporter, in_flight, record


def test_a_traceback_on_the_console_shows_no_local_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(log, "_lines_from", None)  # restored by monkeypatch
    before = structlog.get_config()
    try:
        log.configure(Log(format="console"))
        prompt = "a secret question"
        try:
            raise ValueError("wrong")
        except ValueError as error:
            structlog.get_logger().error("broke", exc_info=error)
    finally:
        structlog.configure(**before)

    assert prompt not in out.getvalue()
    assert "ValueError: wrong" in out.getvalue()


async def test_agents_are_told_their_neighbours_when_they_change_and_again_after_a_failure() -> None:
    fleet = Fleet(hosts={name: replace(a_host(), name=name) for name in ("a", "b")})
    sent: list[tuple[str, tuple[str, ...]]] = []
    away = {"b"}

    class Receivers(SimpleNamespace):
        """Agents, of which one is away at first."""

        def neighbours_of(self, host: HostRecord, hosts: Iterable[HostRecord]) -> Neighbours:
            others = (h for h in hosts if h.name != host.name)
            return Neighbours(hosts=tuple(Neighbour(host=h.name, address=h.address, token="t") for h in others))

        async def send_neighbours(self, host: HostRecord, neighbours: Neighbours) -> None:
            if host.name in away:
                raise AgentUnavailable("away")
            sent.append((host.name, tuple(n.host for n in neighbours.hosts)))

    nothing = cast(Any, None)
    view = cast(FleetView, SimpleNamespace(fleet=fleet))
    sweeper = Sweeper(nothing, view, nothing, cast(Any, Receivers()), nothing, nothing)

    await sweeper.send_neighbours()
    away.clear()
    await sweeper.send_neighbours()
    del fleet.hosts["a"]
    await sweeper.send_neighbours()

    assert sent == [("a", ("b",)), ("b", ("a",)), ("b", ())]
