"""Which hosts are asked first for a new instance."""

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.platform.fleet import Fleet, SilentHost, use
from cortex.platform.record import DrainReason, Held, HostRecord, Instance, Tier, Use
from cortex.platform.scheduling.placement import Need, NoRoom, Placement, need, place
from cortex.router.activation import load_balancing
from cortex.router.activation.load_balancing import blocked_by_foreign_memory, hosts_to_ask, why_nowhere
from tests.support.factories import a_device, a_function, a_host, an_instance

NOW = 1000.0


def named(name: str, host: HostRecord, **rest: object) -> HostRecord:
    return replace(host, name=name, **rest)


FULL = a_host(an_instance(memory_mb=10_000, function="org/other"))


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ([named("a", a_host()), named("b", a_host())], ["a", "b"]),
        ([named("a", a_host()), named("b", a_host(), weights={"org/model": 5})], ["b", "a"]),
        ([named("a", a_host()), named("b", FULL, weights={"org/model": 5})], ["b", "a"]),
        ([named("a", a_host()), named("b", a_host(), weights={"org/other": 5})], ["a", "b"]),
        ([named("a", FULL), named("b", a_host())], ["b", "a"]),
    ],
    ids=["by name", "with the weights", "with the weights, at an eviction", "with others' weights", "with room"],
)
def test_a_host_that_holds_the_weights_is_asked_before_one_that_has_to_fetch_them(
    hosts: list[HostRecord], expected: list[str]
) -> None:
    fleet = Fleet(hosts={h.name: h for h in hosts})

    function = a_function()
    assert list(hosts_to_ask(need(function, None), function, fleet, use(fleet), NOW)) == expected


def test_a_host_it_is_pinned_on_comes_before_one_that_holds_the_weights() -> None:
    function = a_function(pinned_on=("a", "b"))
    hosts = [named("a", a_host()), named("b", a_host(), weights={function.id: 1})]
    fleet = Fleet(hosts={h.name: h for h in hosts})

    assert list(hosts_to_ask(need(function, None), function, fleet, use(fleet), NOW)) == ["b", "a"]


ASLEEP = an_instance("asleep", state=State.SLEEPING, parked=Tier.SLEEP, parks_to=Tier.SLEEP, parked_mb=100)
FROZEN = an_instance("frozen", state=State.FROZEN, parked=Tier.FREEZE, parks_to=Tier.FREEZE)


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [((), ["d", "c", "b", "a"]), (("one",), ["c", "b", "a", "d"]), (("one", "asleep"), ["b", "a", "c", "d"])],
    ids=["any instance will do", "one more is wanted", "the sleeper is known"],
)
def test_a_host_whose_instance_returns_soonest_comes_after_one_that_serves(
    exclude: tuple[str, ...], expected: list[str]
) -> None:
    function = a_function()
    a, b, c = named("a", a_host(), weights={function.id: 1}), named("b", a_host(FROZEN)), named("c", a_host(ASLEEP))
    fleet = Fleet(hosts={h.name: h for h in (a, b, c, named("d", a_host(an_instance("one"))))})

    assert list(hosts_to_ask(need(function, None), function, fleet, use(fleet), NOW, exclude)) == expected


PARKING = an_instance("parking", state=State.PARKING, reason=DrainReason.IDLE, parks_to=Tier.SLEEP)


@pytest.mark.parametrize(
    ("instance", "expected"),
    [
        (PARKING, ["b", "c", "a"]),
        (replace(PARKING, reason=None), ["c", "b", "a"]),
        (replace(PARKING, reason=DrainReason.REHEARSAL), ["c", "b", "a"]),
        (replace(PARKING, reason=DrainReason.REHEARSAL, state=State.DRAINING), ["c", "b", "a"]),
        (replace(PARKING, revision="another"), ["b", "a", "c"]),
    ],
    ids=["it returns after it is parked", "a request waits for it", "it rehearses", "it drains", "of another revision"],
)
def test_a_host_whose_instance_is_being_parked_comes_before_one_without(
    instance: Instance, expected: list[str]
) -> None:
    function = a_function()
    a, b = named("a", a_host(), weights={function.id: 1}), named("b", a_host(FROZEN))
    fleet = Fleet(hosts={h.name: h for h in (a, b, named("c", a_host(instance)))})

    assert list(hosts_to_ask(need(function, None), function, fleet, use(fleet), NOW)) == expected


