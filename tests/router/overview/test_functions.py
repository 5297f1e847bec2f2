"""Functions as operators see them."""

import time

from msgspec.structs import replace

from cortex.platform.record import Failure, HostRecord, SilentHost
from cortex.router.api_types import FunctionView
from cortex.router.overview.functions import function_views
from cortex.router.overview.snapshot import FleetSnapshot, Index
from tests.router.overview.snapshots import NOW, a_snapshot
from tests.support.factories import a_function, a_host, an_instance


def views(snapshot: FleetSnapshot) -> list[FunctionView]:
    return list(function_views(snapshot, Index(snapshot)))


def failing(host: str, at: float, retry_at: float) -> HostRecord:
    failure = Failure(
        function="org/model", revision="", instance=f"on-{host}", reason=f"of {host}", at=at, retry_at=retry_at, lines=3
    )
    return replace(a_host(failures=(failure,)), name=host)


def test_a_function_that_fails_on_two_hosts_has_the_newest_reason_and_the_last_attempt() -> None:
    (view,) = views(a_snapshot(a_function(), hosts=(failing("a", NOW - 9, NOW + 90), failing("b", NOW - 1, NOW + 10))))

    assert (view.state, view.failure, view.failed_instance) == ("failing", "of b", "on-b")
    assert view.retry_at == NOW + 90


def test_a_function_whose_weights_are_on_a_hung_mount_has_the_reason() -> None:
    host = a_host(unreadable={"org/model": "/mnt/weights does not answer"})

    (view, other) = views(a_snapshot(a_function(), a_function("org/other"), hosts=(host,)))

    assert (view.state, view.failure) == ("cold", "host-a: /mnt/weights does not answer")
    assert other.failure is None


def test_a_running_function_outside_the_catalogue_is_listed_last_and_is_never_reaped_as_idle() -> None:
    snapshot = a_snapshot(a_function(), hosts=(a_host(an_instance(function="a/removed")),), aliases={"m": "org/model"})

    declared, removed = views(snapshot)

    assert (declared.id, declared.declared, declared.aliases) == ("org/model", True, ("m",))
    assert (removed.id, removed.declared, removed.engine) == ("a/removed", False, "")
    assert [i.reap_at for i in removed.instances] == [None]


def test_a_function_has_its_instances_on_every_host_alive_or_silent() -> None:
    one = a_host(an_instance("a", function="f/0"), an_instance("b", function="f/1"))
    two = replace(a_host(an_instance("c", function="f/0")), name="two")
    silent = SilentHost(record=replace(a_host(an_instance("d", function="f/1")), name="three"), since=1.0)
    alive = a_snapshot(*(a_function(f"f/{n}") for n in range(3)), hosts=(one, two))

    listed = views(replace(alive, fleet=replace(alive.fleet, silent={"three": silent})))

    assert [(view.id, [(i.id, i.silent_since) for i in view.instances]) for view in listed] == [
        ("f/0", [("a", None), ("c", None)]),
        ("f/1", [("b", None), ("d", 1.0)]),
        ("f/2", []),
    ]


def test_two_thousand_functions_with_an_instance_each_are_listed_in_a_fraction_of_a_second() -> None:
    instances = [an_instance(f"i{n}", function=f"f/{n}") for n in range(2000)]
    hosts = tuple(replace(a_host(*instances[h * 100 : h * 100 + 100]), name=f"h{h}") for h in range(20))
    snapshot = a_snapshot(*(a_function(f"f/{n}") for n in range(2000)), hosts=hosts)
    began = time.process_time()

    listed = views(snapshot)

    assert sum(len(view.instances) for view in listed) == 2000
    assert time.process_time() - began < 1.0
