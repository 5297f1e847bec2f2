"""What a model or its server cannot do is a 400 with the field that the client sent, never a 502."""

import json
from typing import Any

import pytest

from cortex.functions.spec import Engine, Function
from cortex.router.dialects import embeddings
from cortex.router.dialects.core.errors import BadRequest, Kind, in_client_terms
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.core.worker_errors import fault_from_worker
from cortex.router.model_traits import PASSED_ON, Running, traits
from tests.router.dialects.request_builders import (
    body_of,
    chat_request,
    messages_request,
    refusal_of,
    responses_request,
    tool,
)

NO_TOOLS = Traits(tools=False)
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FLAT = {"type": "function", "name": "f", "parameters": {"type": "object"}}
DEMANDS: list[tuple[Any, Any, list[Any]]] = [
    (chat_request, "required", [FUNCTION]),
    (chat_request, {"type": "function", "function": {"name": "f"}}, [FUNCTION]),
    (chat_request, {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [FUNCTION]}}, [FUNCTION]),
    (messages_request, {"type": "any"}, [tool()]),
    (messages_request, {"type": "tool", "name": "f"}, [tool()]),
    (responses_request, "required", [FLAT]),
    (responses_request, {"type": "function", "name": "f"}, [FLAT]),
    (responses_request, {"type": "allowed_tools", "mode": "required", "tools": [FLAT]}, [FLAT]),
]


@pytest.mark.parametrize(("read", "choice", "tools"), DEMANDS)
def test_a_demanded_call_of_a_model_without_tools_is_refused(read: Any, choice: Any, tools: list[Any]) -> None:
    fault = refusal_of(read, traits=NO_TOOLS, tools=tools, tool_choice=choice)

    assert (fault.kind, fault.param) == (Kind.UNSUPPORTED, "tool_choice")
    assert read(tools=tools, tool_choice=choice)


OTHERS: list[tuple[Any, Any, Any]] = [
    (chat_request, {"type": "allowed_tools", "allowed_tools": {"mode": "MODE", "tools": tools}}, FUNCTION)
    for tools in ([], [{"type": "function", "function": {"name": "g"}}], [{"function": {"name": ["f"]}}])
] + [
    (responses_request, {"type": "allowed_tools", "mode": "MODE", "tools": tools}, FLAT)
    for tools in ([], [{"type": "function", "name": "g"}])
]


@pytest.mark.parametrize(("read", "choice", "declared"), OTHERS)
def test_a_demanded_call_of_none_of_the_tools_is_refused_and_an_offer_of_none_has_no_tools(
    read: Any, choice: Any, declared: Any
) -> None:
    demand, offer = (json.loads(json.dumps(choice).replace("MODE", mode)) for mode in ("required", "auto"))

    assert (refusal_of(read, tools=[declared], tool_choice=demand).param or "").startswith("tool_choice")
    assert body_of(read(tools=[declared], tool_choice=offer)).keys().isdisjoint({"tools", "tool_choice"})


@pytest.mark.parametrize(("read", "choice", "tools"), DEMANDS)
def test_a_demanded_call_without_tools_is_refused(read: Any, choice: Any, tools: list[Any]) -> None:
    assert (refusal_of(read, tool_choice=choice).param or "").startswith("tool_choice")


@pytest.mark.parametrize(
    ("read", "choice", "tools"),
    [
        (chat_request, "auto", [FUNCTION]),
        (messages_request, {"type": "auto"}, [tool()]),
        (responses_request, "auto", [FLAT]),
    ],
)
def test_tools_that_a_model_may_leave_alone_are_offered(read: Any, choice: Any, tools: list[Any]) -> None:
    assert body_of(read(traits=NO_TOOLS, tools=tools, tool_choice=choice))["tools"]


@pytest.mark.parametrize("role", ["bard", "", "User"])
def test_an_unknown_role_is_refused_with_its_place(role: str) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": role, "content": "x"}]

    assert refusal_of(chat_request, messages=messages).param == "messages[1].role"
    assert refusal_of(messages_request, messages=messages).param == "messages[1].role"
    assert refusal_of(responses_request, input=messages).param == "input[1].role"


def test_audio_is_refused_with_its_place_where_llama_cpp_has_no_encoder() -> None:
    audio = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}, audio]}]
    llama = traits(Function(id="m", engine=Engine.LLAMACPP), None, Running(eyes=False), PASSED_ON)
    vllm = traits(Function(id="m", engine=Engine.VLLM, vision=False), None, Running(), PASSED_ON)

    assert refusal_of(chat_request, traits=llama, messages=messages).param == "messages[0].content[1]"
    assert chat_request(vllm, messages=messages)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("audio input is not supported - hint: if this is unexpected, you may need to provide the mmproj", "messages"),
        ("Failed to parse tools: [json.exception.out_of_range.403] key 'name' not found; tools = []", "tools"),
        ("Failed to parse messages: Missing tool call type: {}", "messages"),
        ("[json.exception.type_error.302] type must be string, but is null", "messages"),
    ],
)
def test_a_request_that_llama_cpp_calls_its_own_error_is_the_clients(message: str, param: str) -> None:
    error = {"error": {"code": 500, "message": message, "type": "server_error"}}

    fault = fault_from_worker(500, json.dumps(error).encode())

    assert (fault.status("chat"), fault.param) == (400, param)


def test_an_error_that_quotes_such_a_message_stays_the_workers() -> None:
    error = {"error": {"message": "out of memory at: Failed to parse tools: x"}}

    assert fault_from_worker(500, json.dumps(error).encode()).kind is Kind.WORKER_ERROR


@pytest.mark.parametrize(
    "message",
    [
        "input (30000 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
        "input (30000 tokens) is larger than the max context size (512 tokens). skipping",
    ],
)
def test_an_input_too_long_to_embed_is_refused_with_both_numbers(message: str) -> None:
    fault = fault_from_worker(500, json.dumps({"error": {"code": 500, "message": message}}).encode())

    fault = in_client_terms(fault, "embeddings", "max_tokens")
    assert (fault.kind, fault.param) == (Kind.PROMPT_TOO_LONG, "input")
    assert fault.message == "prompt is too long: 30000 tokens > 512 maximum"


@pytest.mark.parametrize("embedding", [[0.5] * 4, "AAAAPwAAAD8AAAA/AAAAPw=="])
def test_dimensions_that_a_server_ignores_are_refused_with_its_length(embedding: Any) -> None:
    answer = json.dumps({"data": [{"embedding": embedding}]}).encode()
    parsed = embeddings.read(b'{"model":"m","input":"x","dimensions":2}')

    with pytest.raises(BadRequest, match="have 4 numbers") as refused:
        parsed.plain(answer)

    assert (refused.value.fault().status("embeddings"), refused.value.fault().param) == (400, "dimensions")
    assert embeddings.read(b'{"model":"m","input":"x","dimensions":4}').plain(answer)


def test_a_fault_of_sizes_names_the_prompt_of_each_dialect() -> None:
    too_long = fault_from_worker(400, b'{"error":{"n_prompt_tokens":9,"n_ctx":5,"message":"x"}}')

    assert {d: in_client_terms(too_long, d, "max_tokens").param for d in ("chat", "completions", "responses")} == {
        "chat": "messages",
        "completions": "prompt",
        "responses": "input",
    }
