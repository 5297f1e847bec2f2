"""Which hosts are asked first for a new instance."""

import pytest
from msgspec.structs import replace

from cortex.platform.record import Fleet, HostRecord, SilentHost, use
from cortex.platform.scheduling.placement import need
from cortex.router.activation.load_balancing import hosts_to_ask, why_nowhere
from tests.support.factories import a_function, a_host, an_instance

NOW = 1000.0


def named(name: str, host: HostRecord, **rest: object) -> HostRecord:
    return replace(host, name=name, **rest)


FULL = a_host(an_instance(memory_mb=10_000, function="org/other"))


@pytest.mark.parametrize(
    ("hosts", "asked"),
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
    hosts: list[HostRecord], asked: list[str]
) -> None:
    fleet = Fleet(hosts={h.name: h for h in hosts})

    function = a_function()
    assert hosts_to_ask(need(function, None), function, fleet, use(fleet), NOW) == asked


def test_a_host_it_is_pinned_on_comes_before_one_that_holds_the_weights() -> None:
    function = a_function(pinned_on=("a", "b"))
    hosts = [named("a", a_host()), named("b", a_host(), weights={function.id: 1})]
    fleet = Fleet(hosts={h.name: h for h in hosts})

    assert hosts_to_ask(need(function, None), function, fleet, use(fleet), NOW) == ["b", "a"]


@pytest.mark.parametrize(
    ("beside", "asked"),
    [((), ["b", "a"]), (("one",), ["a", "b"])],
    ids=["any instance will do", "one more is wanted"],
)
def test_a_host_that_has_an_instance_is_asked_first_unless_one_more_is_wanted(
    beside: tuple[str, ...], asked: list[str]
) -> None:
    function = a_function()
    hosts = [named("a", a_host(), weights={function.id: 1}), named("b", a_host(an_instance("one")))]
    fleet = Fleet(hosts={h.name: h for h in hosts})

    assert hosts_to_ask(need(function, None), function, fleet, use(fleet), NOW, beside) == asked


def test_silent_hosts_are_named_when_no_host_is_alive() -> None:
    silent = SilentHost(record=named("a", a_host(an_instance("one"))), since=NOW)
    fleet = Fleet(silent={"a": silent})

    assert hosts_to_ask(need(a_function(), None), a_function(), fleet, use(fleet), NOW) == []
    assert "a no longer reports" in why_nowhere(need(a_function(), None), fleet, use(fleet), NOW)
