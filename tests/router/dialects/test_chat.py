"""Chat for clients of the same dialect: bytes untouched but for what must change, streams watched as they pass."""

import json
from typing import Any

import openai
import pytest

from cortex.functions.capabilities import Sampling
from cortex.router.dialects.chat import request
from cortex.router.dialects.core.errors import BadAnswer, Fault, Kind
from cortex.router.dialects.core.traits import Traits
from tests.router.dialects.clients import chat_plain, chat_streamed, pieces, replay
from tests.router.dialects.request_builders import (
    INLINE,
    PLAIN,
    PNG,
    VISION,
    Json,
    body_of,
    chat_request,
    refusal_of,
)
from tests.router.dialects.workers import (
    call,
    chunk,
    completion,
    counted,
    llama_chunk,
    small_stream,
    usage_chunk,
    whole_call,
    wire,
)

USAGE: Json = {"stream_options": {"include_usage": True}}


def message(role: str, content: Any, **more: Any) -> Json:
    return {"role": role, "content": content} | more


def conversation(traits: Traits = PLAIN, *messages: Json) -> list[Json]:
    actual: list[Json] = body_of(chat_request(traits, messages=list(messages)))["messages"]
    return actual


def raw(*chunks: Json, done: bool = True, **fields: Any) -> bytes:
    parsed = chat_request(stream=True, **fields)
    return replay(lambda: parsed.answer("ID", 1).stream(), wire(*chunks, done=done))


def tool(name: str) -> Json:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


BODY = b'{ "messages" : [{"role":"user","content":"hi \\u00e9"}], "model":"m", "logit_bias": {"5": 1.0}, "top_k": 1e2 }'


def test_a_duplicate_field_is_sent_once_with_its_parsed_value() -> None:
    body = b'{"model":"other","top_k":1,"messages":[{"role":"user","content":"hi"}],"top_k":2,"\\u006dodel":"m"}'

    actual = request.read(body, PLAIN).body("m")

    assert actual == b'{"model":"m","top_k":2,"messages":[{"role":"user","content":"hi"}]}'


def test_the_bytes_of_a_field_stay_as_the_client_wrote_them() -> None:
    actual = request.read(BODY, PLAIN).body("worker", max_tokens=5)

    assert actual == (
        b'{"messages":[{"role":"user","content":"hi \\u00e9"}],"model":"worker","logit_bias":{"5": 1.0},"top_k":1e2,'
        b'"max_tokens":5}'
    )


def test_case_13_an_empty_list_of_tools_is_left_out() -> None:
    actual = body_of(chat_request(tools=[], tool_choice="auto", parallel_tool_calls=True))

    assert not {"tools", "tool_choice", "parallel_tool_calls"} & actual.keys()


def test_case_17_a_named_choice_for_an_engine_that_ignores_names() -> None:
    choice = {"type": "function", "function": {"name": "b"}}
    fields: Json = {"tools": [tool("a"), tool("b")], "tool_choice": choice}

    assert body_of(chat_request(**fields))["tool_choice"] == choice
    actual = body_of(chat_request(Traits(named_tool_choice=False), **fields))
    assert (actual["tools"], actual["tool_choice"]) == ([tool("b")], "required")


