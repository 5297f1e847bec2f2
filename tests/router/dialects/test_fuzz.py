"""Whatever a client sends, a parser takes it or raises `BadRequest` with words for a person: never anything else."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.router.dialects import embeddings, native, rerank
from cortex.router.dialects.chat import request as chat
from cortex.router.dialects.core import grammar
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.messages import request as messages
from cortex.router.dialects.responses import request as responses
from tests.router.dialects.examples import examples
from tests.router.dialects.test_responses_request import CODEX

Json = dict[str, Any]

DATA_URL = "data:image/png;base64,aaaa"
LENIENT = Traits(
    inline_system=True,
    developer_role=True,
    vision=True,
    reasoning_field="reasoning_content",
    tool_ids="alnum9",
    content_parts=False,
    named_tool_choice=False,
    json_schema=False,
    thinking_budget="thinking_token_budget",
    max_output_tokens=100,
)
READERS: dict[str, Callable[[bytes, Traits], Any]] = {
    "messages": messages.read,
    "count": messages.read_count,
    "responses": responses.read,
    "chat": chat.read,
    "completions": chat.read_completion,
    "embeddings": lambda body, traits: embeddings.read(body),
    "rerank": lambda body, traits: rerank.read(body),
    "native": lambda body, traits: native.read("messages", body),
}

MESSAGES: Json = {
    "model": "m",
    "max_tokens": 4096,
    "system": [{"type": "text", "text": "front", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "system", "content": "mind"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "ok"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "is_error": True,
                    "content": [
                        {"type": "text", "text": "x"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aaaa"}},
                        {"type": "tool_reference", "tool_name": "f"},
                    ],
                },
                {"type": "image", "source": {"type": "url", "url": DATA_URL}},
                {
                    "type": "document",
                    "title": "t",
                    "source": {"type": "content", "content": [{"type": "text", "text": "d"}]},
                },
                {"type": "search_result", "title": "t", "source": "s", "content": [{"type": "text", "text": "d"}]},
            ],
        },
    ],
    "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}, "defer_loading": True}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 2000},
    "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {}}},
    "stop_sequences": ["x"],
    "temperature": 1.0,
    "metadata": {"user_id": "{}"},
    "stream": True,
}
RESPONSES: Json = CODEX | {
    "model": "m",
    "input": [
        *CODEX["input"],
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "content": []},
        {"type": "function_call", "name": "spawn", "namespace": "multi_agent_v1", "call_id": "c", "arguments": "{}"},
        {
            "type": "function_call_output",
            "call_id": "c",
            "output": [{"type": "input_image", "image_url": DATA_URL}],
        },
        {"type": "custom_tool_call", "call_id": "d", "name": "p", "input": "x"},
        {
            "role": "user",
            "content": [{"type": "input_file", "filename": "a", "file_data": "data:text/plain;base64,aaaa"}],
        },
    ],
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
    "tool_choice": {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "exec_command"}],
    },
}
CHAT: Json = {
    "model": "m",
    "messages": [
        {"role": "developer", "content": "front"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": DATA_URL}}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "x"}]},
        {"role": "system", "content": [{"type": "text", "text": "x-anthropic-billing-header: a=b;"}]},
        {"role": "user", "content": "x"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "stream": True,
    "stream_options": {"include_usage": False},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
    "max_completion_tokens": 5,
    "reasoning_effort": "high",
    "n": 2,
}
SEEDS: dict[str, Json] = {
    "messages": MESSAGES,
    "count": MESSAGES,
    "responses": RESPONSES,
    "chat": CHAT,
    "completions": {"model": "m", "prompt": ["a"], "stream": True, "n": 1, "max_tokens": 5},
    "embeddings": {"model": "m", "input": [[1]], "encoding_format": "float"},
    "rerank": {"model": "m", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1},
    "native": MESSAGES | {"system": [{"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1;"}]},
}

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    10**30,
    1.5,
    1e308,
    "",
    "x",
    "\x00",
    "日",
    [],
    [[]],
    [None],
    {},
    {"type": None},
    {"type": "text"},
]
ANY: st.SearchStrategy[Any] = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a request where something else could be."""
    actual = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        actual += places(inner, (*at, key))
    return actual


