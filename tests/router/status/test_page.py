"""The page's content as a function of a fleet snapshot."""

from typing import Any

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import revision
from cortex.platform.budget import LowBudget
from cortex.platform.fleet import SilentHost
from cortex.platform.record import Failure, Held, InLine
from cortex.platform.scheduling.ledger import Entry
from cortex.router.api_types import DownloadView
from cortex.router.overview.snapshot import Index
from cortex.router.status.functions import details
from cortex.router.status.page import job, picture
from tests.router.overview.snapshots import NOW, a_snapshot
from tests.support.factories import a_device, a_function, a_host, an_instance

FAILED = Failure(
    function="org/model", revision="", instance="one", reason="it ended", at=NOW - 5, count=3, retry_at=NOW + 60,
)  # fmt: skip


def fresh(*instances: Any, **rest: Any) -> Any:
    """Return a host with a fresh record."""
    return a_host(*instances, at=NOW, **rest)


def test_the_summary_counts_warm_functions() -> None:
    shown = picture(a_snapshot(a_function(), a_function("org/other"), hosts=(fresh(an_instance()),)))

    assert shown.verdict.well
    assert shown.verdict.text == "1 of 2 functions is warm on 1 host"
    assert not shown.verdict.attention


@pytest.mark.parametrize(
    ("instance", "in_flight", "tone", "state"),
    [
        (None, {}, "cold", "cold"),
        (an_instance(), {}, "idle", "ready"),
        (an_instance(), {"one": 2}, "busy", "ready"),
        (an_instance(state=State.STARTING), {}, "coming", "starting"),
        (an_instance(state=State.FETCHING), {}, "coming", "fetching"),
        (an_instance(state=State.DRAINING), {"one": 1}, "leaving", "draining"),
        (an_instance(state=State.RECLAIMING), {}, "leaving", "reclaiming"),
    ],
)
def test_a_function_has_the_state_of_its_most_advanced_instance(
    instance: Any, in_flight: dict[str, int], tone: str, state: str
) -> None:
    hosts = (fresh(instance),) if instance else (fresh(),)

    (row,) = picture(a_snapshot(a_function(), hosts=hosts, in_flight=in_flight)).rows

    assert (row.tone, row.state, row.in_flight) == (tone, state, sum(in_flight.values()))


def test_an_idle_function_has_its_reap_time_and_a_pinned_one_its_reason() -> None:
    idle = an_instance(ready=NOW - 100)
    function = a_function(idle_after_s=300.0)

    (row,) = picture(a_snapshot(function, hosts=(fresh(idle),))).rows
    (pinned,) = picture(a_snapshot(function, hosts=(fresh(replace(idle, pinned=True)),))).rows
    (remainder,) = picture(a_snapshot(replace(function, min=1), hosts=(fresh(idle),))).rows

    assert row.idle_until == NOW + 200
    assert (pinned.idle_until, pinned.retention) == (None, "pinned")
    assert (remainder.idle_until, remainder.retention) == (None, "at least 1 kept warm")


def test_functions_are_ordered_failing_starting_warm_cold() -> None:
    names = ["org/cold", "org/idle", "org/busy", "org/coming", "org/model"]
    host = fresh(
        an_instance("a", function="org/idle"),
        an_instance("b", function="org/busy"),
        an_instance("c", function="org/coming", state=State.PLACING),
        failures=(FAILED,),
    )

    rows = picture(a_snapshot(*map(a_function, names), hosts=(host,), in_flight={"b": 1})).rows

    assert [r.id for r in rows] == ["org/model", "org/coming", "org/busy", "org/idle", "org/cold"]


def test_a_running_function_outside_the_catalogue_is_listed() -> None:
    (row,) = picture(a_snapshot(hosts=(fresh(an_instance(function="org/gone")),))).rows

    assert (row.id, row.engine, row.tone) == ("org/gone", "not in the catalogue", "idle")


def test_a_failing_function_is_the_first_point_with_its_reason() -> None:
    shown = picture(a_snapshot(a_function(), hosts=(fresh(failures=(FAILED,)),)))

    assert not shown.verdict.well
    (point,) = shown.verdict.attention
    assert (point.text, point.detail, point.to) == ("org/model does not start", "it ended", shown.rows[0].key)
    assert (shown.troubles[0].instance, shown.troubles[0].reason) == ("one", "it ended")


