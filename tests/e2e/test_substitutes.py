"""A warm function answers for an alias while the alias's own starts; from then on the own one answers."""

import time
from typing import Any

import anthropic
import openai
import pytest

from tests.e2e.workers import EMPTY
from tests.support.catalogues import fake
from tests.support.stack import Stack, eventually

pytestmark = EMPTY

LOAD_S = 4
ALIASES = """
[aliases]
"assistant" = { use = "big", on_cold = { use = "small", within_s = 2 } }
"alone" = "big"
"brief" = { use = "quick", on_cold = { use = "small", within_s = 20 } }
"""
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TOOL = {"type": "function", "function": {"name": "ls", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def question(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A question that begins a conversation of this test alone."""
    return {"role": "user", "content": f"What is here? ({request.node.name})"}


@pytest.fixture(scope="module")
def fleet(empty_stack: Stack) -> Stack:
    """A running cortex in which `small` is warm, and `big` loads for some seconds."""
    catalogue = (
        fake("big", "--load-s", str(LOAD_S), "--call-tool", vram_mb=1000, idle_after_s=600, vision=True)
        + fake("small", "--call-tool", vram_mb=1000, min=1, vision=False)
        + fake("quick", "--load-s", "0.5", vram_mb=1000, idle_after_s=600)
        + ALIASES
    )
    empty_stack.serve(catalogue)
    empty_stack.until("small", "ready")
    return empty_stack


@pytest.fixture
def stack(fleet: Stack) -> Stack:
    """The running cortex, in which `big` and `quick` are cold."""
    for name in ("big", "quick"):
        fleet.http.post(f"/admin/functions/{name}/cool", params={"now": 1}).raise_for_status()
        fleet.until(name, "cold")
    return fleet


def ask(stack: Stack, *messages: dict[str, Any], model: str = "assistant", **more: Any) -> Any:
    return stack.http.post("/v1/chat/completions", json={"model": model, "messages": messages, **more})


def test_the_warm_one_answers_at_once_and_is_promoted_once_the_big_one_is_ready(
    stack: Stack, question: dict[str, Any]
) -> None:
    began, starts = time.monotonic(), stack.spawned("big")
    first = ask(stack, question, temperature=0)
    took_s = time.monotonic() - began
    streamed = stack.http.post(
        "/v1/chat/completions", json={"model": "assistant", "messages": [question], "stream": True}
    )
    eventually(lambda: stack.state("big") == "starting", what="the big one to be warmed")
    stack.until("big", "ready")
    later = ask(stack, question, {"role": "assistant", "content": "."}, question)
    stack.http.post("/admin/functions/big/cool")
    again = ask(stack, question, {"role": "assistant", "content": "."}, question)
    receipts = stack.http.get("/admin/decisions", params={"limit": 500, "function": "big"}).json()["decisions"]

    assert took_s < 2
    assert (first.headers["x-cortex-substitute"], first.headers["x-cortex-function"]) == ("small", "small")
    assert streamed.headers["x-cortex-substitute"] == "small"
    assert first.json()["model"] == "small"
    assert (later.headers["x-cortex-function"], "x-cortex-substitute" in later.headers) == ("big", False)
    assert (again.headers["x-cortex-function"], "x-cortex-substitute" in again.headers) == ("big", False)
    (receipt, *_) = [r for r in receipts if r["what"] == "substituted"]
    assert receipt["why"] == "it was not ready: small answered in its place"
    assert stack.spawned("big") == starts + 2


def test_only_the_alias_with_a_substitute_has_one(stack: Stack, question: dict[str, Any]) -> None:
    answer = ask(stack, question, model="alone")

    assert (answer.headers["x-cortex-function"], "x-cortex-substitute" in answer.headers) == ("big", False)


def test_a_tool_loop_of_the_openai_sdk_is_never_continued_by_the_substitute(
    stack: Stack, question: dict[str, Any]
) -> None:
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)
    messages: list[Any] = [question]
    tools: list[Any] = [TOOL]

    first = client.chat.completions.with_raw_response.create(model="assistant", messages=messages, tools=tools)
    calls: Any = first.parse().choices[0].message.tool_calls
    (call,) = calls
    messages += [first.parse().choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "a.txt"}]
    second = client.chat.completions.with_raw_response.create(model="assistant", messages=messages, tools=tools)

    assert first.headers["x-cortex-function"] == "small"
    assert (second.headers["x-cortex-function"], second.headers["x-cortex-start"]) == ("big", "cold")
    assert "x-cortex-substitute" not in second.headers


@pytest.mark.long
def test_a_tool_loop_of_anthropics_sdk_is_never_continued_by_the_substitute(
    stack: Stack, question: dict[str, Any]
) -> None:
    client = anthropic.Anthropic(base_url=stack.url, api_key="none", max_retries=0)
    messages: list[Any] = [question]
    tools: list[Any] = [{"name": "ls", "input_schema": {"type": "object", "properties": {}}}]

    first = client.messages.with_raw_response.create(model="assistant", max_tokens=50, messages=messages, tools=tools)
    (use,) = [part for part in first.parse().content if part.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "a.txt"}
    messages += [{"role": "assistant", "content": first.parse().content}, {"role": "user", "content": [result]}]
    second = client.messages.with_raw_response.create(model="assistant", max_tokens=50, messages=messages, tools=tools)

    assert first.headers["x-cortex-substitute"] == "small"
    assert second.headers["x-cortex-function"] == "big"
    assert "x-cortex-substitute" not in second.headers


@pytest.mark.long
def test_a_function_that_is_expected_within_the_time_is_waited_for(stack: Stack, question: dict[str, Any]) -> None:
    unknown = ask(stack, question, model="brief")
    stack.until("quick", "ready")
    eventually(lambda: stack.function("quick")["expected_start_s"], what="the ledger to have its start")
    stack.cli("fn", "cool", "quick")

    known = ask(stack, {"role": "user", "content": "Another question."}, model="brief")

    assert unknown.headers["x-cortex-function"] == "small"
    assert (known.headers["x-cortex-function"], known.headers["x-cortex-start"]) == ("quick", "cold")


@pytest.mark.long
def test_what_the_substitute_cannot_answer_waits_for_the_big_one(stack: Stack) -> None:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}

    answer = ask(stack, {"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]})

    assert answer.status_code == 200, answer.text
    assert (answer.headers["x-cortex-function"], "x-cortex-substitute" in answer.headers) == ("big", False)