def with_other(value: Any, at: tuple[Any, ...], other: Any) -> Any:
    changed = json.loads(json.dumps(value))
    inner = changed
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = other
    return changed


def read(name: str, body: bytes) -> None:
    for traits in (Traits(), LENIENT):
        try:
            parsed = READERS[name](body, traits)
        except BadRequest as error:
            assert str(error)
            continue
        body_of = parsed.body("worker")
        assert isinstance(json.loads(body_of), dict)
        assert grammar.loosen_request(body_of) != body_of
        if hasattr(parsed, "count"):
            assert isinstance(json.loads(parsed.count("worker")), dict)


@pytest.mark.parametrize("name", READERS)
def test_every_field_may_hold_anything(name: str) -> None:
    seed = SEEDS[name]
    read(name, json.dumps(seed).encode())
    for at in places(seed):
        for other in ODD:
            read(name, json.dumps(with_other(seed, at, other)).encode())


@examples(60)
@given(st.sampled_from(sorted(READERS)), st.data())
def test_anything_may_be_anywhere(name: str, data: st.DataObject) -> None:
    seed = SEEDS[name]
    at = data.draw(st.sampled_from(places(seed)))

    read(name, json.dumps(with_other(seed, at, data.draw(ANY))).encode())


@examples(60)
@given(st.sampled_from(sorted(READERS)), st.binary(max_size=60) | ANY.map(lambda value: json.dumps(value).encode()))
def test_any_body_at_all_is_taken_or_refused(name: str, body: bytes) -> None:
    read(name, body)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"NaN",
        b'{"model":NaN}',
        b'{"model":"\xff"}',
        b'{"ignored":"\xff"}',
        b'{"model":"\\ud800"}',
        b"[" * 100_000,
        b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x":' + b"9" * 5000 + b"}",
        b"\x00\x01\x02",
        b"\x1f\x8b\x08\x00",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_no_request_is_refused_in_words(name: str, body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        READERS[name](body, Traits())

    assert caught.value.fault().message


@pytest.mark.parametrize("name", ["messages", "responses", "chat"])
@pytest.mark.parametrize("depth", [50, 400, 900, 990, 5000])
def test_a_schema_of_any_depth_is_taken_or_refused(name: str, depth: int) -> None:
    seed = dict(SEEDS[name])
    seed["tools"] = []
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    tool = {
        "messages": b'{"name":"f","input_schema":%b}',
        "responses": b'{"type":"function","name":"f","parameters":%b}',
        "chat": b'{"type":"function","function":{"name":"f","parameters":%b}}',
    }[name] % deep
    body = json.dumps(seed | {"tool_choice": "auto"} if name != "messages" else seed | {"tool_choice": None})

    try:
        READERS[name](body.replace('"tools": []', f'"tools": [{tool.decode()}]').encode(), LENIENT).body("worker")
    except BadRequest as error:
        assert "deep" in str(error)


@pytest.mark.parametrize("name", ["messages", "responses", "chat"])
def test_case_63_a_request_fails_the_same_way_streamed_and_not(name: str) -> None:
    seed = SEEDS[name]
    faults = []
    for stream in (True, False):
        with pytest.raises(BadRequest) as caught:
            READERS[name](json.dumps(seed | {"stream": stream, "model": ""}).encode(), LENIENT)
        faults.append(caught.value.fault())

    assert faults[0] == faults[1]


@pytest.mark.parametrize("depth", [300, 900])
def test_documents_inside_documents_are_taken_or_refused(depth: int) -> None:
    inner = '{"type":"text","text":"x"}'
    for _ in range(depth // 3):
        inner = '{"type":"document","source":{"type":"content","content":[' + inner + "]}}"
    body = '{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[' + inner + "]}]}"

    read("messages", body.encode())


def test_a_request_of_many_megabytes_is_read_in_reasonable_time() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "a" * 12_000_000}}
    body = json.dumps(MESSAGES | {"messages": [{"role": "user", "content": [image]}]}).encode()

    assert len(messages.read(body, LENIENT).body("worker")) > 12_000_000
