"""Hosts whose record has expired, as values; and the view that chooses what still answers there."""

from typing import cast

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import revision
from cortex.platform.record import Fleet, HostRecord, Instance
from cortex.platform.registry import Registry
from cortex.router.fleet_view import MISSES_TO_DROP, FleetView
from cortex.router.silence import MOST_SILENT, REMEMBER_S, silent_hosts, without
from tests.support.factories import a_function, a_host, an_instance

REV = revision(a_function())


def named(name: str, *instances: Instance) -> HostRecord:
    return replace(a_host(*instances), name=name)


def fleet(*hosts: HostRecord, before: Fleet | None = None, now: float = 0.0) -> Fleet:
    """Return a reading of the record after another one."""
    found = {h.name: h for h in hosts}
    return Fleet(hosts=found, silent=silent_hosts(before or Fleet(), found, now), at=now)


def test_a_host_that_stops_reporting_keeps_its_ready_instances_only() -> None:
    starting = an_instance("s", state=State.STARTING)
    before = fleet(named("a", an_instance("r"), starting), named("b"))

    after = fleet(named("b"), before=before, now=7.0)

    assert [i.id for i in after.silent["a"].record.instances] == ["r"]
    assert after.silent["a"].since == 7.0
    assert list(after.silent) == ["a"]


def test_a_silent_host_that_reports_again_is_silent_no_more() -> None:
    before = fleet(before=fleet(named("a", an_instance("r"))), now=7.0)

    after = fleet(named("a"), before=before, now=8.0)

    assert after.silent == {}
    assert [i.id for h in after.records() for i in h.instances] == []


def test_a_record_that_comes_back_empty_leaves_every_host_silent() -> None:
    before = fleet(named("a", an_instance("r")), named("b", an_instance("q")))

    after = fleet(before=before, now=1.0)

    assert sorted(i.id for h in after.records() for i in h.instances) == ["q", "r"]


def test_a_silent_host_is_forgotten_after_hours() -> None:
    before = fleet(before=fleet(named("a", an_instance("r"))), now=7.0)

    assert "a" in fleet(before=before, now=7.0 + REMEMBER_S - 1).silent
    assert "a" not in fleet(before=before, now=7.0 + REMEMBER_S).silent


def test_no_more_silent_hosts_are_remembered_than_the_bound_and_the_latest_stay() -> None:
    before = fleet(before=fleet(named("old")), now=1.0)
    many = fleet(*(named(f"h{n}") for n in range(MOST_SILENT)), before=before, now=2.0)

    after = fleet(before=many, now=3.0)

    assert len(after.silent) == MOST_SILENT
    assert "old" not in after.silent


def test_an_instance_that_a_reporting_host_has_is_not_a_silent_hosts() -> None:
    """A host that was renamed takes over its workers under the same ids."""
    before = fleet(named("old-name", an_instance("r")))

    after = fleet(named("new-name", an_instance("r")), before=before, now=1.0)

    assert after.silent["old-name"].record.instances == ()


@given(st.lists(st.sets(st.sampled_from("abc")), max_size=20))
def test_whatever_comes_and_goes_a_host_is_alive_or_silent_or_was_never_there(readings: list[set[str]]) -> None:
    seen = Fleet()
    ever: set[str] = set()
    for now, alive in enumerate(readings):
        seen = fleet(*(named(n, an_instance(f"{n}-1")) for n in sorted(alive)), before=seen, now=float(now))
        ever |= alive

        assert seen.hosts.keys() == alive
        assert seen.silent.keys() == ever - alive
        ids = [i.id for h in seen.records() for i in h.instances]
        assert sorted(ids) == sorted(f"{n}-1" for n in ever)


def test_taking_out_what_is_not_there_changes_nothing() -> None:
    host = fleet(before=fleet(named("a", an_instance("r")))).silent["a"]

    assert without(host, ("x",)) is host
    assert without(host, ("r",)).record.instances == ()


class Record:
    """A record that the view reads."""

    def __init__(self, *hosts: HostRecord) -> None:
        self.hosts = {h.name: h for h in hosts}

    async def fleet(self, now: float) -> Fleet:
        return Fleet(hosts=self.hosts, at=now)


async def a_view(*hosts: HostRecord, alive: tuple[HostRecord, ...] = ()) -> FleetView:
    """Return a view that knew some hosts, of which those alive still report."""
    record = Record(*hosts)
    view = FleetView(cast(Registry, record), "router-1")
    await view.refresh()
    record.hosts = {h.name: h for h in alive}
    await view.refresh()
    view.away = False
    return view


def choices(view: FleetView) -> list[str]:
    return [i.id for i in view.ready("org/model", REV)]


async def test_an_instance_of_a_silent_host_is_chosen_and_known_to_be_unsure() -> None:
    view = await a_view(named("a", an_instance("r")))

    assert choices(view) == ["r"]
    assert view.unsure("r")
    assert view.placed("r") == ("org/model", "a")
    assert view.fleet.hosts == {}


async def test_an_instance_of_a_reporting_host_is_unsure_only_while_the_record_is_away() -> None:
    host = named("a", an_instance("r"))
    view = await a_view(host, alive=(host,))

    sure = view.unsure("r")
    view.away = True

    assert (sure, view.unsure("r")) == (False, True)


async def test_an_instance_of_a_silent_host_that_is_gone_is_dropped() -> None:
    view = await a_view(named("a", an_instance("r"), an_instance("s")))

    view.drop("r")

    assert choices(view) == ["s"]
    assert list(view.fleet.silent) == ["a"]


async def test_an_instance_of_a_reporting_host_is_dropped_by_its_host_alone() -> None:
    host = named("a", an_instance("r"))
    view = await a_view(host, alive=(host,))

    view.drop("r")

    assert choices(view) == ["r"]


async def test_an_instance_of_a_silent_host_is_dropped_after_misses_in_a_row() -> None:
    view = await a_view(named("a", an_instance("r")))

    for _ in range(MISSES_TO_DROP - 1):
        view.miss("r")
    view.trust("r")
    for _ in range(MISSES_TO_DROP - 1):
        view.miss("r")
    before = choices(view)
    view.miss("r")

    assert (before, choices(view)) == (["r"], [])


async def test_a_suspect_that_is_trusted_again_is_chosen_at_once() -> None:
    host = named("a", an_instance("r"))
    view = await a_view(host, alive=(host,))

    view.suspect("r")
    suspected = (choices(view), [i.id for i in view.suspected("org/model", REV)])
    view.trust("r")

    assert suspected == ([], ["r"])
    assert (choices(view), view.suspected("org/model", REV)) == (["r"], ())


async def test_a_host_that_was_removed_on_purpose_is_forgotten_at_once() -> None:
    host = named("a", an_instance("r"))
    view = await a_view(host, alive=(host,))

    view._forget("a")

    assert (choices(view), view.fleet.hosts, view.fleet.silent) == ([], {}, {})