def test_a_function_whose_memory_foreign_processes_hold_is_a_point_with_the_numbers() -> None:
    job = Held(device="gpu-0", pid=4711, command="python", memory_mb=9000)
    host = fresh(devices=(replace(a_device(), foreign_mb=9000),), foreign=(job,))

    shown = picture(a_snapshot(a_function(vram_mb=4000), hosts=(host,)))

    assert not shown.verdict.well
    (point,) = shown.verdict.attention
    assert point.text == "org/model cannot start"
    assert "foreign processes hold 9000 MiB" in point.detail


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"away": True}, "Redis does not answer"),
        ({"hosts": ()}, "No host reports"),
        ({"problem": "models.toml:3: unknown key"}, "The catalogue is invalid"),
        ({"hosts": (fresh(problem="NVML does not answer"),)}, "host-a has a problem"),
        ({"hosts": (a_host(at=NOW - 60),)}, "host-a is late with its report"),
        ({"waiting": {"org/model": 3}}, "org/model has no instance yet"),
        ({"cordoned": ("host-z",)}, "host-z has a problem"),
    ],
)
def test_every_problem_is_a_point_at_the_top(change: dict[str, Any], text: str) -> None:
    shown = picture(a_snapshot(a_function(), **{"hosts": (fresh(),), **change}))

    assert text in [point.text for point in shown.verdict.attention]


def test_a_function_in_line_shows_for_whom_it_waits_and_a_closing_instance_whose_turn_it_is() -> None:
    place = InLine(function="org/model", since=NOW - 5, turn_at=NOW + 10, closes=("one",))
    closing = an_instance(function="org/busy", state=State.DRAINING, yields_to="org/other")
    shown = picture(a_snapshot(a_function(), hosts=(fresh(closing, line=(place,)),), waiting={"org/model": 2}))

    waits = "has waited for memory on host-a for 5 s; org/busy closes for it in at most 10 s"
    assert [p.detail for p in shown.verdict.attention] == [f"2 requests waiting: it {waits}"]
    assert shown.verdict.well
    assert "closing for the turn of org/other" in shown.hosts[0].bars[0].segments[0].note


def test_a_key_that_has_nearly_spent_its_budget_is_named_and_all_is_well() -> None:
    snapshot = replace(a_snapshot(hosts=(fresh(),)), low_budgets=(LowBudget("team", "20usd/month", 0.834),))
    shown = picture(snapshot)

    assert [(p.text, p.detail) for p in shown.verdict.attention] == [
        ("The key team has spent 83% of its budget", "20usd/month")
    ]
    assert shown.verdict.well


def test_a_silent_host_is_a_problem_with_its_reachable_instances() -> None:
    silent = SilentHost(record=replace(a_host(an_instance()), name="host-z"), since=NOW - 12)
    before = a_snapshot(a_function(), hosts=(fresh(),))

    shown = picture(replace(before, fleet=replace(before.fleet, silent={"host-z": silent})))

    (host,) = (h for h in shown.hosts if h.name == "host-z")
    assert (host.mood, host.silent_since, host.next_out) == ("problem", NOW - 12, "")
    assert "1 instance can still be reached" in host.problem
    assert shown.rows[0].hosts == ("host-z",)
    assert (shown.figures.hosts, shown.verdict.well) == (1, False)


def test_the_points_at_the_top_are_bounded_most_severe_first() -> None:
    failures = tuple(replace(FAILED, function=f"org/{n}") for n in range(20))
    functions = [a_function(f"org/{n}") for n in range(20)]

    verdict = picture(a_snapshot(*functions, hosts=(a_host(failures=failures, at=NOW - 60),))).verdict

    assert len(verdict.attention) == 6
    assert all(point.grave for point in verdict.attention)
    assert verdict.more == 15


# Starts.


def test_a_start_has_its_expected_duration_and_waiting_requests() -> None:
    function = a_function()
    coming = an_instance(state=State.STARTING, started=NOW - 10, phase="loading weights", progress=0.4, last_sign=NOW)
    ledger = {f"{revision(function)}|GPU": Entry(start_s=30.0, starts=2)}

    (start,) = picture(a_snapshot(function, hosts=(fresh(coming),), waiting={"org/model": 7}, ledger=ledger)).starts

    assert (start.phase, start.share, start.since, start.expected_s) == ("loading weights", 0.4, NOW - 10, 30.0)
    assert (start.waiting, start.silent_since) == (7, None)