def test_allowed_tools_are_the_only_tools() -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "b"}}]}

    actual = body_of(
        chat_request(tools=[tool("a"), tool("b")], tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    )

    assert (actual["tools"], actual["tool_choice"]) == ([tool("b")], "required")


@pytest.mark.parametrize("options", [{}, {"stream_options": None}, {"stream_options": {"include_usage": False}}])
def test_case_54_usage_is_requested_and_hidden_when_the_client_did_not_request_it(options: Json) -> None:
    chunks = [chunk(content="x"), chunk("stop"), usage_chunk(counted(10, 5))]
    parsed = chat_request(stream=True, **options)

    stream = parsed.answer("ID", 1).stream()
    actual = pieces(stream.feed(wire(*chunks)))

    assert body_of(parsed)["stream_options"]["include_usage"] is True
    assert [piece["choices"] == [] for piece in actual if isinstance(piece, dict)] == [False, False]
    assert (stream.tokens.input, stream.tokens.output) == (10, 5)


def test_case_54_usage_that_the_client_requested_is_forwarded() -> None:
    actual = raw(chunk(content="x"), chunk("stop"), usage_chunk(counted(10, 5)), **USAGE)

    assert chat_streamed(actual)["usage"]["total_tokens"] == 15
    assert pieces(actual)[2]["choices"] == []  # type: ignore[index]


def test_case_54_other_stream_options_are_preserved() -> None:
    actual = body_of(chat_request(stream=True, stream_options={"include_obfuscation": False}))

    assert actual["stream_options"] == {"include_obfuscation": False, "include_usage": True}


def test_case_55_developer_becomes_system_unless_the_template_supports_it() -> None:
    history = message("developer", "front")

    assert conversation(PLAIN, history, message("user", "hi"))[0] == message("system", "front")
    assert conversation(Traits(developer_role=True), history, message("user", "hi"))[0] == history


def test_case_55_text_lists_become_strings_for_templates_without_lists() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert conversation(PLAIN, message("user", parts)) == [message("user", parts)]
    assert conversation(Traits(content_parts=False), message("user", parts)) == [message("user", "a\nb")]


@pytest.mark.parametrize("content", [{"content": None}, {}])
def test_case_55_a_call_may_come_without_content(content: Json) -> None:
    called = {"role": "assistant", "tool_calls": [whole_call("c1", "f", "{}")]} | content

    assert conversation(PLAIN, message("user", "go"), called)[1] == called


def test_case_56_the_content_of_a_tool_message_may_be_a_list() -> None:
    tool_result = message("tool", [{"type": "text", "text": "a"}], tool_call_id="c1")

    assert conversation(PLAIN, message("user", "go"), tool_result)[1] == tool_result
    assert conversation(Traits(content_parts=False), message("user", "go"), tool_result)[1]["content"] == "a"


def test_case_56_call_and_result_get_the_same_template_compatible_id() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [whole_call("call_123456789", "f", "{}")]}
    tool_result = message("tool", "ok", tool_call_id="call_123456789")

    actual = conversation(Traits(tool_ids="alnum9"), message("user", "go"), called, tool_result)

    short = actual[1]["tool_calls"][0]["id"]
    assert short.isalnum()
    assert len(short) == 9
    assert actual[2]["tool_call_id"] == short
    assert conversation(Traits(tool_ids="alnum9"), message("tool", "", tool_call_id="abc123XYZ"))[0][
        "tool_call_id"
    ] == ("abc123XYZ")


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 3},
        {"logprobs": True, "top_logprobs": 2, "tools": [tool("f")]},
        {"response_format": {"type": "json_object"}},
        {"functions": [{"name": "f"}], "function_call": "auto"},
        {"top_k": 5, "min_p": 0.1, "chat_template_kwargs": {"enable_thinking": False}},
        {"seed": 1, "logit_bias": {"5": 1}, "modalities": ["text"], "prediction": None, "stop": "x"},
    ],
)
def test_case_57_fields_that_the_worker_validates_pass(fields: Json) -> None:
    assert body_of(chat_request(**fields)).items() >= fields.items()


def test_case_57_a_stream_of_several_choices_ends_when_all_have_ended() -> None:
    second = chunk(content="b")
    second["choices"][0]["index"] = 1
    second_end = chunk("stop")
    second_end["choices"][0]["index"] = 1

    whole = raw(chunk(content="a"), second, chunk("stop"), second_end, n=2)
    cut = raw(chunk(content="a"), second, chunk("stop"), n=2)
    lost = raw(chunk(content="a"), chunk("stop"), done=False, n=2)

    assert pieces(whole)[-1] == "[DONE]"
    assert "error" in pieces(cut)[-1]
    assert "error" in pieces(lost)[-1]


