"""Cold starts and reaping with real workers, for clients and operators."""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import ALPHA, BRAVO
from tests.e2e.workers import TWO
from tests.support.stack import Stack, eventually

pytestmark = pytest.mark.parametrize("stack", [TWO], indirect=True)

MESSAGES: Any = [{"role": "user", "content": "Hello!"}]


def words(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]+", text))


def test_a_cold_request_is_answered_by_the_model(stack: Stack, tell: Callable[[str], None]) -> None:
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)
    stack.cool("tiny/alpha")
    stack.cool("tiny/bravo")

    began = time.monotonic()
    answer = client.chat.completions.create(model="tiny/alpha", messages=MESSAGES, max_tokens=12)
    took = time.monotonic() - began

    text = answer.choices[0].message.content or ""
    assert words(text)
    assert words(text) <= words(ALPHA)
    assert answer.model == "tiny/alpha"
    start_s = stack.instance("tiny/alpha")["start_s"]
    tell(f"cold, plain: {took * 1000:.0f} ms, the worker's own start {start_s * 1000:.0f} ms")


def test_a_cold_request_is_streamed(stack: Stack, tell: Callable[[str], None]) -> None:
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)
    stack.cool("tiny/alpha")
    stack.cool("tiny/bravo")

    began = time.monotonic()
    stream = client.chat.completions.create(model="tiny/bravo", messages=MESSAGES, max_tokens=12, stream=True)
    chunks = [next(stream)]
    first = time.monotonic() - began
    chunks += list(stream)

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert words(text)
    assert words(text) <= words(BRAVO)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    start_s = stack.instance("tiny/bravo")["start_s"]
    tell(
        f"cold, streamed: first byte after {first * 1000:.0f} ms, the worker's own start "
        f"{start_s * 1000:.0f} ms, the platform's share {(first - start_s) * 1000:.0f} ms"
    )


def test_the_demo_model_is_written_and_completes_a_text(stack: Stack) -> None:
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)

    answer = client.completions.create(model="cortex/harbour", prompt="Tonight the", max_tokens=8, temperature=0)

    assert words(answer.choices[0].text)
    assert list((stack.folder / "cache").rglob("*.gguf"))


def test_concurrent_cold_requests_start_one_worker_and_get_their_own_answers(stack: Stack) -> None:
    async def one(http: httpx.AsyncClient, number: int) -> tuple[int, str]:
        body = {
            "model": ("tiny/crowd", "crowd")[number % 2],
            "messages": MESSAGES,
            "max_tokens": 6,
            "stream": number % 4 < 2,
        }
        answer = await http.post(f"{stack.url}/v1/chat/completions", json=body)
        if not body["stream"]:
            assert answer.status_code == 200, answer.text
            return answer.status_code, answer.json()["choices"][0]["message"]["content"]
        lines = [json.loads(x[6:]) for x in answer.text.splitlines() if x.startswith("data: {")]
        assert answer.text.rstrip().endswith("data: [DONE]")
        return answer.status_code, "".join(x["choices"][0]["delta"].get("content") or "" for x in lines)

    async def all_at_once() -> list[tuple[int, str]]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(timeout=60, limits=limits, trust_env=False) as http:
            return await asyncio.gather(*(one(http, n) for n in range(200)))

    answers = asyncio.run(all_at_once())

    assert Counter(status for status, _ in answers) == {200: 200}
    assert all(words(text) <= words(ALPHA) for _, text in answers)
    assert stack.spawned("tiny/crowd") == 1


@pytest.mark.long
def test_an_idle_function_is_reaped_and_starts_again(stack: Stack) -> None:
    first = stack.chat("fake/reaped")
    loaded = stack.http.get("/v1/models/fake/reaped").json()
    stack.until("fake/reaped", "cold")
    reaped = stack.http.get("/v1/models/fake%2Freaped").json()

    second = stack.chat("fake/reaped")

    assert (first.status_code, second.status_code) == (200, 200)
    assert (first.headers["x-cortex-start"], second.headers["x-cortex-start"]) == ("cold", "cold")
    assert (loaded["loaded"], loaded["state"], loaded["locations"][0]["status"]) == (True, "ready", "loaded")
    assert (reaped["loaded"], reaped["state"], reaped["locations"]) == (False, "cold", [])
    assert stack.spawned("fake/reaped") == 2


def test_warm_starts_and_cool_ends_a_function(stack: Stack) -> None:
    warmed = stack.cli("fn", "warm", "steps", "--wait")
    listed = json.loads(stack.cli("fn", "ls", "--json").stdout)
    row = next(r for r in listed if r["id"] == "fake/steps")
    hot = stack.chat("fake/steps")
    cooled = stack.cli("fn", "cool", "fake/steps")

    assert (warmed.returncode, warmed.stdout) == (0, "fake/steps: ready\n")
    assert (row["state"], row["aliases"], row["instances"][0]["host"]) == ("ready", ["steps"], "here")
    assert (hot.headers["x-cortex-start"], hot.json()["choices"][0]["message"]["content"]) == (
        "hot",
        "one two three",
    )
    assert (cooled.returncode, cooled.stdout) == (0, "fake/steps: cold\n")
    assert stack.function("fake/steps")["instances"] == []


