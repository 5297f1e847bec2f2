"""Every dialect over real HTTP, with the real SDKs, on the fake engine's shapes and the real llama.cpp."""

import base64
import gzip
import http.client
import json
import re
import struct
import threading
import time
from itertools import pairwise
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.e2e.conftest import ALPHA
from tests.e2e.test_first_light import words
from tests.e2e.workers import ONE
from tests.support.stack import Stack, eventually

pytestmark = pytest.mark.parametrize("stack", [ONE], indirect=True)

USER: Any = [{"role": "user", "content": "Hello there!"}]
TOOLS: Any = [
    {
        "name": "look",
        "description": "Look at something.",
        "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    }
]


@pytest.fixture
def claude(stack: Stack) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=stack.url, api_key="none", max_retries=0)


@pytest.fixture
def gpt(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)


def test_messages_of_a_real_worker_streamed_and_unstreamed(claude: anthropic.Anthropic) -> None:
    plain = claude.messages.create(model="small", messages=USER, max_tokens=12)
    with claude.messages.stream(model="small", messages=USER, max_tokens=12) as stream:
        streamed = stream.get_final_message()

    for answer in (plain, streamed):
        assert answer.model == "small"  # the requested name
        assert answer.stop_reason in ("end_turn", "max_tokens")
        assert words(answer.content[0].text) <= words(ALPHA)  # type: ignore[union-attr]
        assert answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) > 0
        assert answer.usage.output_tokens > 0


def test_responses_of_a_real_worker_streamed_and_unstreamed(gpt: openai.OpenAI) -> None:
    plain = gpt.responses.create(model="small", input="Hello there!")
    with gpt.responses.stream(model="small", input="Hello there!") as stream:
        streamed = stream.get_final_response()

    for answer in (plain, streamed):
        assert answer.status == "completed"
        assert words(answer.output_text) <= words(ALPHA)
        assert answer.usage is not None
        assert answer.usage.output_tokens > 0


@pytest.mark.long
def test_a_native_dialect_is_served_by_the_engine(
    stack: Stack, claude: anthropic.Anthropic, gpt: openai.OpenAI
) -> None:
    plain = claude.messages.create(model="tiny/native", messages=USER, max_tokens=12)
    with claude.messages.stream(model="tiny/native", messages=USER, max_tokens=12) as stream:
        streamed = stream.get_final_message()
    responses = gpt.responses.create(model="tiny/native", input="Hello there!")
    body = {"model": "tiny/native", "messages": [{"role": "user", "content": 7}], "max_tokens": 5}
    refused = stack.http.post("/v1/messages", json=body)

    for answer in (plain, streamed):
        assert words(answer.content[0].text) <= words(ALPHA)  # type: ignore[union-attr]
        assert answer.usage.output_tokens > 0
    assert words(responses.output_text) <= words(ALPHA)
    assert (refused.status_code, refused.json()["type"]) == (400, "error")


def test_case_24_counting_tokens_gives_what_the_usage_gives_and_starts_nothing(
    stack: Stack, claude: anthropic.Anthropic
) -> None:
    answer = claude.messages.create(model="small", messages=USER, max_tokens=1, system="Be brief.")
    counted = claude.messages.count_tokens(model="small", messages=USER, system="Be brief.")
    body = {"model": "fake/cold", "messages": USER}
    stack.cool("fake/cold")
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(stack.http.post("/v1/messages/count_tokens?beta=true", json=body))
        )
        for _ in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert counted.input_tokens == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
    assert {a.status_code for a in answers} == {200}
    assert {a.headers["x-cortex-estimate"] for a in answers} == {"true"}
    assert stack.state("fake/cold") == "cold"


def test_case_20_what_does_not_fit_is_refused_with_the_workers_own_numbers(claude: anthropic.Anthropic) -> None:
    def prompt(words: int) -> Any:
        return [{"role": "user", "content": "Alpha " * words}]

    claude.messages.create(model="tiny/crowd", messages=USER, max_tokens=1)
    few = claude.messages.count_tokens(model="tiny/crowd", messages=prompt(1000)).input_tokens
    words = 1000 + 4096 - 200 - few  # leaves 200 tokens
    counted = claude.messages.count_tokens(model="tiny/crowd", messages=prompt(words)).input_tokens

    with pytest.raises(anthropic.BadRequestError) as together:
        claude.messages.create(model="tiny/crowd", messages=prompt(words), max_tokens=16000)
    with pytest.raises(anthropic.BadRequestError) as alone:
        claude.messages.create(model="tiny/crowd", messages=prompt(9000), max_tokens=10)
    again = claude.messages.create(model="tiny/crowd", messages=prompt(words), max_tokens=4096 - counted)
    clamped = claude.messages.create(model="tiny/clamps", messages=USER, max_tokens=16000)

    assert f"exceed context limit: {counted} + 16000 > 4096, decrease" in str(together.value)
    assert re.search(r"prompt is too long: \d{4,} tokens > 4096 maximum", str(alone.value))
    assert again.usage.input_tokens + (again.usage.cache_read_input_tokens or 0) == counted
    assert clamped.stop_reason in ("end_turn", "max_tokens")


