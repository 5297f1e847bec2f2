"""What clients that cortex was not written for send, over real HTTP, to a real llama.cpp and the fake engine."""

import gzip
import json
from typing import Any

import pytest
from backports import zstd

from tests.e2e.workers import ONE
from tests.support.stack import Stack, eventually

pytestmark = pytest.mark.parametrize("stack", [ONE], indirect=True)

USER = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize("prompts", [["Alpha", "Amber"], [[1, 2], [3]]], ids=["texts", "token-ids"])
def test_several_prompts_are_answered_and_their_instance_stays(stack: Stack, prompts: list[Any]) -> None:
    stack.chat("tiny/alpha")
    before = stack.instance("tiny/alpha")["id"]

    plain = stack.http.post("/v1/completions", json={"model": "small", "prompt": prompts, "max_tokens": 2})
    streamed = stack.http.post(
        "/v1/completions", json={"model": "small", "prompt": prompts, "max_tokens": 2, "stream": True}
    )

    assert [choice["index"] for choice in plain.json()["choices"]] == [0, 1]
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert plain.headers["x-cortex-start"] == streamed.headers["x-cortex-start"] == "hot"
    assert stack.instance("tiny/alpha")["id"] == before


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_of_a_real_llama_cpp_is_named(stack: Stack, stream: bool) -> None:
    body: dict[str, Any] = {"model": "small", "max_tokens": 40, "messages": USER, "temperature": 0, "top_k": 1}
    text = stack.http.post("/v1/messages", json=body).json()["content"][0]["text"]
    stop = " " + text.split()[1]

    answer = stack.http.post("/v1/messages", json={**body, "stop_sequences": ["never this", stop], "stream": stream})

    assert f'"stop_reason":"stop_sequence","stop_sequence":{json.dumps(stop)}' in answer.text
    assert '"output_tokens":0}' not in answer.text.rpartition("usage")[2]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("defect", ["null", "half a character", "mark"])
def test_a_request_that_strict_parsers_refuse_is_served(stack: Stack, path: str, defect: str) -> None:
    body = json.dumps({"model": "small", "max_tokens": 2, "messages": [{"role": "user", "content": "cut \ud83d"}]})
    if defect == "null":
        body = json.dumps({"model": "small", "max_tokens": 2, "stop": None, "messages": [{**USER[0], "name": None}]})

    answer = stack.http.post(path, content=("\ufeff" if defect == "mark" else "").encode() + body.encode())

    assert answer.status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_compressed_request_is_served_and_a_bomb_refused(stack: Stack, encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zstd.compress
    headers = {"content-encoding": encoding}
    body = json.dumps({"model": "small", "max_tokens": 2, "messages": USER}).encode()

    served = stack.http.post("/v1/chat/completions", content=pack(body), headers=headers)
    bomb = stack.http.post("/v1/chat/completions", content=pack(bytes(50 << 20)), headers=headers)

    assert (served.status_code, bomb.status_code) == (200, 413)
    assert "unpacks to more than" in bomb.json()["error"]["message"]


def test_head_is_answered_wherever_get_is(stack: Stack) -> None:
    for path in ("/", "/health", "/v1/models", "/v1/models/small", "/status", "/admin/functions", "/admin/events"):
        answer = stack.http.head(path)

        assert (answer.status_code, answer.content) == (200, b""), path


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/v1/chat/completions", "/openai/chat/completions"])
def test_another_base_url_gets_a_hint(stack: Stack, path: str) -> None:
    answer = stack.http.post(path, json={"model": "small", "messages": USER})

    assert answer.status_code == 404
    assert "did you mean /v1/chat/completions?" in answer.json()["error"]["message"]


def test_an_input_too_long_to_embed_and_ignored_dimensions_are_the_clients_errors(stack: Stack) -> None:
    long = stack.http.post("/v1/embeddings", json={"model": "tiny/embeds", "input": "boat " * 40_000})
    short = stack.http.post("/v1/embeddings", json={"model": "tiny/embeds", "input": "boat", "dimensions": 3})

    assert [(a.status_code, a.json()["error"]["param"]) for a in (long, short)] == [(400, "input"), (400, "dimensions")]


def test_a_demanded_tool_call_of_a_model_without_tools_is_refused(stack: Stack) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    body = {"model": "cortex/demo", "messages": USER, "max_tokens": 5, "tools": tools}
    stack.chat("cortex/demo")

    def refusal() -> dict[str, str]:
        answer = stack.http.post("/v1/chat/completions", json={**body, "tool_choice": "required"})
        return answer.json()["error"] if answer.status_code == 400 else {}

    # The host reads the model's template after its first start.
    assert eventually(refusal, what="the refusal")["param"] == "tool_choice"
    assert stack.http.post("/v1/chat/completions", json=body).status_code == 200


def test_coheres_clients_rank_by_the_second_path(stack: Stack) -> None:
    body = {"model": "tiny/reranks", "query": "boat", "documents": ["a boat", "bread"]}

    assert len(stack.http.post("/v2/rerank", json=body).json()["results"]) == 2