def test_case_58_thinking_is_named_reasoning_content_for_every_worker() -> None:
    stream = pieces(raw(chunk(reasoning="hm"), chunk(reasoning_content="so"), chunk("stop")))
    whole = json.loads(chat_request().answer("ID", 1).plain(completion(reasoning="hm", content="x")).body)

    assert [piece["choices"][0]["delta"] for piece in stream[:2]] == [  # type: ignore[index]
        {"reasoning": "hm", "reasoning_content": "hm"},
        {"reasoning_content": "so"},
    ]
    assert whole["choices"][0]["message"]["reasoning_content"] == "hm"


@pytest.mark.parametrize("more", [{}, {"reasoning_content": ""}])
def test_case_58_thinking_in_the_history_is_renamed_for_templates_that_take_it(more: Json) -> None:
    thought = message("assistant", "x", reasoning="hm", **more)

    actual = conversation(Traits(reasoning_field="reasoning_content"), message("user", "go"), thought)

    assert actual[1] == message("assistant", "x", reasoning_content="hm")


def test_case_31_deltas_are_repaired_for_sdks_that_concatenate_them() -> None:
    actual = raw(
        chunk(role="assistant", content=""),
        chunk(role="assistant", **call(None, "c1", "f", '{"a":')),
        chunk(role="assistant", **call(None, "c1", "f", "1}")),
        chunk(**call(None, "c2", "g", {"b": 2})),
        chunk("tool_calls"),
    )

    message = chat_streamed(actual)["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert [(one["id"], one["function"]["name"], one["function"]["arguments"]) for one in message["tool_calls"]] == [
        ("c1", "f", '{"a":1}'),
        ("c2", "g", '{"b":2}'),
    ]


def test_a_stream_without_defects_passes_byte_for_byte() -> None:
    chunks = [
        llama_chunk(role="assistant", content=None),
        llama_chunk(content="Hé"),
        llama_chunk(**call(0, "c1", "f", "")),
        llama_chunk(**call(0, arguments="{}")),
        llama_chunk("tool_calls"),
    ]

    assert raw(*chunks, model="worker") == wire(*chunks)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_every_piece_has_the_clients_model_name(separators: tuple[str, str]) -> None:
    one = json.dumps(chunk("stop", content='"model":"worker"'), separators=separators).encode()
    stream = chat_request(stream=True).answer("ID", 1).stream()

    actual = pieces(stream.feed(b"data: " + one + b"\n\ndata: [DONE]\n\n"))[0]

    assert isinstance(actual, dict)
    assert (actual["model"], actual["choices"][0]["delta"]["content"]) == ("m", '"model":"worker"')


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [chunk(content="Hel")],
        [chunk(content="Hel"), chunk("abort")],
        [chunk(content="Hel"), {"error": {"message": "boom", "code": 500}}],
        [chunk(content="Hel"), {"choices": 5}],
    ],
)
def test_case_37_a_broken_stream_ends_in_an_error_without_done(chunks: list[Json], done: bool) -> None:
    actual = raw(*chunks, done=done)

    assert b"[DONE]" not in actual
    last = pieces(actual)[-1]
    assert isinstance(last, dict)
    assert last["error"]["type"] == "server_error"
    assert last["error"].keys() == {"message", "type", "param", "code"}
    with pytest.raises(openai.APIError):
        chat_streamed(actual)


def test_case_37_a_lost_worker_gives_one_error() -> None:
    stream = chat_request(stream=True).answer("ID", 1).stream()
    stream.feed(wire(chunk(content="Hel"), done=False))

    out = stream.fail(Fault(kind=Kind.TIMEOUT, message="silent"))

    assert json.loads(out[6:])["error"]["code"] == "timeout"
    assert stream.fail(Fault(kind=Kind.TIMEOUT, message="again")) + stream.feed(small_stream()) + stream.close() == b""


def test_a_finish_reason_without_done_ends_the_stream_with_done() -> None:
    assert pieces(raw(chunk(content="x"), chunk("stop"), done=False))[-1] == "[DONE]"