def test_a_limit_above_the_context_is_cut_to_the_room_in_every_dialect(stack: Stack) -> None:
    user, limit = [{"role": "user", "content": "Hello"}], 10**6
    body: dict[str, Any] = {
        "chat/completions": {"messages": user, "max_completion_tokens": limit},
        "completions": {"prompt": ["Alpha", "Amber"], "max_tokens": limit},
        "responses": {"input": "Hello", "max_output_tokens": limit},
        "messages": {"messages": user, "max_tokens": limit},
    }
    stack.chat("tiny/crowd")

    answers = {path: stack.http.post(f"/v1/{path}", json={"model": "tiny/crowd", **b}) for path, b in body.items()}

    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(body, 200)


@pytest.mark.parametrize("streamed", [False, True])
def test_case_15_a_tool_whose_schema_the_worker_cannot_say_is_called_all_the_same(stack: Stack, streamed: bool) -> None:
    schema = {"type": "object", "properties": {"at": {"type": "string", "pattern": "^(?=a)b"}}, "required": ["at"]}
    tools = [{"name": "look", "input_schema": schema}]
    body = {"model": "fake/pattern", "messages": USER, "max_tokens": 50, "tools": tools, "stream": streamed}

    answer = stack.http.post("/v1/messages", json=body)

    assert answer.status_code == 200
    assert '"tool_use"' in answer.text


