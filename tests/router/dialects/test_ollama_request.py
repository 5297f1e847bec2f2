"""Ollama's requests as those of a worker."""

import json
from typing import Any

import pytest

from cortex.functions.passing import passing
from cortex.router.dialects.core.errors import Kind
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.ollama import embeddings
from cortex.router.dialects.ollama import request as ollama
from tests.router.dialects.request_builders import PNG, THINKING, VISION, Json, refusal_of

USER = {"role": "user", "content": "hi"}
VLLM = Traits(passing=passing("vllm", "chat"))
LLAMA = Traits(passing=passing("llama", "chat"))
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}


def chat_request(traits: Traits = LLAMA, **fields: Any) -> ollama.OllamaRequest:
    return ollama.read_chat(json.dumps({"model": "m", "messages": [USER]} | fields).encode(), traits)


def generate_request(traits: Traits = LLAMA, **fields: Any) -> Any:
    return ollama.read_generate(json.dumps({"model": "m", "prompt": "hi"} | fields).encode(), traits)


def sent(parsed: Any) -> Json:
    body: Json = json.loads(parsed.body("worker"))
    return body


def test_case_72_a_chat_streams_unless_the_client_says_otherwise() -> None:
    assert chat_request().stream
    assert sent(chat_request())["stream_options"] == {"include_usage": True}
    assert not chat_request(stream=False).stream


def test_case_67_options_are_the_workers_settings_and_those_of_a_load_are_dropped() -> None:
    parsed = chat_request(
        options={"num_predict": 7, "temperature": 0.5, "seed": 3, "stop": "END", "num_ctx": 4096, "repeat_penalty": 1.2}
    )

    body = sent(parsed)
    assert (body["max_tokens"], body["temperature"], body["seed"], body["stop"]) == (7, 0.5, 3, ["END"])
    assert body["repeat_penalty"] == 1.2
    assert parsed.dropped == ("options.num_ctx",)
    assert not parsed.limit_is_ours


def test_a_penalty_of_repetition_has_the_workers_name_and_an_option_it_does_not_know_is_dropped() -> None:
    parsed = chat_request(VLLM, options={"repeat_penalty": 1.2, "typical_p": 0.5})

    assert sent(parsed)["repetition_penalty"] == 1.2
    assert parsed.dropped == ("options.typical_p",)


@pytest.mark.parametrize("limit", [-1, -2, 0])
def test_case_67_a_limit_below_one_is_no_limit(limit: int) -> None:
    parsed = chat_request(options={"num_predict": limit})

    assert "max_tokens" not in sent(parsed)
    assert parsed.limit_is_ours


def test_a_format_is_json_or_a_schema() -> None:
    assert sent(chat_request(format="json"))["response_format"] == {"type": "json_object"}
    assert sent(chat_request(format=SCHEMA))["response_format"]["json_schema"]["schema"] == SCHEMA
    assert "response_format" not in sent(chat_request(format=""))


@pytest.mark.parametrize(
    ("think", "expected"),
    [(True, {"enable_thinking": True}), (False, {"enable_thinking": False}), ("high", {"enable_thinking": True})],
)
def test_thinking_is_switched(think: bool | str, expected: Json) -> None:
    body = sent(chat_request(think=think))

    assert body["chat_template_kwargs"] == expected
    assert body.get("reasoning_effort") == ({"high": "high"}.get(str(think)) or ("none" if think is False else None))


def test_case_68_calls_and_results_meet_by_id_by_tool_and_in_order() -> None:
    calls = [{"function": {"name": name, "arguments": {"x": 1}}} for name in ("f", "g")]
    results = [{"role": "tool", "content": "of g", "tool_name": "g"}, {"role": "tool", "content": "of f"}]
    named = {"role": "assistant", "tool_calls": [{"id": "mine", "function": {"name": "f", "arguments": {}}}]}
    last = {"role": "tool", "content": "again", "tool_call_id": "mine"}

    turns = [USER, {"role": "assistant", "content": "", "tool_calls": calls}, *results, named, last]
    body = sent(chat_request(messages=turns, tools=[TOOL]))

    first, second = body["messages"][1]["tool_calls"]
    assert json.loads(first["function"]["arguments"]) == {"x": 1}
    assert [(m["tool_call_id"], m["content"]) for m in body["messages"] if m["role"] == "tool"] == [
        (second["id"], "of g"),
        (first["id"], "of f"),
        ("mine", "again"),
    ]
    assert body["tools"] == [TOOL]


