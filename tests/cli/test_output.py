"""Text of starts, eviction orders, plans and latencies."""

import re
import time
from typing import Any, cast

import pytest

from cortex.cli.call import _progress
from cortex.cli.client import Router
from cortex.cli.exits import Failed
from cortex.cli.fn import progress_text, show_plan, state
from cortex.cli.host import _engines, _eviction
from cortex.cli.top import latency_line

STARTING = {"state": "starting", "phase": "loading weights", "progress": 0.4, "left_s": 12.0}


@pytest.mark.parametrize(
    ("instance", "text"),
    [
        (STARTING, "starting, loading weights 40% (12s left)"),
        (STARTING | {"progress": None, "left_s": None}, "starting, loading weights"),
        (STARTING | {"phase": "starting", "progress": None}, "starting (12s left)"),
        ({"state": "ready", "phase": "", "progress": None, "left_s": None}, "ready"),
    ],
)
def test_a_start_has_its_phase_progress_and_remaining_time(instance: dict[str, Any], text: str) -> None:
    assert progress_text(instance) == text


def test_a_starting_function_has_the_progress_of_its_instance() -> None:
    function = {"state": "starting", "retry_at": None, "instances": [STARTING]}

    assert state(function) == "starting, loading weights 40% (12s left)"
    assert state(function | {"state": "ready"}) == "ready"


def test_a_waiting_request_shows_progress_if_the_key_may_read_it() -> None:
    class Functions:
        def function(self, name: str) -> dict[str, Any]:
            if name == "hidden":
                raise Failed("this needs a key for status")
            return {"state": "starting", "retry_at": None, "instances": [STARTING]}

    router = cast(Router, Functions())

    assert _progress(router, "small") == "small: starting, loading weights 40% (12s left)"
    assert _progress(router, "hidden") == "waiting for hidden"


LEAVES = {
    "rank": 2, "function": "org/old", "mb": 5000, "instance": "i2", "protected": "", "reaped_at": None,
    "why": "used later than 1 other", "idle_since": 0.0,
}  # fmt: skip


def test_a_host_lists_its_eviction_order_with_reasons() -> None:
    now = time.time()
    leaves = LEAVES | {"idle_since": now - 30, "reaped_at": now + 90.4}

    protected = LEAVES | {"protected": "pinned", "why": "not now: pinned"}

    line = r"2\. org/old, 5000 MiB: idle for 3\ds, used later than 1 other; reaped anyway in 1m(30|2\d)s"
    assert re.fullmatch(line, _eviction(leaves))
    assert _eviction(protected) == "2. org/old, 5000 MiB: not now: pinned"


@pytest.mark.parametrize(
    ("launcher", "memory_mb", "text"),
    [
        ("parked", 1309, "vllm (0.32.0, launcher parked, 1309 MiB of RAM), fake"),
        ("importing", 0, "vllm (0.32.0, launcher importing), fake"),
    ],
)
def test_a_host_lists_the_state_and_memory_of_its_launcher(launcher: str, memory_mb: int, text: str) -> None:
    host = {
        "engines": {"vllm": "0.32.0", "fake": "fake"},
        "launchers": {"vllm": launcher},
        "launcher_mb": {"vllm": memory_mb},
    }

    assert _engines(host) == text


def test_a_plan_has_the_reason_of_each_eviction_and_the_protected_instances(capsys: pytest.CaptureFixture[str]) -> None:
    planned = {
        "there": "", "host": "a", "devices": ["gpu-0"], "memory_mb": 9000, "memory_from": "declared", "retry_at": 0.0,
        "evict": [{"instance": "i2", "function": "org/old", "idle_s": 30.0}],
    }  # fmt: skip
    protected = LEAVES | {"instance": "i3", "function": "org/kept", "protected": "pinned"}

    show_plan({"plan": planned, "refused": {}, "leaving": [LEAVES, protected]}, "org/new", as_json=False)

    assert capsys.readouterr().out.splitlines()[1:] == [
        "  evicting org/old (idle for 30s): used later than 1 other; earlier ones do not free enough memory",
        "  org/kept stays: pinned",
    ]


def test_a_plan_without_a_host_fails_with_the_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Failed, match=r"cannot be placed now\n.*host show"):
        show_plan({"plan": None, "refused": {"a": "does not fit"}, "leaving": []}, "org/new", as_json=False)

    assert capsys.readouterr().out == "  not a: does not fit\n"


def test_only_measured_percentiles_are_shown() -> None:
    percentiles = {"p50_s": 0.0124, "p95_s": 0.5, "p99_s": 12.4}

    assert latency_line({"percentiles": {"first": None, "duration": None}}) == ""
    assert (
        latency_line({"percentiles": {"first": None, "duration": percentiles}})
        == "whole answer p50 12 ms p95 500 ms p99 12s"
    )