def test_case_40_keep_alives_are_comments() -> None:
    stream = chat_request(stream=True).answer("ID", 1).stream()

    out = stream.open() + stream.ping() + stream.feed(small_stream())

    assert out.startswith(b": ")
    assert chat_streamed(out)["choices"][0]["message"]["content"] == "Hello"


def test_a_keep_alive_has_the_reason_for_the_wait() -> None:
    stream = chat_request(stream=True).answer("ID", 1).stream()

    held = stream.ping("no room for 'f' now")
    out = held + stream.feed(small_stream())

    assert held == b": no room for 'f' now\n\n"
    assert chat_streamed(out)["choices"][0]["message"]["content"] == "Hello"


def test_case_43_an_answer_is_the_same_streamed_and_whole() -> None:
    stream = chat_streamed(raw(chunk(role="assistant", content="te"), chunk(content="xt"), chunk("stop")))
    whole = chat_plain(chat_request().answer("ID", 1).plain(completion(content="text")).body)

    assert stream["choices"][0]["message"]["content"] == whole["choices"][0]["message"]["content"]
    assert stream["model"] == whole["model"] == "m"


def test_a_whole_answer_without_defects_passes_byte_for_byte() -> None:
    body = completion("tool_calls", tool_calls=[whole_call("c1", "f", "{}")])

    assert chat_request(model="worker").answer("ID", 1).plain(body).body is body


def test_calls_of_a_whole_answer_are_completed() -> None:
    body = completion("tool_calls", tool_calls=[{"function": {"name": "f", "arguments": {"a": 1}}}])

    actual = json.loads(chat_request().answer("ID", 1).plain(body).body)

    assert actual["choices"][0]["message"]["tool_calls"] == [
        {"id": "call_ID_0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    ]


def test_a_truncated_answer_raises() -> None:
    for body in (completion(None, content="x"), completion("abort"), b"", b'{"choices":[]}', b'{"error":"no"}'):
        with pytest.raises(BadAnswer):
            chat_request().answer("ID", 1).plain(body)


@pytest.mark.parametrize("traits", [PLAIN, INLINE])
def test_case_01_a_later_system_message_stays_or_becomes_part_of_the_users_turn(traits: Traits) -> None:
    history = [message("system", "a"), message("user", "b"), message("system", "c"), message("user", "d")]

    actual = conversation(traits, *history)

    assert actual == (
        history
        if traits.inline_system
        else [message("system", "a"), message("user", "b\n<system-reminder>\nc\n</system-reminder>\nd")]
    )


def test_case_01_a_system_message_never_comes_between_a_call_and_its_result() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [whole_call("c1", "f", "{}")]}
    tool_result = message("tool", "ok", tool_call_id="c1")

    actual = conversation(PLAIN, message("user", "go"), called, message("system", "c"), tool_result)

    assert [one["role"] for one in actual] == ["user", "assistant", "tool", "user"]


def test_several_system_messages_at_the_front_are_one_for_templates_that_take_one() -> None:
    history = [message("system", "a"), message("system", [{"type": "text", "text": "b"}]), message("user", "c")]

    assert conversation(PLAIN, *history)[0] == message("system", "a\n\nb")


@pytest.mark.parametrize("as_parts", [True, False])
def test_case_03_the_billing_header_never_reaches_the_prompt(as_parts: bool) -> None:
    header = "x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli;"
    front = [{"type": "text", "text": header}, {"type": "text", "text": "front"}] if as_parts else f"{header}\nfront"

    actual = conversation(PLAIN, message("system", front), message("user", header))

    assert "billing" not in str(actual[0])
    assert "front" in str(actual[0])
    assert actual[1]["content"] == header
    assert conversation(PLAIN, message("system", header), message("user", "hi")) == [message("user", "hi")]


def test_images_are_refused_by_name_for_a_model_without_vision() -> None:
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    remote = {"type": "image_url", "image_url": {"url": "http://10.0.0.1/x.png"}}
    history = [message("user", [part])]

    assert refusal_of(chat_request, messages=history).param == "messages[0].content[0]"
    assert body_of(chat_request(VISION, messages=history))["messages"] == history
    assert refusal_of(chat_request, traits=VISION, messages=[message("user", [remote])]).param == (
        "messages[0].content[0].image_url"
    )


def test_case_10_an_image_in_a_tool_message_becomes_a_placeholder_without_vision() -> None:
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}

    actual = conversation(PLAIN, message("user", "go"), message("tool", [part], tool_call_id="c1"))

    assert actual[1]["content"] == "[image omitted: this model does not take images]"