@pytest.mark.parametrize(
    ("companions", "expected"),
    [((), ["b", "a"]), (("one",), ["a", "b"])],
    ids=["any instance will do", "one more is wanted"],
)
def test_a_host_that_has_an_instance_is_asked_first_unless_one_more_is_wanted(
    companions: tuple[str, ...], expected: list[str]
) -> None:
    function = a_function()
    hosts = [named("a", a_host(), weights={function.id: 1}), named("b", a_host(an_instance("one")))]
    fleet = Fleet(hosts={h.name: h for h in hosts})

    assert list(hosts_to_ask(need(function, None), function, fleet, use(fleet), NOW, companions)) == expected


def test_silent_hosts_are_named_when_no_host_is_alive() -> None:
    silent = SilentHost(record=named("a", a_host(an_instance("one"))), since=NOW)
    fleet = Fleet(silent={"a": silent})

    assert list(hosts_to_ask(need(a_function(), None), a_function(), fleet, use(fleet), NOW)) == []
    assert "a no longer reports" in why_nowhere(need(a_function(), None), fleet, use(fleet), NOW)


def with_job(name: str, memory_mb: int) -> HostRecord:
    """Return a host on which a foreign process holds this much."""
    job = Held(device="gpu-0", pid=4711, command="python", memory_mb=memory_mb)
    return named(name, a_host(devices=(replace(a_device(), foreign_mb=memory_mb),), foreign=(job,)))


BLOCKED = a_function(vram_mb=4000)


@pytest.mark.parametrize(
    ("hosts", "blocked_on"),
    [
        ([with_job("a", 9000)], ["a"]),
        ([with_job("a", 9000), with_job("b", 8000)], ["a", "b"]),
        ([with_job("a", 9000), named("b", a_host(engines={}))], ["a"]),
        ([with_job("a", 9000), named("b", a_host())], []),
        ([with_job("a", 9000), named("b", FULL)], []),
        ([with_job("a", 1000)], []),
        ([named("a", a_host())], []),
    ],
    ids=["only host", "both hosts", "the other cannot", "the other has room", "the other may", "small", "no process"],
)
def test_foreign_memory_blocks_a_function_where_no_host_can_have_room_for_it(
    hosts: list[HostRecord], blocked_on: list[str]
) -> None:
    fleet = Fleet(hosts={h.name: h for h in hosts})

    why = blocked_by_foreign_memory(BLOCKED, fleet, use(fleet), NOW)

    assert [part.partition(":")[0] for part in why.split("; ") if part] == blocked_on


def test_hosts_are_estimated_only_as_far_as_the_order_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = [named(f"host-{n:03}", FULL if n < 3 else a_host()) for n in range(300)]
    fleet, function = Fleet(hosts={h.name: h for h in hosts}), a_function()
    estimated: list[str] = []

    def counting(need: Need, host: HostRecord, use: Use, now: float) -> Placement | NoRoom:
        estimated.append(host.name)
        return place(need, host, use, now)

    monkeypatch.setattr(load_balancing, "place", counting)
    order = hosts_to_ask(need(function, None), function, fleet, use(fleet), NOW)

    assert order.first(2) == ["host-003", "host-004"]
    assert estimated == [h.name for h in hosts[:5]]
    assert [*order][-3:] == ["host-000", "host-001", "host-002"], "where one has to leave"
    assert order.first(1) == ["host-003"]
    assert len(estimated) == 300