@pytest.mark.parametrize("model", ["fake/tools", "fake/tools-llama"])
def test_a_tool_round_trip_in_messages(claude: anthropic.Anthropic, model: str) -> None:
    first = claude.messages.create(model=model, messages=USER, tools=TOOLS, max_tokens=100)
    (call,) = [b for b in first.content if b.type == "tool_use"]
    history: Any = [
        *USER,
        {"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in first.content]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "a gull"}]},
    ]

    second = claude.messages.create(model=model, messages=history, tools=TOOLS, max_tokens=100)

    assert (first.stop_reason, call.name) == ("tool_use", "look")
    assert second.stop_reason == "end_turn"


def test_the_reasoning_of_a_model_is_in_thinking_blocks(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model="fake/thinks", messages=USER, max_tokens=100) as stream:
        kinds = [b.type for b in stream.get_final_message().content]

    assert kinds == ["thinking", "text"]


def test_case_40_a_held_message_stream_is_opened_and_pinged(stack: Stack) -> None:
    stack.cool("fake/wakes")
    body = {"model": "fake/wakes", "messages": USER, "max_tokens": 5, "stream": True}

    events = [x for x in stack.http.post("/v1/messages", json=body).text.splitlines() if x.startswith("event: ")]

    assert events[:2] == ["event: message_start", "event: ping"]
    assert events.count("event: message_start") == 1
    assert events[-1] == "event: message_stop"


def test_a_held_response_stream_gets_real_events(stack: Stack) -> None:
    stack.cool("fake/wakes")
    body = {"model": "fake/wakes", "input": "x", "stream": True}

    lines = stack.http.post("/v1/responses", json=body).text.splitlines()
    events = [x.removeprefix("event: ") for x in lines if x.startswith("event: ")]

    assert events[0] == "response.created"
    assert events[-1] == "response.completed"


def test_case_37_a_worker_that_breaks_off_is_an_error_in_every_dialect(stack: Stack) -> None:
    chat = stack.chat("fake/cut", stream=True).text
    messages = stack.http.post(
        "/v1/messages", json={"model": "fake/cut", "messages": USER, "max_tokens": 50, "stream": True}
    ).text
    responses = stack.http.post("/v1/responses", json={"model": "fake/cut", "input": "x", "stream": True}).text

    assert '"error"' in chat.splitlines()[-2]
    assert "[DONE]" not in chat
    assert "event: error" in messages
    assert "message_stop" not in messages
    assert "event: response.failed" in responses
    assert "response.completed" not in responses


def test_errors_have_the_form_of_the_paths_dialect(stack: Stack, claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        claude.messages.create(model="tiny/alfa", messages=USER, max_tokens=5)
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model="small", messages="x", max_tokens=5)  # type: ignore[arg-type]
    failed = stack.http.post("/v1/messages", json={"model": "fake/dies", "messages": USER, "max_tokens": 5})
    lost = stack.http.get("/v1/messages/nowhere")
    method = stack.http.get("/v1/messages")

    assert "model: tiny/alfa" in str(unknown.value)
    assert (failed.status_code, failed.json()["type"], failed.json()["error"]["type"]) == (503, "error", "api_error")
    assert failed.json()["request_id"] == failed.headers["request-id"]
    assert (lost.status_code, lost.json()["error"]["type"]) == (404, "not_found_error")
    assert (method.status_code, method.json()["type"]) == (405, "error")


def test_case_60_models_are_listed_in_the_callers_dialect(claude: anthropic.Anthropic, gpt: openai.OpenAI) -> None:
    page = claude.models.list(limit=3)
    one = claude.models.retrieve("tiny/bravo")
    ids = [m.id for m in gpt.models.list()]

    assert [m.id for m in page.data] == ids[:3]
    assert (one.id, one.type) == ("tiny/bravo", "model")
    assert [m.id for m in claude.models.list(limit=5)][-1] == ids[-1]  # it follows the pages


def test_case_60_a_cold_model_is_described_from_its_weights_and_a_warm_one_by_its_worker(stack: Stack) -> None:
    def described(model: str) -> dict[str, Any]:
        return dict(stack.http.get(f"/v1/models/{model}").json())

    eventually(lambda: "max_model_len" in described("tiny/killed"), what="the weights to be read")
    stack.chat("tiny/crowd", max_tokens=1)
    eventually(lambda: described("tiny/crowd")["loaded"], what="it to be loaded")
    cold, warm = described("tiny/killed"), described("tiny/crowd")
    shape = {"anthropic-version": "2023-06-01"}

    assert (cold["max_model_len"], cold["tool_call"], cold["reasoning"]) == (32768, False, False)
    assert cold["capabilities"] == ["text"]
    assert warm["max_model_len"] == 4096
    assert stack.http.get("/v1/models/tiny/crowd", headers=shape).json()["max_input_tokens"] == 4096


def test_case_59_embeddings_come_as_the_client_asked(stack: Stack, gpt: openai.OpenAI) -> None:
    packed = gpt.embeddings.create(model="fake/echo", input=["one", "two"])
    plain = stack.http.post("/v1/embeddings", json={"model": "fake/echo", "input": "one"}).json()
    raw = stack.http.post(
        "/v1/embeddings", json={"model": "fake/echo", "input": "one", "encoding_format": "base64"}
    ).json()

    numbers = plain["data"][0]["embedding"]
    unpacked = struct.unpack(f"<{len(numbers)}f", base64.b64decode(raw["data"][0]["embedding"]))
    assert len(packed.data) == 2
    assert packed.data[0].embedding == pytest.approx(numbers, rel=1e-5)
    assert list(unpacked) == pytest.approx(numbers, rel=1e-5)


def test_case_54_usage_is_shown_only_to_whom_asked(stack: Stack) -> None:
    silent = stack.chat("fake/echo", stream=True).text
    request = stack.chat("fake/echo", stream=True, stream_options={"include_usage": True}).text

    assert '"choices":[]' not in silent.replace(" ", "")
    assert json.loads(request.strip().splitlines()[-3].removeprefix("data: "))["usage"]["completion_tokens"] > 0


def test_case_62_a_gzip_body_is_served_and_another_encoding_is_refused(stack: Stack) -> None:
    body = json.dumps({"model": "fake/echo", "messages": [{"role": "user", "content": "hi"}]}).encode()

    zipped = stack.http.post("/v1/chat/completions", content=gzip.compress(body), headers={"content-encoding": "gzip"})
    other = stack.http.post("/v1/chat/completions", content=body, headers={"content-encoding": "br"})

    assert zipped.status_code == 200
    assert (other.status_code, "gzip" in other.json()["error"]["message"]) == (415, True)


@pytest.mark.parametrize(("encoding", "status"), [("br", 415), ("gzip, gzip", 415), ("gzip", 400), ("zstd", 400)])
def test_case_62_bodies_that_cannot_be_unpacked_are_refused_clearly(stack: Stack, encoding: str, status: int) -> None:
    answer = stack.http.post("/v1/chat/completions", content=b"\x1f\x8b", headers={"content-encoding": encoding})

    assert answer.status_code == status
    assert encoding in answer.json()["error"]["message"]


PNG_URL = "data:image/png;base64,%%%"
BAD: list[tuple[str, Any, str]] = [
    ("messages", {"messages": "x", "max_tokens": 5}, "messages"),
    ("messages", {"messages": USER}, "max_tokens"),
    ("messages", {"messages": USER, "max_tokens": -1}, "max_tokens"),
    ("messages", {"messages": USER, "max_tokens": 10**30}, "max_tokens"),
    ("messages", {"messages": USER, "max_tokens": 5, "tools": [{"name": 7}]}, "tools[0]"),
    (
        "messages",
        {
            "max_tokens": 5,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "%%%"}}
                    ],
                }
            ],
        },
        "messages[0].content[0]",
    ),
    ("responses", {"input": 7}, "input"),
    ("responses", {"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    ("responses", {"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
    ("chat/completions", {"messages": [{"role": 7}]}, "messages[0].role"),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG_URL}}]}]},
        "messages[0].content[0].image_url",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}]}]},
        "messages[0].content[0].image_url",
    ),
    ("embeddings", {"input": {"a": 1}}, "input"),
    ("rerank", {"query": "x", "documents": 7}, "documents"),
]