@pytest.mark.parametrize(
    ("traits", "parsed", "expected"),
    [
        (PLAIN, {"max_completion_tokens": 9}, {"max_completion_tokens": 9}),
        (Traits(max_output_tokens=5), {"max_completion_tokens": 9}, {"max_tokens": 5}),
        (Traits(max_output_tokens=5), {"max_tokens": 4}, {"max_tokens": 4}),
        (Traits(default_output_tokens=7), {}, {"max_tokens": 7}),
    ],
)
def test_the_output_limit_does_not_exceed_the_functions(traits: Traits, parsed: Json, expected: Json) -> None:
    actual = body_of(chat_request(traits, **parsed))

    assert {name: actual[name] for name in ("max_tokens", "max_completion_tokens") if name in actual} == expected


def test_the_remaining_window_replaces_the_clients_limit() -> None:
    assert json.loads(bytes(chat_request(max_completion_tokens=9).body("worker", 4)))["max_completion_tokens"] == 4
    assert json.loads(bytes(chat_request().body("m", 4)))["max_tokens"] == 4


def test_effort_schema_and_sampling_follow_the_function() -> None:
    traits = Traits(json_schema=False, sampling=Sampling(temperature=0.6, top_k=20))
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}

    actual = body_of(chat_request(traits, reasoning_effort="max", response_format=form, temperature=None, top_k=1))

    assert actual["reasoning_effort"] == "high"
    assert actual["response_format"] == {"type": "json_object", "schema": {"type": "object"}}
    assert (actual["temperature"], actual["top_k"]) == (0.6, 1)
    assert "reasoning_effort" not in body_of(chat_request(Traits(effort={}), reasoning_effort="low"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [message("user", 5)]}, "messages[0].content"),
        ({"messages": [message("user", ["x"])]}, "messages[0].content[0]"),
        ({"messages": [message("assistant", None, tool_calls="x")]}, "messages[0].tool_calls"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": "x"}, "stream_options"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"tools": "x"}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"n": 0}, "n"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_by_name(fields: Json, param: str) -> None:
    fault = refusal_of(chat_request, **fields)

    assert fault.param == param


def test_completions_pass_like_chat() -> None:
    body = b'{"model":"m","prompt":["a","b"],"stream":true,"n":1}'
    parsed = request.read_completion(body, Traits(default_output_tokens=7))

    body_of = json.loads(bytes(parsed.body("worker")))
    ends = [
        {"model": "worker", "choices": [{"index": index, "text": "x", "finish_reason": "stop"}]} for index in (0, 1)
    ]
    actual = replay(lambda: parsed.answer("ID", 1).stream(), wire(*ends, usage_chunk()))
    cut = replay(lambda: parsed.answer("ID", 1).stream(), wire(ends[0], done=False))

    assert body_of == json.loads(body) | {"model": "worker", "max_tokens": 7} | USAGE
    assert [piece if isinstance(piece, str) else piece["model"] for piece in pieces(actual)] == ["m", "m", "[DONE]"]
    assert b"[DONE]" not in cut
    assert request.read_completion(b'{"model":"m","prompt":[1,2,3]}', PLAIN).choices == 1


def test_the_session_is_found_in_the_body() -> None:
    assert chat_request(prompt_cache_key="k", user="u").affinity == "k"
    assert chat_request(user="u").affinity == "u"


def test_counting_sends_the_prompt_that_answering_would_send() -> None:
    parsed = chat_request(tools=[tool("f")], temperature=1, chat_template_kwargs={"enable_thinking": False})

    actual = json.loads(bytes(parsed.count("worker")))

    assert actual.keys() == {"model", "messages", "tools", "chat_template_kwargs"}