def test_fn_ls_prints_a_table_without_escape_codes_in_a_pipe(stack: Stack) -> None:
    listed = stack.cli("fn", "ls")

    assert listed.returncode == 0
    assert "\x1b" not in listed.stdout
    assert re.search(r"^FUNCTION +ALIASES +ENGINE +STATE", listed.stdout)
    assert "tiny/alpha" in listed.stdout


def test_warm_of_an_unknown_name_exits_with_4(stack: Stack) -> None:
    warmed = stack.cli("fn", "warm", "fake/stepps")

    assert warmed.returncode == 4
    assert "did you mean" in warmed.stderr


def test_warm_of_a_function_that_cannot_start_exits_with_1_and_the_last_lines(stack: Stack) -> None:
    warmed = stack.cli("fn", "warm", "fake/dies", "--wait")

    assert warmed.returncode == 1
    assert "exited with code 3 while starting" in " ".join(warmed.stderr.split())
    assert "wrong kind of weights" in warmed.stderr


def test_a_client_that_disconnects_during_a_cold_start_does_not_affect_others(stack: Stack) -> None:
    with ThreadPoolExecutor() as pool:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{stack.url}/v1/chat/completions",
                json={"model": "fake/slow", "messages": MESSAGES},
                timeout=0.7,
                trust_env=False,
            )
        others = [pool.submit(stack.chat, "fake/slow", stream=streamed) for streamed in (False, True, False)]

        assert [o.result().status_code for o in others] == [200, 200, 200]
    assert stack.spawned("fake/slow") == 1


def test_a_start_continues_after_its_only_client_disconnects(stack: Stack) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{stack.url}/v1/chat/completions",
            json={"model": "fake/slow-alone", "messages": MESSAGES},
            timeout=0.7,
            trust_env=False,
        )

    stack.until("fake/slow-alone", "ready")


def test_a_client_that_disconnects_during_a_stream_frees_the_worker(stack: Stack) -> None:
    body = {"model": "fake/streams", "messages": MESSAGES, "stream": True}
    with stack.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(line for line in lines if line.startswith("data: "))
        eventually(lambda: stack.function("fake/streams")["in_flight"] == 1, what="one in flight")
        left = time.monotonic()

    eventually(lambda: stack.function("fake/streams")["in_flight"] == 0, within_s=3, what="none in flight")
    metrics = httpx.get(f"{stack.instance('fake/streams')['url']}/metrics").text
    assert "vllm:num_requests_running" in metrics
    assert re.search(r"^vllm:num_requests_running\S* 0(\.0)?$", metrics, re.M), time.monotonic() - left


def test_a_client_that_disconnects_from_an_unstreamed_request_frees_the_worker(stack: Stack) -> None:
    # Not by the command line: a worker that hangs is stopped when it idles, and a command takes its time.
    assert stack.http.post("/admin/functions/fake/hangs/warm").status_code == 200
    stack.until("fake/hangs", "ready")
    url = stack.instance("fake/hangs")["url"]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{stack.url}/v1/chat/completions",
            json={"model": "fake/hangs", "messages": MESSAGES},
            timeout=0.5,
            trust_env=False,
        )

    def running() -> str:
        match = re.search(r"^vllm:num_requests_running\S* (\S+)$", httpx.get(f"{url}/metrics").text, re.M)
        return match[1] if match else ""

    eventually(lambda: float(running()) == 0, within_s=1, what="the worker to be free")
    stack.cool("fake/hangs")


def test_a_stream_that_breaks_off_ends_with_an_error_event_and_without_done(stack: Stack) -> None:
    answer = stack.chat("fake/cut", stream=True)

    events = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    assert answer.status_code == 200
    assert json.loads(events[-1][6:])["error"]["code"] == "worker_error"
    assert "[DONE]" not in answer.text


def test_the_openai_sdk_raises_for_a_stream_that_breaks_off(stack: Stack) -> None:
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)

    with pytest.raises(openai.APIError, match="broke off"):
        list(client.chat.completions.create(model="fake/cut", messages=MESSAGES, stream=True))


def test_a_full_queue_answers_429_with_retry_after(stack: Stack) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = [f.result() for f in [pool.submit(stack.chat, "fake/small-queue") for _ in range(20)]]

    refused = [a for a in answers if a.status_code == 429]
    assert {a.status_code for a in answers} == {200, 429}
    assert 20 - len(refused) >= 2  # two per router worker wait
    assert refused[0].headers["retry-after"].isdigit()
    assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"


def test_a_start_over_the_time_limit_answers_503_and_continues(stack: Stack) -> None:
    answer = stack.chat("fake/impatient")

    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "model_loading"
    assert "starting on here" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"].isdigit()
    stack.until("fake/impatient", "ready")


def test_a_held_stream_gets_keep_alives_within_a_second(stack: Stack) -> None:
    stack.cool("fake/slow")
    body = {"model": "fake/slow", "messages": MESSAGES, "stream": True}
    with stack.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = [line for line in answer.iter_lines() if line]

    assert answer.status_code == 200
    assert lines[0].startswith(":")
    assert lines[1].startswith("data: {")
    assert lines[-1] == "data: [DONE]"
