"""Functions as operators see them."""

import sys

import pytest
from msgspec.structs import replace

from cortex.functions.launch import StartMode
from cortex.functions.lifecycle import State
from cortex.functions.spec import Start, revision
from cortex.platform.fleet import SilentHost
from cortex.platform.record import Failure, HostRecord, used_function
from cortex.platform.scheduling.ledger import Entry, StartTimes
from cortex.router.api_types import FunctionView
from cortex.router.overview import functions
from cortex.router.overview.functions import function_view, function_views
from cortex.router.overview.snapshot import FleetSnapshot, Index
from cortex.router.overview.wording import start_lines, start_text
from tests.router.overview.snapshots import NOW, a_snapshot
from tests.support.factories import HOST, a_function, a_host, an_instance


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


def calls_to_list(number: int) -> int:
    """Return how many Python functions run to list so many functions, each with an instance, on twenty hosts."""
    each, calls = number // 20, 0
    instances = [an_instance(f"i{n}", function=f"f/{n}") for n in range(number)]
    hosts = tuple(replace(a_host(*instances[h * each : (h + 1) * each]), name=f"h{h}") for h in range(20))
    snapshot = a_snapshot(*(a_function(f"f/{n}") for n in range(number)), hosts=hosts)

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        listed = views(snapshot)
    finally:
        sys.setprofile(None)
    assert sum(len(view.instances) for view in listed) == number
    return calls


def test_the_work_to_list_functions_grows_with_their_number_only() -> None:
    assert calls_to_list(400) < 2.5 * calls_to_list(200)


@pytest.mark.parametrize(("start", "expected_s"), [(Start.AUTO, 9.0), (Start.FAST, 9.0), (Start.FULL, 34.0)])
def test_what_starts_take_is_shown_by_mode_with_the_tricks_that_failed(start: Start, expected_s: float) -> None:
    function = a_function(start=start)
    modes = {
        mode: StartTimes(version="0.26", seconds=(seconds,))
        for mode, seconds in ((StartMode.FULL, 34.0), (StartMode.FAST, 9.0))
    }
    host = a_host(tricks_off={revision(function): {"few graphs": "it exited with 1", "full": "it crashed"}})
    snapshot = a_snapshot(
        function,
        hosts=(host,),
        ledger={f"{revision(function)}|H200": Entry(start_s=20.0, starts=2, started_at=1.0, modes=modes)},
    )

    (view,) = views(snapshot)

    pinned = [] if start is Start.AUTO else [f'start = "{start}"']
    assert view.expected_start_s == expected_s
    assert start_lines(view) == [
        *pinned,
        "fast 9.0 s on H200 (1 measured, 0.26)",
        "full 34.0 s on H200 (1 measured, 0.26)",
        f"without 'few graphs' on {HOST}: it exited with 1",
        f"without a full one after a fast one on {HOST}: it crashed",
    ]


def test_a_function_whose_starts_are_alike_has_no_lines_about_them() -> None:
    (view,) = views(a_snapshot(a_function(), hosts=(a_host(an_instance()),)))

    assert start_lines(view) == []
    assert start_text(view.instances[0]) == ""


def test_an_instance_shows_how_it_was_started_or_what_it_is_to_replace() -> None:
    fast = an_instance("one", start_mode=StartMode.FAST, ready=1.0)
    successor = an_instance("one-f", state=State.STARTING, start_mode=StartMode.FULL, replaces="one")
    (view,) = views(a_snapshot(a_function(), hosts=(a_host(fast, successor),)))

    assert [start_text(i) for i in view.instances] == ["fast", "full, to replace one"]


def test_a_function_of_which_the_record_has_nothing_is_shown_as_any_other() -> None:
    quiet, busy = a_function("org/quiet"), a_function("org/busy")
    snapshot = a_snapshot(quiet, busy, hosts=(a_host(an_instance(function="org/busy")),))
    used = replace(snapshot.fleet, used={used_function("org/quiet"): NOW - 5})
    snapshot = replace(snapshot, fleet=used)
    index = Index(snapshot)

    shown = [function_view(quiet, snapshot, index), function_view(quiet, snapshot, index)]

    assert index.is_quiet("org/quiet", "") and not index.is_quiet("org/busy", "")
    assert shown == [functions._function_view(quiet, snapshot, index)] * 2
    assert shown[0].last_used == NOW - 5


def test_a_trick_that_failed_is_shown_for_a_function_that_was_never_ready() -> None:
    function = a_function()
    host = a_host(tricks_off={revision(function): {"eager": "it crashed"}})
    snapshot = replace(a_snapshot(function, hosts=(host,)), revisions={function.id: revision(function)})

    (view,) = views(snapshot)

    assert view.tricks_off == ((HOST, "eager", "it crashed"),)