def test_an_invalid_field_is_rejected_by_name(stack: Stack) -> None:
    for path, fields, named in BAD:
        answer = stack.http.post(f"/v1/{path}", json={"model": "fake/echo", **fields})

        assert answer.status_code == 400, (path, fields, answer.text)
        assert named in answer.json()["error"]["message"], (path, answer.text)


@pytest.mark.parametrize("path", ["messages", "responses", "chat/completions", "completions", "embeddings", "rerank"])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"model": "\xff"}', b'{"a":' * 3000, b'{"model":"fake/echo","x":' + b"[" * 100_000],
    ids=["empty", "open", "list", "null", "not UTF-8", "deep", "deeper"],
)
def test_an_invalid_request_is_rejected_and_others_are_served(stack: Stack, path: str, body: bytes) -> None:
    answer = stack.http.post(f"/v1/{path}", content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_case_62_a_body_of_a_hundred_megabytes_is_refused_in_the_dialects_own_words(stack: Stack) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=20)
    connection.putrequest("POST", "/v1/messages")
    connection.putheader("Content-Length", str(100 << 20))
    connection.endheaders()  # not a byte of it: it is refused before it comes
    answer = connection.getresponse()

    assert (answer.status, json.loads(answer.read())["error"]["type"]) == (413, "request_too_large")


def test_case_38_a_worker_that_fails_before_its_first_byte_has_a_proper_status(stack: Stack) -> None:
    stack.chat("fake/fails")  # brings it up
    body = {"model": "fake/fails", "messages": USER, "max_tokens": 5, "input": "x", "stream": True}

    answers = {p: stack.http.post(f"/v1/{p}", json=body) for p in ("messages", "chat/completions", "responses")}

    assert {p: a.status_code for p, a in answers.items()} == dict.fromkeys(answers, 502)
    assert all("The script says so." in a.json()["error"]["message"] for a in answers.values())
    assert answers["messages"].json()["type"] == "error"


@pytest.mark.parametrize("path", ["messages", "chat/completions", "responses"])
def test_case_41_pieces_are_sent_on_as_they_come_and_no_proxy_may_hold_them(stack: Stack, path: str) -> None:
    stack.chat("fake/streams", max_tokens=1)  # brings it up
    body = {"model": "fake/streams", "messages": USER, "max_tokens": 400, "input": "x", "stream": True}
    came: list[float] = []

    with stack.http.stream("POST", f"/v1/{path}", json=body) as answer:
        for line in answer.iter_lines():
            if "delta" in line and line.startswith("data:"):
                came.append(time.monotonic())
            if len(came) > 12:
                break

    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    # Twenty tokens per second: ten of them take half a second unless they are buffered.
    assert came[-1] - came[2] > 0.4
    assert max(b - a for a, b in pairwise(came[2:])) < 1.0


def test_case_63_an_unknown_model_fails_the_same_streamed_and_not(stack: Stack) -> None:
    answers = [
        stack.http.post("/v1/messages", json={"model": "no", "messages": USER, "max_tokens": 5, "stream": streamed})
        for streamed in (True, False)
    ]

    assert [a.status_code for a in answers] == [404, 404]
    assert answers[0].json()["error"] == answers[1].json()["error"]


def test_case_39_a_client_of_messages_that_leaves_stops_the_worker(stack: Stack) -> None:
    body = {"model": "fake/streams", "messages": USER, "max_tokens": 4000, "stream": True}
    with stack.http.stream("POST", "/v1/messages", json=body) as answer:
        lines = answer.iter_lines()
        next(line for line in lines if "content_block_delta" in line)

    eventually(lambda: stack.function("fake/streams")["in_flight"] == 0, within_s=3, what="none in flight")
