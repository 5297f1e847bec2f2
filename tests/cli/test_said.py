"""What commands say of starts, of who leaves next and why, and of how long answers took."""

import re
import time
from typing import Any, cast

import pytest

from cortex.cli.call import _held
from cortex.cli.client import Router
from cortex.cli.exits import Failed
from cortex.cli.fn import coming, show_plan, state
from cortex.cli.host import _leaving
from cortex.cli.top import latency_line

STARTING = {"state": "starting", "phase": "loading weights", "progress": 0.4, "left_s": 12.0}


@pytest.mark.parametrize(
    ("instance", "said"),
    [
        (STARTING, "starting, loading weights 40% (12s left)"),
        (STARTING | {"progress": None, "left_s": None}, "starting, loading weights"),
        (STARTING | {"phase": "starting", "progress": None}, "starting (12s left)"),
        ({"state": "ready", "phase": "", "progress": None, "left_s": None}, "ready"),
    ],
)
def test_a_start_says_its_step_how_far_it_is_and_how_long_it_takes_still(instance: dict[str, Any], said: str) -> None:
    assert coming(instance) == said


def test_a_function_is_as_far_as_its_instance_that_comes() -> None:
    there = {"state": "starting", "retry_at": None, "instances": [STARTING]}

    assert state(there) == "starting, loading weights 40% (12s left)"
    assert state(there | {"state": "ready"}) == "ready"


def test_whoever_waits_is_told_how_far_it_is_if_the_key_may_know() -> None:
    class Told:
        def function(self, name: str) -> dict[str, Any]:
            if name == "hidden":
                raise Failed("this needs a key for status")
            return {"state": "starting", "retry_at": None, "instances": [STARTING]}

    router = cast(Router, Told())

    assert _held(router, "small") == "small: starting, loading weights 40% (12s left)"
    assert _held(router, "hidden") == "waiting for hidden"


LEAVES = {
    "rank": 2, "function": "org/old", "mb": 5000, "instance": "i2", "protected": "", "reaped_at": None,
    "why": "used later than 1 other", "idle_since": 0.0,
}  # fmt: skip


def test_a_host_says_in_which_order_and_why() -> None:
    now = time.time()
    leaves = LEAVES | {"idle_since": now - 30, "reaped_at": now + 90.4}

    kept = LEAVES | {"protected": "pinned", "why": "not now: pinned"}

    line = r"2\. org/old, 5000 MiB: idle for 3\ds, used later than 1 other; let go anyway in 1m(30|2\d)s"
    assert re.fullmatch(line, _leaving(leaves))
    assert _leaving(kept) == "2. org/old, 5000 MiB: not now: pinned"


def test_a_plan_says_why_it_is_those_who_leave_and_who_stays(capsys: pytest.CaptureFixture[str]) -> None:
    planned = {
        "there": "", "host": "a", "devices": ["gpu-0"], "memory_mb": 9000, "memory_from": "declared", "retry_at": 0.0,
        "evict": [{"instance": "i2", "function": "org/old", "idle_s": 30.0}],
    }  # fmt: skip
    kept = LEAVES | {"instance": "i3", "function": "org/kept", "protected": "pinned"}

    show_plan({"plan": planned, "refused": {}, "leaving": [LEAVES, kept]}, "org/new", as_json=False)

    assert capsys.readouterr().out.splitlines()[1:] == [
        "  evicting org/old (idle for 30s): used later than 1 other; those before it do not free enough",
        "  org/kept stays: pinned",
    ]


def test_a_plan_that_finds_no_place_says_why_and_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Failed, match=r"cannot be placed now\n.*host show"):
        show_plan({"plan": None, "refused": {"a": "does not fit"}, "leaving": []}, "org/new", as_json=False)

    assert capsys.readouterr().out == "  not a: does not fit\n"


def test_percentiles_are_said_of_what_was_measured() -> None:
    spread = {"p50_s": 0.0124, "p95_s": 0.5, "p99_s": 12.4}

    assert latency_line({"percentiles": {"first": None, "duration": None}}) == ""
    assert (
        latency_line({"percentiles": {"first": None, "duration": spread}})
        == "whole answer p50 12 ms p95 500 ms p99 12s"
    )
