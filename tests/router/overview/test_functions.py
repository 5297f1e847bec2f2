"""Functions as operators see them."""

from msgspec.structs import replace

from cortex.platform.record import Failure, HostRecord
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
