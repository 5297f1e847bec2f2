"""Pinning and other overrides on a running cortex."""

import json

import pytest

from tests.e2e.workers import TWO
from tests.support.stack import Stack, eventually

pytestmark = pytest.mark.parametrize("stack", [TWO], indirect=True)


def test_a_pinned_function_is_not_reaped_until_it_is_unpinned(stack: Stack) -> None:
    pinned = stack.http.post("/admin/functions/fake/reaped/pin")  # idles for a second at most
    assert pinned.json() == {"id": "fake/reaped", "pinned": True, "min": 0, "max": 1}
    stack.chat("fake/reaped")

    eventually(lambda: stack.instance("fake/reaped")["pinned"], what="the agent to hear of it")
    assert stack.instance("fake/reaped")["reap_at"] is None
    assert stack.function("fake/reaped")["overridden"] == ["pinned"]

    stack.http.post("/admin/functions/fake/reaped/reset")
    stack.until("fake/reaped", "cold")
    assert stack.function("fake/reaped")["overridden"] == []


def test_contradictory_overrides_are_rejected(stack: Stack) -> None:
    answer = stack.http.post("/admin/functions/fake/steps/set?min=3")

    assert answer.status_code == 400
    assert "min 3 and max 1" in answer.json()["error"]["message"]


def test_hosts_are_told_to_forget_what_they_measured_of_a_known_function(stack: Stack) -> None:
    forgotten, unknown = (stack.cli("fn", "forget", name, "--json") for name in ("fake/planned", "no/such"))

    assert (forgotten.returncode, json.loads(forgotten.stdout)) == (0, {"id": "fake/planned", "entries": 0})
    assert unknown.returncode == 4
