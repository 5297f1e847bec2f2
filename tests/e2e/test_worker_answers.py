"""Workers with invalid answers: the client gets a clear answer, and nothing else is affected."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
import redis

from tests.e2e.workers import EMPTY
from tests.support.catalogues import entry
from tests.support.stack import Stack, eventually

pytestmark = EMPTY

ODD = [sys.executable, str(Path(__file__).parent.parent / "support" / "odd_worker.py"), "{port}", "{model}"]
"""A program that answers as the last message demands."""
GROWTH_MB = 250
"""What a router may grow by for an answer of 64 MiB at most."""


@pytest.fixture(scope="module")
def stack(empty_stack: Stack) -> Stack:
    """One router worker with two functions of an odd program."""
    models = "\n".join(
        entry(name, engine="command", command=ODD, dialects=["chat"], vram_mb=50, idle_after_s=600)
        for name in ("odd/one", "odd/two")
    ) + entry(
        "odd/named", engine="command", command=[*ODD, '"\\ud800"'], dialects=["chat"], vram_mb=50, start_timeout_s=20
    )
    empty_stack.serve(models)
    assert empty_stack.chat("odd/one").status_code == 200
    assert empty_stack.chat("odd/two").status_code == 200
    return empty_stack


def test_a_worker_with_a_lone_surrogate_in_its_models_name_fails_alone(stack: Stack) -> None:
    answer = stack.chat("odd/named")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "start_failed")
    assert "serves 1 other model instead of odd/named" in answer.json()["error"]["message"]
    assert stack.chat("odd/one").headers["x-cortex-start"] == "hot"


@pytest.mark.long
def test_a_model_on_another_workers_port_gets_no_request_without_the_record(stack: Stack) -> None:
    url = str(stack.instance("odd/two")["url"])
    port = url.rpartition(":")[2]
    with redis.Redis.from_url(stack.env["CORTEX_REDIS_URL"]) as record:
        record_pid = int(record.info("server")["process_id"])
    os.kill(record_pid, signal.SIGSTOP)
    try:
        eventually(lambda: stack.http.get("/health").json()["record"] == "away", what="the record to be away")
        served = stack.chat("odd/two")
        os.kill(int(stack.instance("odd/two")["pid"]), signal.SIGKILL)
        other = subprocess.Popen([sys.executable, *ODD[1:2], port, "odd/other"])
        try:
            eventually(lambda: listed(url) == "odd/other", what="the other model on the port")
            answer = stack.chat("odd/two")
        finally:
            other.kill()
            other.wait(5)
    finally:
        os.kill(record_pid, signal.SIGCONT)
    eventually(lambda: stack.http.get("/health").json()["record"] == "ok", what="the record to be back")

    assert (served.status_code, "from odd/two" in served.text) == (200, True)
    assert answer.status_code in (502, 503)
    assert "odd/other" not in answer.text
    eventually(lambda: "from odd/two" in stack.chat("odd/two").text, what="odd/two to be served again")


def listed(url: str) -> str:
    """Return the name of the model at a port, "" while nothing answers."""
    with contextlib.suppress(httpx.HTTPError):
        return str(httpx.get(f"{url}/v1/models", trust_env=False).json()["data"][0]["id"])
    return ""


def router_peak_mb(stack: Stack) -> int:
    """Return the most memory the router has held so far."""
    status = Path(f"/proc/{stack.child('router').pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) // 1024


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_an_unrequested_compression_is_unpacked(stack: Stack, encoding: str) -> None:
    plain, streamed = stack.chat("odd/one", encoding), stack.chat("odd/one", encoding, stream=True)

    assert plain.json()["choices"][0]["message"]["content"].startswith("Hello you")
    assert "Hello you" in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_encoding_is_502(stack: Stack, stream: bool) -> None:
    answer = stack.chat("odd/one", "br", stream=stream)

    assert answer.status_code == 502
    assert "compressed as 'br'" in answer.json()["error"]["message"]
    assert stack.chat("odd/one").status_code == 200


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("message", ["endless", "bomb"])
def test_an_endless_answer_is_cut_and_others_are_served(stack: Stack, message: str, stream: bool) -> None:
    before = router_peak_mb(stack)
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(stack.chat("odd/one", message, stream=stream)))

    asking.start()
    other = stack.chat("odd/two")
    asking.join(60)

    assert (other.status_code, answers[0].status_code) == (200, 502)
    assert answers[0].json()["error"]["code"] == "worker_error"
    assert router_peak_mb(stack) - before < GROWTH_MB


def test_an_endless_error_is_cut(stack: Stack) -> None:
    before = router_peak_mb(stack)

    answer = stack.chat("odd/one", "endless error")

    assert answer.status_code == 502
    assert answer.json()["error"]["message"].startswith("it went wrong, ")
    assert len(answer.content) < 10_000
    assert router_peak_mb(stack) - before < GROWTH_MB


@pytest.mark.parametrize("status", [401, 403])
def test_a_403_of_the_worker_is_answered_once_and_others_are_served(stack: Stack, status: int) -> None:
    refused = stack.chat("odd/one", str(status))
    other = stack.chat("odd/one")

    assert refused.status_code == 403
    assert "not with that" in refused.json()["error"]["message"]
    assert float(refused.elapsed.total_seconds()) < 2
    assert (other.status_code, other.headers["x-cortex-start"]) == (200, "hot")


def test_a_403_of_the_worker_is_a_permission_error_in_messages(stack: Stack) -> None:
    body = {"model": "odd/one", "max_tokens": 5, "messages": [{"role": "user", "content": "401"}]}

    answer = stack.http.post("/v1/messages", json=body)

    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")


@pytest.mark.parametrize(("status", "expected"), [(404, 502), (409, 400), (422, 400), (429, 429), (500, 502)])
def test_other_errors_of_a_worker_have_a_suitable_status(stack: Stack, status: int, expected: int) -> None:
    answer = stack.chat("odd/one", str(status))

    assert (answer.status_code, "not with that" in answer.text) == (expected, True)
    assert stack.chat("odd/one").headers["x-cortex-start"] == "hot"


@pytest.mark.parametrize("stream", [False, True])
def test_a_redirect_is_not_followed(stack: Stack, stream: bool) -> None:
    answer = stack.chat("odd/one", "redirect", stream=stream)

    assert answer.status_code == 502
    assert "redirect (307)" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("name", "stream"), [("odd/one", False), ("odd/two", True)])
def test_a_request_at_a_dead_engine_behind_a_live_front_end_is_replayed(stack: Stack, name: str, stream: bool) -> None:
    before = stack.chat(name).headers["x-cortex-instance"]

    answer = stack.chat(name, "engine dies", stream=stream)

    assert (answer.status_code, "Hello you" in answer.text) == (200, True)
    assert answer.headers.get("x-cortex-instance") != before


def test_the_agents_proxy_handles_odd_answers_like_the_router(stack: Stack) -> None:
    token = next((stack.folder / "state").rglob("fleet.token")).read_text().strip()
    agent = f"http://{stack.env['CORTEX_AGENT__LISTEN']}/v1/chat/completions"

    def ask(message: str, **more: object) -> httpx.Response:
        body = {"model": "odd/two", "messages": [{"role": "user", "content": message}], **more}
        headers = {"authorization": f"Bearer {token}"}
        return httpx.post(agent, json=body, headers=headers, timeout=60, trust_env=False)

    statuses = {m: ask(m).status_code for m in ("hi", "gzip", "br", "401", "redirect", "endless", "bomb")}

    assert statuses == {"hi": 200, "gzip": 200, "br": 502, "401": 403, "redirect": 502, "endless": 502, "bomb": 502}
    assert "Hello you" in ask("gzip").text
    assert "Hello you" in ask("gzip", stream=True).text
    assert "longer than 8 MiB" in ask("endless", stream=True).json()["error"]
    assert "compressed as 'br'" in json.loads(ask("br", stream=True).text)["error"]
