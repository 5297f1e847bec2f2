"""Silent hosts as values, and the fleet view's choice of their instances."""

from typing import cast

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import revision
from cortex.platform.fleet import Fleet
from cortex.platform.record import HostRecord, Instance
from cortex.platform.registry import Registry
from cortex.router.fleet_view import MISSES_TO_DROP, FleetView
from cortex.router.silence import MOST_SILENT, REMEMBER_S, silent_hosts, without
from tests.support.factories import a_function, a_host, an_instance

REV = revision(a_function())


def named(name: str, *instances: Instance) -> HostRecord:
    return replace(a_host(*instances), name=name)


def fleet(*hosts: HostRecord, before: Fleet | None = None, now: float = 0.0) -> Fleet:
    """Return a read of the record that follows another."""
    records = {h.name: h for h in hosts}
    return Fleet(hosts=records, silent=silent_hosts(before or Fleet(), records, now), at=now)


def test_a_silent_host_keeps_only_its_ready_instances() -> None:
    starting = an_instance("s", state=State.STARTING)
    before = fleet(named("a", an_instance("r"), starting), named("b"))

    after = fleet(named("b"), before=before, now=7.0)

    assert [i.id for i in after.silent["a"].record.instances] == ["r"]
    assert after.silent["a"].since == 7.0
    assert list(after.silent) == ["a"]


def test_a_host_that_reports_again_is_not_silent() -> None:
    before = fleet(before=fleet(named("a", an_instance("r"))), now=7.0)

    after = fleet(named("a"), before=before, now=8.0)

    assert after.silent == {}
    assert [i.id for h in after.records() for i in h.instances] == []


def test_an_empty_record_makes_every_host_silent() -> None:
    before = fleet(named("a", an_instance("r")), named("b", an_instance("q")))

    after = fleet(before=before, now=1.0)

    assert sorted(i.id for h in after.records() for i in h.instances) == ["q", "r"]


def test_a_silent_host_expires() -> None:
    before = fleet(before=fleet(named("a", an_instance("r"))), now=7.0)

    assert "a" in fleet(before=before, now=7.0 + REMEMBER_S - 1).silent
    assert "a" not in fleet(before=before, now=7.0 + REMEMBER_S).silent


def test_the_number_of_silent_hosts_is_bounded_and_the_latest_stay() -> None:
    before = fleet(before=fleet(named("old")), now=1.0)
    many = fleet(*(named(f"h{n}") for n in range(MOST_SILENT)), before=before, now=2.0)

    after = fleet(before=many, now=3.0)

    assert len(after.silent) == MOST_SILENT
    assert "old" not in after.silent


def test_an_instance_of_a_reporting_host_is_removed_from_a_silent_host() -> None:
    """A renamed host adopts its workers under the same ids."""
    before = fleet(named("old-name", an_instance("r")))

    after = fleet(named("new-name", an_instance("r")), before=before, now=1.0)

    assert after.silent["old-name"].record.instances == ()


@given(st.lists(st.sets(st.sampled_from("abc")), max_size=20))
def test_every_host_that_ever_reported_is_live_or_silent(readings: list[set[str]]) -> None:
    current = Fleet()
    ever: set[str] = set()
    for now, alive in enumerate(readings):
        current = fleet(*(named(n, an_instance(f"{n}-1")) for n in sorted(alive)), before=current, now=float(now))
        ever |= alive

        assert current.hosts.keys() == alive
        assert current.silent.keys() == ever - alive
        ids = [i.id for h in current.records() for i in h.instances]
        assert sorted(ids) == sorted(f"{n}-1" for n in ever)


def test_removing_an_unlisted_instance_changes_nothing() -> None:
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
    """Return a view that has read some hosts, of which only those alive still report."""
    record = Record(*hosts)
    view = FleetView(cast(Registry, record), "router-1")
    await view.refresh()
    record.hosts = {h.name: h for h in alive}
    await view.refresh()
    view.away = False
    return view


def choices(view: FleetView) -> list[str]:
    return [i.id for i in view.ready("org/model", REV)]


async def test_an_instance_of_a_silent_host_is_eligible_and_unsure() -> None:
    view = await a_view(named("a", an_instance("r")))

    assert choices(view) == ["r"]
    assert view.unsure("r")
    assert view.place_of("r") == ("org/model", "a")
    assert view.fleet.hosts == {}


async def test_an_instance_of_a_reporting_host_is_unsure_only_without_the_record() -> None:
    host = named("a", an_instance("r"))
    view = await a_view(host, alive=(host,))

    sure = view.unsure("r")
    view.away = True

    assert (sure, view.unsure("r")) == (False, True)


async def test_dropping_an_instance_of_a_silent_host_removes_it() -> None:
    view = await a_view(named("a", an_instance("r"), an_instance("s")))

    view.drop("r")

    assert choices(view) == ["s"]
    assert list(view.fleet.silent) == ["a"]


async def test_dropping_an_instance_of_a_reporting_host_has_no_effect() -> None:
    host = named("a", an_instance("r"))
    view = await a_view(host, alive=(host,))

    view.drop("r")

    assert choices(view) == ["r"]


async def test_an_instance_of_a_silent_host_is_dropped_after_consecutive_misses() -> None:
    view = await a_view(named("a", an_instance("r")))

    for _ in range(MISSES_TO_DROP - 1):
        view.miss("r")
    view.trust("r")
    for _ in range(MISSES_TO_DROP - 1):
        view.miss("r")
    before = choices(view)
    view.miss("r")

    assert (before, choices(view)) == (["r"], [])


async def test_a_trusted_suspect_is_eligible_at_once() -> None:
    host = named("a", an_instance("r"))
    view = await a_view(host, alive=(host,))

    view.suspect("r")
    suspected = (choices(view), [i.id for i in view.suspect_instances("org/model", REV)])
    view.trust("r")

    assert suspected == ([], ["r"])
    assert (choices(view), view.suspect_instances("org/model", REV)) == (["r"], ())


async def test_a_removed_host_is_not_silent() -> None:
    host = named("a", an_instance("r"))
    view = await a_view(host, alive=(host,))

    view._forget("a")

    assert (choices(view), view.fleet.hosts, view.fleet.silent) == ([], {}, {})
