"""A plain answer put together from a stream equals the one the worker gives by itself."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.platform.weights.demo_model import write_bigram
from cortex.router.dialects.chat.stream import Reply
from cortex.router.dialects.core.errors import BadAnswer
from cortex.router.request.assemble import Assembly, BadStream, CutStream, streaming_request
from tests.support.stack import eventually, free_port

ASK: dict[str, Any] = {"model": "tiny", "max_tokens": 8, "temperature": 0, "seed": 1}
CHAT = {**ASK, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    path, port = tmp_path_factory.mktemp("w") / "tiny.gguf", free_port()
    write_bigram(path, "Alpha bravo. Alpha charlie. Delta bravo.", name="tiny")
    program = [sys.executable, "-m", "cortex.platform.workers.llama_server", "--model", str(path), "--alias", "tiny"]
    process = subprocess.Popen(
        [*program, "--host", "127.0.0.1", "--port", str(port), "--parallel", "2", "--ctx-size", "2048"],
        env={**os.environ, "LLAMA_API_KEY": "k"},
        stderr=subprocess.DEVNULL,
    )
    # A connection of its own for each request: the worker closes idle ones, and on a busy machine just before one.
    fresh = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": "Bearer k"}, limits=fresh) as http:
        try:
            eventually(lambda: healthy(http), what="the worker")
            yield http
        finally:
            process.kill()
            process.wait()


def healthy(http: httpx.Client) -> bool:
    try:
        return http.get("/health").status_code == 200
    except httpx.HTTPError:
        return False


def without_chance(answer: dict[str, Any]) -> dict[str, Any]:
    """Drop what differs from one call to the next, streamed or not."""
    answer["usage"].pop("prompt_tokens_details", None)
    return {k: v for k, v in answer.items() if k not in ("id", "created", "timings")}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "n": 2}),
        ("/v1/completions", {**ASK, "prompt": "Alpha"}),
    ],
    ids=["chat", "two-choices", "completion"],
)
def test_it_equals_the_workers_own_plain_answer(worker: httpx.Client, path: str, body: dict[str, Any]) -> None:
    plain = worker.post(path, json=body).json()
    assembly = Assembly()
    streaming = bytes(streaming_request(json.dumps(body).encode()) or b"")

    assembly.feed(worker.post(path, content=streaming).content)

    assert without_chance(json.loads(assembly.close())) == without_chance(plain)


@pytest.mark.parametrize("prompts", [["Alpha", "Delta"], [[1, 2], [3]]], ids=["texts", "token-ids"])
def test_several_prompts_are_answered_as_by_the_worker_and_counted_together(
    worker: httpx.Client, prompts: list[Any]
) -> None:
    body = {**ASK, "prompt": prompts}
    plain = worker.post("/v1/completions", json=body).json()
    alone = [worker.post("/v1/completions", json={**body, "prompt": one}).json()["usage"] for one in prompts]
    assembly, reply = Assembly(), Reply(id="c", model="tiny", choices=2).stream()
    streamed = worker.post(
        "/v1/completions", content=bytes(streaming_request(json.dumps(body).encode()) or b"")
    ).content

    assembly.feed(streamed)
    reply.feed(streamed)

    whole = json.loads(assembly.close())
    assert whole["choices"] == plain["choices"]
    for name in ("prompt_tokens", "completion_tokens"):
        assert whole["usage"][name] == sum(usage[name] for usage in alone)
    assert (reply.tokens.input, reply.tokens.output) == (
        whole["usage"]["prompt_tokens"],
        whole["usage"]["completion_tokens"],
    )


def drive(chunks: list[dict[str, Any]], step: int) -> dict[str, Any]:
    wire = b"".join(b"data: " + json.dumps(c).encode() + b"\n\n" for c in chunks) + b"data: [DONE]\n\n"
    assembly = Assembly()
    for at in range(0, len(wire), step):
        assembly.feed(wire[at : at + step])
    whole: dict[str, Any] = json.loads(assembly.close())
    return whole


def a_chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice]}


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_calls_are_merged_by_index_wherever_the_wire_is_cut(step: int) -> None:
    def call(index: int, **rest: Any) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, **rest}]}

    chunks = [
        a_chunk({"role": "assistant", "content": None, "reasoning_content": "hm"}),
        a_chunk({"reasoning_content": "m"}),
        a_chunk(call(0, id="a", type="function", function={"name": "f", "arguments": ""})),
        a_chunk(call(1, id="b", type="function", function={"name": "g", "arguments": "{}"})),
        a_chunk(call(0, function={"arguments": '{"x":'})),
        a_chunk(call(0, function={"arguments": "1}"})),
        a_chunk({}, "tool_calls"),
    ]

    (choice,) = drive(chunks, step)["choices"]

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hmm",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }


@pytest.mark.parametrize("delta", [{}, {"content": None}, {"role": "assistant", "content": ""}])
def test_the_text_of_an_answer_without_words_is_empty(delta: dict[str, Any]) -> None:
    (choice,) = drive([a_chunk(delta), a_chunk({}, "stop")], 100)["choices"]

    assert choice["message"] == {"role": "assistant", "content": ""}


def test_the_stream_of_several_prompts_begins_with_null() -> None:
    texts = [{"index": i, "text": t, "finish_reason": f} for i, t, f in [(0, "a", None), (1, "b", "stop")]]
    wire = b"".join(b"data: " + json.dumps({"choices": [c]}).encode() + b"\n\n" for c in texts)
    assembly = Assembly()

    assembly.feed(b"data: null\n\n" + wire + b"data: [DONE]\n\n")

    assert [c["text"] for c in json.loads(assembly.close())["choices"]] == ["a", "b"]


@pytest.mark.parametrize("first", [5, {"cached_tokens": 5}])
def test_usages_of_several_prompts_that_differ_in_kind_do_not_end_the_answer(first: Any) -> None:
    second = {"cached_tokens": 5} if first == 5 else 5
    usages = [{"prompt_tokens": 1, "prompt_tokens_details": details} for details in (first, second)]
    texts = [{"index": i, "text": "x", "finish_reason": "stop"} for i in (0, 1)]

    whole = drive([{"choices": [text], "usage": usage} for text, usage in zip(texts, usages, strict=True)], 100)

    assert whole["usage"] == {"prompt_tokens": 2, "prompt_tokens_details": first}


def test_a_stream_without_its_end_is_no_answer() -> None:
    assembly = Assembly()
    assembly.feed(b'data: {"choices":[{"index":0,"delta":{"content":"half"}}]}\n\n')

    with pytest.raises(CutStream, match="without an end"):
        assembly.close()


def test_the_workers_own_error_is_kept() -> None:
    with pytest.raises(BadStream) as raised:
        Assembly().feed(b'data: {"error":{"code":400,"message":"too long","type":"x"}}\n\n')

    assert raised.value.error == {"code": 400, "message": "too long", "type": "x"}


@pytest.mark.parametrize(
    "chunk",
    [
        5,
        {"choices": 5},
        {"choices": [5]},
        {"choices": [{"index": -1, "delta": {}}]},
        {"choices": [{"index": [], "delta": {}}]},
        {"choices": [{"index": 10**9, "delta": {}}]},
        {"choices": [{"delta": "text"}]},
        {"choices": [{"text": 5}]},
        {"choices": [{"message": 5}, {"delta": {"content": "x"}}]},
        {"choices": [{"delta": {"tool_calls": 5}}]},
        {"choices": [{"delta": {"tool_calls": [5]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 10**9}]}}]},
        {"choices": [{"delta": {"parts": [1] * 60_000}}, {"delta": {"parts": [1] * 60_000}}]},
        [],
    ],
)
def test_a_chunk_that_is_no_part_of_an_answer_ends_it(chunk: Any) -> None:
    with pytest.raises(BadStream):
        Assembly().feed(b"data: " + json.dumps(chunk).encode() + b"\n\n")


def test_a_stream_nested_too_deeply_ends_the_answer() -> None:
    deep = b'{"a":' * 5000 + b"1" + b"}" * 5000

    with pytest.raises(BadStream, match="too deep"):
        Assembly().feed(b'data: {"choices":[{"index":0,"delta":' + deep + b"}]}\n\n")


@pytest.mark.parametrize("depth", range(900, 1010, 10))
def test_a_stream_nested_about_as_deep_as_can_be_is_an_answer_or_none(depth: int) -> None:
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    piece = b'data: {"choices":[{"index":0,"delta":' + deep + b"}]}\n\n"
    assembly = Assembly()

    try:
        assembly.feed(piece + piece + b"data: [DONE]\n\n")
        whole = assembly.close()
    except BadStream:
        return
    assert whole.count(b"{") > depth


def test_a_stream_beyond_its_bound_is_no_answer() -> None:
    assembly = Assembly(most_bytes=10_000)
    piece = b'data: {"choices":[{"index":0,"delta":{"content":"more "}}]}\n\n'

    with pytest.raises(BadAnswer, match="longer than 10000 bytes"):
        for _ in range(1000):
            assembly.feed(piece)


KEYS = st.sampled_from(["index", "delta", "text", "message", "content", "role", "tool_calls", "function", "error"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=10,
)


@given(st.lists(st.dictionaries(KEYS, VALUES), max_size=3).map(lambda c: {"choices": c}) | VALUES)
def test_any_chunks_are_an_answer_or_no_stream(chunk: Any) -> None:
    wire = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    assembly = Assembly()

    try:
        assembly.feed(wire + wire + b"data: [DONE]\n\n")
        whole = assembly.close()
    except BadStream:
        return
    assert isinstance(json.loads(whole)["choices"], list)


def test_log_probabilities_are_asked_for_plainly_because_streams_lack_the_last() -> None:
    assert streaming_request(b'{"model":"a","logprobs":true}') is None