@pytest.mark.parametrize(
    ("state", "rest", "takes", "ends"),
    [
        (State.STARTING, {"started": NOW - 10}, 30.0, NOW + 20),
        (State.STARTING, {"started": NOW - 10}, 0.0, None),
        (State.FETCHING, {}, 30.0, NOW + 90),
        (State.FETCHING, {}, 0.0, NOW + 60),
        (State.PLACING, {}, 30.0, None),
    ],
)
def test_the_expected_end_follows_from_the_download_and_earlier_starts(
    state: State, rest: dict[str, Any], takes: float, ends: float | None
) -> None:
    function = a_function()
    download = DownloadView(
        id="j", host="host-a", source="org/repo", state="fetching", active=True, fraction=0.5,
        functions=("org/model",), ends_at=NOW + 60,
    )  # fmt: skip
    ledger = {f"{revision(function)}|GPU": Entry(start_s=takes, starts=1)}

    coming = an_instance(state=state, phase="1.0 GiB of 2.0 GiB, 60 s left", **rest)
    shown = picture(a_snapshot(function, hosts=(fresh(coming),), ledger=ledger, downloads=(download,)))

    assert (shown.starts[0].ends, shown.rows[0].ends) == (ends, ends)
    assert ("60 s left" in shown.rows[0].phase) is (ends is None)


def test_a_silent_start_has_the_time_of_its_last_sign() -> None:
    coming = an_instance(state=State.STARTING, started=NOW - 100, last_sign=NOW - 50)

    (start,) = picture(a_snapshot(a_function(), hosts=(fresh(coming),))).starts

    assert (start.silent_since, start.expected_s) == (NOW - 50, None)


def test_a_start_names_the_functions_evicted_for_it() -> None:
    leaving = an_instance("old", function="org/old", state=State.DRAINING)
    coming = an_instance("new", state=State.PLACING, waits_for=("old",))

    (start,) = picture(a_snapshot(a_function(), hosts=(fresh(leaving, coming),))).starts

    assert start.waits_for == ("org/old",)


# Hosts and eviction order.


def test_a_devices_bar_has_a_segment_per_instance_with_its_source() -> None:
    device = replace(a_device(total_mb=10_000, reserve_mb=1000), foreign_mb=2000)
    one = an_instance("one", memory_mb=3000, memory_from="measured", used_mb=2500, ready=1.0)
    two = an_instance("two", function="org/two", memory_mb=1000, memory_from="declared", ready=2.0)
    held = Held(device="gpu-0", pid=7, command="game")

    (host,) = picture(a_snapshot(hosts=(fresh(one, two, devices=(device,), foreign=(held,)),))).hosts
    (bar,) = host.bars

    assert [(s.label, s.source, s.at, s.width, s.measured_mb) for s in bar.segments] == [
        ("org/model", "measured", 0.0, 0.3, 2500),
        ("org/two", "declared", 0.3, 0.1, None),
        ("foreign", "foreign", 0.4, 0.2, 2000),
    ]
    assert "game" in bar.segments[2].note
    assert (bar.used_mb, bar.free_mb) == (6000, 3000)


def test_the_segments_of_a_bar_never_exceed_it() -> None:
    device = replace(a_device(total_mb=1000), foreign_mb=900)
    big = an_instance(memory_mb=5000)

    ((bar,),) = (h.bars for h in picture(a_snapshot(hosts=(fresh(big, devices=(device,)),))).hosts)

    assert sum(s.width for s in bar.segments) == 1.0


def test_the_least_recently_used_is_evicted_next_and_protected_ones_are_not_listed() -> None:
    host = fresh(
        an_instance("one", function="org/used", ready=1.0),
        an_instance("two", function="org/forgotten", ready=2.0),
        an_instance("three", function="org/pinned", ready=0.0, pinned=True),
    )
    functions = [a_function(f) for f in ("org/used", "org/forgotten", "org/pinned")]

    shown = picture(a_snapshot(*functions, hosts=(host,), used={"i:one": NOW - 20, "i:two": NOW - 400}))

    (first,) = shown.departures.first
    assert (first.function, first.why) == ("org/forgotten", "least recently used")
    assert (first.idle_since, first.reaped_at) == (NOW - 400, NOW - 100)
    assert shown.hosts[0].next_out == "org/forgotten"


