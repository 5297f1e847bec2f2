"""Requests for operators, over all router workers: running, cancelled and finished."""

import json
import threading
from typing import Any

import httpx
import pytest

from cortex.platform.keys import host_token, worker_key
from tests.e2e.workers import TWO
from tests.support.stack import Stack, eventually

pytestmark = pytest.mark.parametrize("stack", [TWO], indirect=True)

BODY = {"model": "fake/streams", "messages": [{"role": "user", "content": "a secret question"}], "stream": True}


def live(stack: Stack) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = stack.http.get("/admin/requests?function=fake/streams").json()["requests"]
    return answer


def test_a_running_request_is_listed_and_can_be_cancelled(stack: Stack) -> None:
    stack.chat("fake/streams", max_tokens=1)
    lines: list[str] = []

    def ask() -> None:
        with stack.http.stream("POST", "/v1/chat/completions", json=BODY, headers={"x-request-id": "mine"}) as answer:
            lines.extend(answer.iter_lines())

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: any(r["phase"] == "streaming" and r["tokens_out"] > 1 for r in live(stack)), what="tokens")

    (row,) = live(stack)
    assert (row["id"], row["function"], row["host"], row["dialect"]) == ("mine", "fake/streams", "here", "chat")
    assert row["start"] == "hot"
    cancelled = stack.http.post("/admin/requests/mine/cancel")
    asking.join(10)

    assert cancelled.json() == {"cancelled": 1}
    assert not asking.is_alive()
    event = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert "cancelled by an operator" in event[-1]["error"]["message"]
    assert not any("[DONE]" in line for line in lines)
    eventually(lambda: live(stack) == [], what="nothing to be under way")
    (over,) = stack.http.get("/admin/requests/mine").json()["requests"]
    assert (over["phase"], over["status"], over["why"]) == ("over", 200, "cancelled by an operator")


def test_an_unknown_request_cannot_be_cancelled(stack: Stack) -> None:
    answer = stack.http.post("/admin/requests/never/cancel")

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "request_not_found"


def test_the_last_hours_traffic_is_summed_over_all_workers(stack: Stack) -> None:
    def requests() -> int:
        return sum(b["requests"] for b in stack.http.get("/admin/traffic").json()["hour"])

    before = requests()
    for _ in range(6):  # a new connection each: with two workers both get some
        with httpx.Client(base_url=stack.url, trust_env=False) as http:
            body = {"model": "fake/steps", "messages": [{"role": "user", "content": "hi"}]}
            assert http.post("/v1/chat/completions", json=body, timeout=60).is_success

    eventually(lambda: requests() >= before + 6, what="the last hour to have them")
    answer = stack.http.get("/admin/traffic").json()
    assert answer["functions"]["fake/steps"]["requests"] >= 6
    assert answer["functions"]["fake/steps"]["tokens_out"] > 0
    spread = answer["last_hour"]["percentiles"]["duration"]
    assert 0 < spread["p50_s"] <= spread["p95_s"] <= spread["p99_s"] <= 1.1 * answer["last_hour"]["longest_s"]


def test_every_request_is_one_log_line_without_its_text(stack: Stack) -> None:
    stack.http.post(
        "/v1/chat/completions", json=BODY | {"stream": False, "model": "steps"}, headers={"x-request-id": "logged"}
    )

    def logged() -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in stack.log("router").splitlines() if '"logged"' in line)
        return [line for line in lines if line["event"] == "request"]

    eventually(lambda: bool(logged()), what="the line")
    (line,) = logged()
    assert (line["function"], line["model"], line["status"]) == ("fake/steps", "steps", 200)
    assert line["tokens_out"] == 3
    assert "secret" not in stack.log("router")


def test_a_callers_trace_reaches_the_worker_and_the_log(stack: Stack) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    parent = f"00-{trace}-b7ad6b7169203331-01"
    stack.http.post(
        "/v1/chat/completions", json=BODY | {"stream": False, "model": "steps"}, headers={"traceparent": parent}
    )

    worker = stack.instance("fake/steps")
    token = (stack.folder / "state" / "cortex" / "fleet.token").read_text().strip()
    key = worker_key(host_token(token, "here"), worker["id"])
    headers = httpx.get(f"{worker['url']}/fake", headers={"Authorization": f"Bearer {key}"}, trust_env=False).json()

    assert headers["requests"][-1]["traceparent"] == parent
    eventually(lambda: f'"trace": "{trace}"' in stack.log("router"), what="the line in the log")
