"""Text of starts, eviction orders, plans and latencies."""

from typing import cast

import pytest
from msgspec.structs import replace

from cortex.cli.call import _progress
from cortex.cli.client import Router
from cortex.cli.exits import Failed
from cortex.cli.fn import progress_text, show_plan, state
from cortex.cli.host import _candidate, _engines, _print_plan
from cortex.cli.top import latency_line
from cortex.functions.lifecycle import State
from cortex.router import api_types as api
from cortex.router.plan_types import Action, Effect, Eviction, Move, Outcome, Plan, PlannedStart

NOW = 10_000.0
STARTING = api.InstanceView(
    id="one", function="org/model", revision="", state=State.STARTING, since=NOW, created=NOW, host="a",
    phase="loading weights", progress=0.4, ready_at=NOW + 12,
)  # fmt: skip


@pytest.mark.parametrize(
    ("instance", "text"),
    [
        (STARTING, "starting, loading weights 40% (12s left)"),
        (replace(STARTING, progress=None, ready_at=None), "starting, loading weights"),
        (replace(STARTING, phase="starting", progress=None), "starting (12s left)"),
        (replace(STARTING, phase="1 MiB of 2 MiB, 3 s left"), "starting, 1 MiB of 2 MiB 40% (12s left)"),
        (replace(STARTING, state=State.FETCHING, ready_at=None, fetched_at=NOW + 3), "40% (fetched in 3s)"),
        (replace(STARTING, state=State.READY, phase="", progress=None, ready_at=None), "ready"),
    ],
)
def test_a_start_has_its_phase_progress_and_remaining_time(instance: api.InstanceView, text: str) -> None:
    assert progress_text(instance, NOW).endswith(text)


def test_a_starting_function_has_the_progress_of_its_instance() -> None:
    function = api.FunctionView(id="org/model", now=NOW, state="starting", instances=(STARTING,))

    assert state(function) == "starting, loading weights 40% (12s left)"
    assert state(replace(function, state="ready")) == "ready"
    assert state(replace(function, state="failing", retry_at=NOW + 60)) == "failing (retry in 1m00s)"


def test_a_waiting_request_shows_progress_if_the_key_may_read_it() -> None:
    class Functions:
        def function(self, name: str) -> api.FunctionView:
            if name == "hidden":
                raise Failed("this needs a key for status")
            return api.FunctionView(id="org/model", now=NOW, state="starting", instances=(STARTING,))

    router = cast(Router, Functions())

    assert _progress(router, "small") == "small: starting, loading weights 40% (12s left)"
    assert _progress(router, "hidden") == "waiting for hidden"


CANDIDATE = api.EvictionCandidate(
    rank=2, instance="i2", function="org/old", memory_mb=5000, idle_since=NOW - 30, priority=1, reap_at=NOW + 90
)


def test_a_host_lists_its_eviction_order_with_reasons() -> None:
    host = api.HostView(name="a", address="http://a", now=NOW)
    by_priority = replace(host, strategy="priority")
    protected = replace(CANDIDATE, protection="pinned")

    line = "2. org/old, 5000 MiB: idle for 30s, used later than 1 other; reaped anyway in 1m30s"
    assert _candidate(CANDIDATE, host) == line
    assert "priority 1, then least recently used" in _candidate(CANDIDATE, by_priority)
    assert _candidate(protected, host) == "2. org/old, 5000 MiB: not now: pinned"


@pytest.mark.parametrize(
    ("launcher", "memory_mb", "text"),
    [
        ("parked", 1309, "vllm (0.32.0, launcher parked, 1309 MiB of RAM), fake"),
        ("importing", 0, "vllm (0.32.0, launcher importing), fake"),
    ],
)
def test_a_host_lists_the_state_and_memory_of_its_launcher(launcher: str, memory_mb: int, text: str) -> None:
    host = api.HostView(
        name="a",
        address="http://a",
        engines={"vllm": "0.32.0", "fake": "fake"},
        launchers={"vllm": launcher},
        launcher_mb={"vllm": memory_mb},
    )

    assert _engines(host) == text


def test_a_plan_has_the_reason_of_each_eviction_and_the_protected_instances(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(
        action=Action.WARM,
        effect=Effect.CHANGE,
        now=NOW,
        function="org/new",
        start=PlannedStart(host="a", devices=("gpu-0",), memory_mb=9000, memory_from="declared", retry_at=NOW + 9),
        evictions=(Eviction(instance="i2", function="org/old", idle_s=30.0, rank=2),),
        stays=(replace(CANDIDATE, function="org/pinned", protection="pinned"),),
    )

    show_plan(plan, as_json=False)

    assert capsys.readouterr().out.splitlines() == [
        "org/new would start on a, gpu-0: 9000 MiB each (declared)",
        "  evicting org/old (idle for 30s): used later than 1 other; earlier ones do not free enough memory",
        "  org/pinned stays: pinned",
        "  its starts keep failing; warming ignores the back-off",
    ]


def test_a_plan_without_a_host_fails_with_the_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(
        action=Action.WARM, effect=Effect.IMPOSSIBLE, now=NOW, function="org/new", refusals={"a": "does not fit"}
    )

    with pytest.raises(Failed, match=r"org/new cannot be placed now\n.*host show"):
        show_plan(plan, as_json=False)

    assert capsys.readouterr().out == "  not a: does not fit\n"


def test_the_plan_of_a_drain_has_what_becomes_of_each_function(capsys: pytest.CaptureFixture[str]) -> None:
    moves = (Move(function="org/model", outcome=Outcome.MOVES, to="b"), Move(function="org/old", outcome=Outcome.COLD))
    plan = Plan(action=Action.DRAIN, effect=Effect.CHANGE, now=NOW, host="a", moves=moves)

    _print_plan(plan)
    _print_plan(replace(plan, effect=Effect.NOTHING, moves=()))

    assert capsys.readouterr().out.splitlines() == [
        "a would be cordoned, and these functions leave it:",
        "  org/model: moves to b; idle",
        "  org/old: no other host has room, so it goes cold; idle",
        "a is already cordoned; nothing runs on it",
    ]


def test_only_measured_percentiles_are_shown() -> None:
    duration = api.LatencyPercentiles(duration=api.Percentiles(p50_s=0.0124, p95_s=0.5, p99_s=12.4))

    assert latency_line(api.TrafficTotal()) == ""
    assert latency_line(api.TrafficTotal(percentiles=duration)) == "whole answer p50 12 ms p95 500 ms p99 12s"
