"""Decisions of a running cortex, and events as they happen."""

import json
from typing import Any

import pytest

from tests.e2e.workers import TWO
from tests.support.stack import Stack, eventually

pytestmark = pytest.mark.parametrize("stack", [TWO], indirect=True)


def decisions(stack: Stack, **wanted: str) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = stack.http.get("/admin/decisions", params=wanted).json()["decisions"]
    return answer


def test_a_cold_start_is_explained_from_the_request_to_the_worker(stack: Stack) -> None:
    stack.cool("fake/cold")
    messages = [{"role": "user", "content": "a secret question"}]
    body = {"model": "fake/cold", "messages": messages}
    assert stack.http.post("/v1/chat/completions", json=body, headers={"x-request-id": "why-1"}).is_success

    eventually(lambda: decisions(stack, request="why-1"), what="the request's decision")
    (waited,) = decisions(stack, request="why-1")
    assert (waited["what"], waited["function"], waited["host"]) == ("waited", "fake/cold", "here")
    mine = decisions(stack, instance=waited["instance"])
    assert {"proposed", "placed", "ready", "waited"} <= {r["what"] for r in mine}
    (proposed,) = [r for r in mine if r["what"] == "proposed"]
    assert [c["host"] for c in proposed["inputs"]["candidates"]] == ["here"]
    (ready,) = [r for r in mine if r["what"] == "ready"]
    assert ready["inputs"]["phases"]["starting"] > 0
    assert "secret" not in json.dumps(decisions(stack, limit="5000"))


def test_decisions_of_a_full_queue_and_a_failed_start_have_reasons(stack: Stack) -> None:
    stack.chat("broken/garbage")

    eventually(lambda: decisions(stack, function="broken/garbage", what="not_served"), what="the refusal's decision")
    refused = decisions(stack, function="broken/garbage", what="not_served")[0]
    assert refused["inputs"]["status"] == 503
    assert refused["why"]
    failed = decisions(stack, function="broken/garbage", what="failed")[0]
    assert failed["inputs"]["kind"] in ("crash", "weights")


def test_an_operators_action_is_a_decision_and_an_event(stack: Stack) -> None:
    stack.until("fake/steps", "ready") if stack.chat("steps").is_success else None
    with stack.http.stream("GET", "/admin/events", params={"function": "fake/steps"}) as events:
        lines = events.iter_lines()
        assert next(lines) == ": here"
        stack.http.post("/admin/functions/fake/steps/cool")
        events_seen = [json.loads(line.removeprefix("data: ")) for line in _until(lines, '"what":"action"')]

    actions = [e for e in events_seen if e.get("what") == "action"]
    assert (actions[0]["by"], actions[0]["why"], actions[0]["function"]) == ("operator", "cool", "fake/steps")


def _until(lines: Any, text: str) -> list[str]:
    matches = []
    for line in lines:
        if line.startswith("data: "):
            matches.append(line)
            if text in line:
                break
    return matches
