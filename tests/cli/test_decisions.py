"""The inputs of a decision as one line."""

from typing import Any

import pytest

from cortex.cli.decisions import input_text
from cortex.cli.top import BAR, bar
from cortex.platform.decisions import DecisionRecord


@pytest.mark.parametrize(
    ("what", "inputs", "text"),
    [
        ("ready", {"phases": {"placing": 0.04, "starting": 3.8}}, "placing 0.0s, starting 3.8s"),
        (
            "evicted",
            {"victim": {"function": "org/old", "idle_s": 90.0}, "others": [{"function": "org/busy", "idle_s": 1.0}]},
            "idle 90.0s; stays: org/busy idle 1.0s",
        ),
        (
            "closed",
            {"victim": {"idle_s": 0.0, "in_flight": 3}, "others": []},
            "3 in flight",
        ),
        (
            "refused",
            {"devices": [{"id": "gpu-0", "free_mb": 10}], "in_line": 1, "turn_in_s": 11.2},
            "gpu-0 10 MiB free, turn in at most 12 s",
        ),
        (
            "proposed",
            {"candidates": [{"host": "a", "evict": ["x"], "devices": ["gpu-0"]}, {"host": "b", "why_not": "cordoned"}]},
            "a: evicts 1; b: cordoned",
        ),
        ("waited", {"queued_ms": 12, "status": 200, "nested": {}}, "queued_ms 12, status 200"),
        ("placed", {}, ""),
        ("ready", {"phases": "of another release"}, ""),
    ],
)
def test_a_decisions_main_inputs_are_shown(what: str, inputs: dict[str, Any], text: str) -> None:
    assert input_text(DecisionRecord(what=what, inputs=inputs)) == text


@pytest.mark.parametrize(("admitted", "foreign", "total"), [(0, 0, 0), (10, 0, 100), (80, 40, 100), (1000, 1000, 100)])
def test_a_memory_bar_has_a_fixed_length(admitted: int, foreign: int, total: int) -> None:
    assert len(bar(admitted, foreign, total).plain) == BAR