def test_thinking_of_earlier_turns_goes_back_where_the_template_takes_it() -> None:
    turns = [USER, {"role": "assistant", "content": "so", "thinking": "hm"}, USER]

    assert sent(chat_request(THINKING, messages=turns))["messages"][1]["reasoning_content"] == "hm"


def test_case_71_an_image_comes_before_its_text_with_the_type_that_its_bytes_tell() -> None:
    body = sent(chat_request(VISION, messages=[USER | {"images": [PNG]}]))

    image, text = body["messages"][0]["content"]
    assert image["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    assert text["text"] == "hi"


@pytest.mark.parametrize("seed", [-1, 2**31, 2**63 - 1])
def test_a_seed_has_64_bits_as_ollamas_has(seed: int) -> None:
    assert sent(chat_request(options={"seed": seed}))["seed"] == seed


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [USER | {"images": [PNG]}]}, "messages[0].images"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role"),
        ({"format": "xml"}, "format"),
        ({"think": "much"}, "think"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": {"repeat_last_n": 10**6}}, "options.repeat_last_n"),
        ({"options": {"seed": 2**63}}, "options.seed"),
        ({"options": {"stop": ["x"] * 200}}, "stop"),
        ({"tools": [{"type": "web_search", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"model": ""}, "model"),
    ],
)
def test_what_is_wrong_is_named(fields: Json, param: str) -> None:
    assert refusal_of(chat_request, **fields).param == param


@pytest.mark.parametrize("data", ["bm90IGFuIGltYWdl", "!", ""])
def test_case_71_what_is_no_image_is_refused(data: str) -> None:
    fault = refusal_of(chat_request, traits=VISION, messages=[USER | {"images": [data]}])

    assert fault.param == "messages[0].images[0]"


def test_a_prompt_is_a_chat_with_its_system_text() -> None:
    body = sent(generate_request(system="be brief"))

    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert not generate_request().completes


def test_case_69_a_raw_prompt_is_a_completion() -> None:
    parsed = generate_request(raw=True, stream=False, options={"num_predict": 5, "stop": ["."]})

    assert parsed.completes
    assert sent(parsed) == {"model": "worker", "prompt": "hi", "stop": ["."], "max_tokens": 5}
    assert json.loads(parsed.count("worker")) == {"model": "worker", "prompt": "hi"}


@pytest.mark.parametrize(
    "fields", [{"template": "{{ .Prompt }}"}, {"context": [1]}, {"suffix": "x"}, {"raw": True, "system": "x"}]
)
def test_case_69_what_would_make_another_prompt_is_refused(fields: Json) -> None:
    fault = refusal_of(generate_request, **fields)

    assert (fault.kind, fault.param) == (Kind.UNSUPPORTED, list(fields)[-1])


@pytest.mark.parametrize(
    ("body", "is_empty"),
    [
        ({"messages": []}, True),
        ({}, True),
        ({"prompt": ""}, True),
        ({"prompt": "x"}, False),
        ({"messages": [USER]}, False),
    ],
)
def test_case_66_a_request_without_a_prompt_has_nothing_to_answer(body: Json, is_empty: bool) -> None:
    assert ollama.is_empty(json.dumps({"model": "m"} | body).encode()) is is_empty


def test_embeddings_of_texts_and_of_one_text() -> None:
    answer = json.dumps({"data": [{"embedding": [0.5, 1]}], "usage": {"prompt_tokens": 3}}).encode()
    parsed = embeddings.read(json.dumps({"model": "m", "input": ["a"], "truncate": True}).encode())
    older = embeddings.read_older(json.dumps({"model": "m", "prompt": "a"}).encode())

    assert sent(parsed) == {"model": "worker", "input": ["a"], "encoding_format": "float"}
    assert parsed.dropped == ("truncate",)
    expected = {"model": "m", "embeddings": [[0.5, 1.0]], "prompt_eval_count": 3}
    assert json.loads(parsed.plain(answer).body) == expected
    assert json.loads(older.plain(answer).body) == {"embedding": [0.5, 1.0]}


@pytest.mark.parametrize(("read", "param"), [(embeddings.read, "input"), (embeddings.read_older, "prompt")])
def test_embeddings_of_nothing_are_refused(read: Any, param: str) -> None:
    body = json.dumps({"model": "m", param: ""}).encode()

    assert refusal_of(read, body=body).param == param