def test_a_pinned_function_has_no_reap_time_even_before_its_agent_applies_the_pin() -> None:
    shown = picture(a_snapshot(a_function(pinned=True), hosts=(fresh(an_instance(pinned=False)),)))

    assert (shown.rows[0].idle_until, shown.rows[0].retention) == (None, "pinned")


def test_without_an_evictable_instance_protected_ones_are_listed() -> None:
    shown = picture(a_snapshot(a_function(), hosts=(fresh(an_instance()),), in_flight={"one": 1}))

    assert shown.departures.first == ()
    assert [(d.function, d.protected) for d in shown.departures.protected] == [("org/model", "busy")]


def test_a_host_that_is_cordoned_and_away_is_listed() -> None:
    hosts = picture(a_snapshot(hosts=(fresh(),), cordoned=("host-z", "host-a"))).hosts

    assert [(h.name, h.mood) for h in hosts] == [("host-z", "problem"), ("host-a", "cordoned")]


# Details.


def test_a_functions_details_have_its_last_start_by_phase() -> None:
    function = a_function()
    warm = an_instance(ready=NOW - 50, phases={"placing": 1.0, "starting": 3.0})
    snapshot = a_snapshot(function, hosts=(fresh(warm),))

    shown = details(function, snapshot, Index(snapshot))

    assert [(p.name, p.seconds, p.at, p.width) for p in shown.phases] == [
        ("placing", 1.0, 0.0, 0.25),
        ("starting", 3.0, 0.25, 0.75),
    ]
    assert (shown.phases_at, shown.row.last_start_s) == (NOW - 50, 4.0)


def test_a_cold_functions_last_start_is_from_the_ledger() -> None:
    function = a_function()
    entry = Entry(start_s=4.0, starts=1, phases={"starting": 4.0}, started_at=NOW - 900)
    snapshot = a_snapshot(function, hosts=(fresh(),), ledger={f"{revision(function)}|GPU": entry})

    shown = details(function, snapshot, Index(snapshot))

    assert (shown.phases_at, shown.row.last_start_s, shown.row.expected_s) == (NOW - 900, 4.0, 4.0)


def test_a_functions_details_name_the_others_that_share_its_instances() -> None:
    base = a_function("base")
    calm, legal = (replace(a_function(name), variant_of="base") for name in ("calm", "legal"))
    snapshot = a_snapshot(base, calm, legal, a_function("alone"))

    shared = {f: details(snapshot.catalogue.functions[f], snapshot, Index(snapshot)).shared_with
              for f in ("base", "calm", "alone")}  # fmt: skip

    assert shared == {"base": ("calm", "legal"), "calm": ("base", "legal"), "alone": ()}


def test_a_functions_environment_is_not_shown() -> None:
    function = a_function(env={"HF_TOKEN": "hf_secret"}, context=4096)
    snapshot = a_snapshot(function)

    assert "secret" not in repr(details(function, snapshot, Index(snapshot)))


# Downloads.

GIB = 2**30


def test_a_download_has_its_progress_and_expected_end() -> None:
    active = DownloadView(
        id="j", host="host-a", source="org/repo", state="fetching", active=True, done=GIB, total=4 * GIB, fraction=0.25,
        rate=GIB / 10, functions=("org/model",), ends_at=1030.0,
    )  # fmt: skip

    shown = job(active)

    assert (shown.share, shown.ends) == (0.25, 1030.0)
    assert shown.detail == "org/model · 1.0 GiB of 4.0 GiB, 102 MiB/s"


def test_a_failed_download_has_its_reason_and_no_progress() -> None:
    failed = DownloadView(
        id="j", host="host-a", source="org/repo", state="failed", active=False, total=4 * GIB, fraction=0.0,
        why="the disk is full",
    )  # fmt: skip

    assert job(failed).share is None
    assert job(failed).detail == "0 MiB of 4.0 GiB · the disk is full"


# Sending only what changed.


def test_an_unchanged_fleet_gives_an_equal_page_a_second_later() -> None:
    host = fresh(
        an_instance(ready=NOW - 60), an_instance("two", function="org/two", state=State.STARTING, last_sign=NOW)
    )
    snapshot = a_snapshot(a_function(), a_function("org/two"), hosts=(host,))

    later = picture(replace(snapshot, now=NOW + 1))

    assert replace(later, now=NOW) == picture(snapshot)
