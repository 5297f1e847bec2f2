"""Chat for clients of the same dialect: bytes untouched but for what must change, streams watched as they pass."""

import json
from typing import Any

import openai
import pytest

from cortex.functions.capabilities import Sampling
from cortex.router.dialects.chat import request
from cortex.router.dialects.core.errors import BadAnswer, Fault, Kind
from cortex.router.dialects.core.traits import Traits
from tests.router.dialects.asking import INLINE, PLAIN, PNG, SEEING, Json, ask_chat, refused, sent
from tests.router.dialects.clients import chat_plain, chat_streamed, pieces, replay
from tests.router.dialects.workers import (
    call,
    chunk,
    completion,
    counted,
    llama_chunk,
    said,
    usage_chunk,
    whole_call,
    wire,
)

USAGE: Json = {"stream_options": {"include_usage": True}}


def message(role: str, content: Any, **more: Any) -> Json:
    return {"role": role, "content": content} | more


def conversation(traits: Traits = PLAIN, *messages: Json) -> list[Json]:
    found: list[Json] = sent(ask_chat(traits, messages=list(messages)))["messages"]
    return found


def raw(*chunks: Json, done: bool = True, **fields: Any) -> bytes:
    asked = ask_chat(stream=True, **fields)
    return replay(lambda: asked.answer("ID", 1).stream(), wire(*chunks, done=done))


def tool(name: str) -> Json:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


BODY = b'{ "messages" : [{"role":"user","content":"hi \\u00e9"}], "model":"m", "logit_bias": {"5": 1.0}, "top_k": 1e2 }'


def test_a_name_that_is_given_twice_is_sent_once_as_it_was_read() -> None:
    body = b'{"model":"other","top_k":1,"messages":[{"role":"user","content":"hi"}],"top_k":2,"\\u006dodel":"m"}'

    found = request.read(body, PLAIN).body("m")

    assert found == b'{"model":"m","top_k":2,"messages":[{"role":"user","content":"hi"}]}'


def test_the_bytes_of_a_field_stay_as_the_client_wrote_them() -> None:
    found = request.read(BODY, PLAIN).body("worker", max_tokens=5)

    assert found == (
        b'{"messages":[{"role":"user","content":"hi \\u00e9"}],"model":"worker","logit_bias":{"5": 1.0},"top_k":1e2,'
        b'"max_tokens":5}'
    )


def test_case_13_an_empty_list_of_tools_is_left_out() -> None:
    found = sent(ask_chat(tools=[], tool_choice="auto", parallel_tool_calls=True))

    assert not {"tools", "tool_choice", "parallel_tool_calls"} & found.keys()


def test_case_17_a_named_choice_for_an_engine_that_ignores_names() -> None:
    choice = {"type": "function", "function": {"name": "b"}}
    fields: Json = {"tools": [tool("a"), tool("b")], "tool_choice": choice}

    assert sent(ask_chat(**fields))["tool_choice"] == choice
    found = sent(ask_chat(Traits(named_tool_choice=False), **fields))
    assert (found["tools"], found["tool_choice"]) == ([tool("b")], "required")


def test_allowed_tools_are_the_only_tools() -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "b"}}]}

    found = sent(
        ask_chat(tools=[tool("a"), tool("b")], tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    )

    assert (found["tools"], found["tool_choice"]) == ([tool("b")], "required")


@pytest.mark.parametrize("options", [{}, {"stream_options": None}, {"stream_options": {"include_usage": False}}])
def test_case_54_usage_is_asked_for_and_kept_back_when_the_client_did_not_ask(options: Json) -> None:
    chunks = [chunk(content="x"), chunk("stop"), usage_chunk(counted(10, 5))]
    asked = ask_chat(stream=True, **options)

    stream = asked.answer("ID", 1).stream()
    found = pieces(stream.feed(wire(*chunks)))

    assert sent(asked)["stream_options"]["include_usage"] is True
    assert [piece["choices"] == [] for piece in found if isinstance(piece, dict)] == [False, False]
    assert (stream.tokens.input, stream.tokens.output) == (10, 5)


def test_case_54_usage_that_was_asked_for_is_passed_on() -> None:
    found = raw(chunk(content="x"), chunk("stop"), usage_chunk(counted(10, 5)), **USAGE)

    assert chat_streamed(found)["usage"]["total_tokens"] == 15
    assert pieces(found)[2]["choices"] == []  # type: ignore[index]


def test_case_54_other_options_of_a_stream_are_kept() -> None:
    found = sent(ask_chat(stream=True, stream_options={"include_obfuscation": False}))

    assert found["stream_options"] == {"include_obfuscation": False, "include_usage": True}


def test_case_55_the_developer_is_the_system_unless_the_template_knows_it() -> None:
    said = message("developer", "front")

    assert conversation(PLAIN, said, message("user", "hi"))[0] == message("system", "front")
    assert conversation(Traits(developer_role=True), said, message("user", "hi"))[0] == said


def test_case_55_lists_of_text_become_strings_for_templates_that_know_no_lists() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert conversation(PLAIN, message("user", parts)) == [message("user", parts)]
    assert conversation(Traits(content_parts=False), message("user", parts)) == [message("user", "a\nb")]


@pytest.mark.parametrize("content", [{"content": None}, {}])
def test_case_55_a_call_may_come_without_content(content: Json) -> None:
    called = {"role": "assistant", "tool_calls": [whole_call("c1", "f", "{}")]} | content

    assert conversation(PLAIN, message("user", "go"), called)[1] == called


def test_case_56_the_content_of_a_tool_message_may_be_a_list() -> None:
    told = message("tool", [{"type": "text", "text": "a"}], tool_call_id="c1")

    assert conversation(PLAIN, message("user", "go"), told)[1] == told
    assert conversation(Traits(content_parts=False), message("user", "go"), told)[1]["content"] == "a"


def test_case_56_ids_are_made_to_fit_the_template_on_both_sides_of_a_call() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [whole_call("call_123456789", "f", "{}")]}
    told = message("tool", "ok", tool_call_id="call_123456789")

    found = conversation(Traits(tool_ids="alnum9"), message("user", "go"), called, told)

    short = found[1]["tool_calls"][0]["id"]
    assert short.isalnum()
    assert len(short) == 9
    assert found[2]["tool_call_id"] == short
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
def test_case_57_what_only_the_worker_can_judge_passes(fields: Json) -> None:
    assert sent(ask_chat(**fields)).items() >= fields.items()


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


def test_case_58_thoughts_are_called_reasoning_content_whatever_the_worker_calls_them() -> None:
    stream = pieces(raw(chunk(reasoning="hm"), chunk(reasoning_content="so"), chunk("stop")))
    whole = json.loads(ask_chat().answer("ID", 1).plain(completion(reasoning="hm", content="x")).body)

    assert [piece["choices"][0]["delta"] for piece in stream[:2]] == [  # type: ignore[index]
        {"reasoning": "hm", "reasoning_content": "hm"},
        {"reasoning_content": "so"},
    ]
    assert whole["choices"][0]["message"]["reasoning_content"] == "hm"


def test_case_58_thoughts_in_the_history_are_renamed_for_templates_that_want_them() -> None:
    thought = message("assistant", "x", reasoning="hm")

    found = conversation(Traits(reasoning_field="reasoning_content"), message("user", "go"), thought)

    assert found[1] == message("assistant", "x", reasoning_content="hm")


def test_case_31_deltas_are_made_fit_for_an_sdk_that_adds_them_up() -> None:
    found = raw(
        chunk(role="assistant", content=""),
        chunk(role="assistant", **call(None, "c1", "f", '{"a":')),
        chunk(role="assistant", **call(None, "c1", "f", "1}")),
        chunk(**call(None, "c2", "g", {"b": 2})),
        chunk("tool_calls"),
    )

    message = chat_streamed(found)["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert [(one["id"], one["function"]["name"], one["function"]["arguments"]) for one in message["tool_calls"]] == [
        ("c1", "f", '{"a":1}'),
        ("c2", "g", '{"b":2}'),
    ]


def test_a_stream_that_lacks_nothing_passes_byte_for_byte() -> None:
    chunks = [
        llama_chunk(role="assistant", content=None),
        llama_chunk(content="Hé"),
        llama_chunk(**call(0, "c1", "f", "")),
        llama_chunk(**call(0, arguments="{}")),
        llama_chunk("tool_calls"),
    ]

    assert raw(*chunks, model="worker") == wire(*chunks)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_every_piece_has_the_name_that_the_client_asked_for(separators: tuple[str, str]) -> None:
    one = json.dumps(chunk("stop", content='"model":"worker"'), separators=separators).encode()
    stream = ask_chat(stream=True).answer("ID", 1).stream()

    found = pieces(stream.feed(b"data: " + one + b"\n\ndata: [DONE]\n\n"))[0]

    assert isinstance(found, dict)
    assert (found["model"], found["choices"][0]["delta"]["content"]) == ("m", '"model":"worker"')


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
def test_case_37_a_stream_that_breaks_ends_in_an_error_and_is_not_done(chunks: list[Json], done: bool) -> None:
    found = raw(*chunks, done=done)

    assert b"[DONE]" not in found
    last = pieces(found)[-1]
    assert isinstance(last, dict)
    assert last["error"]["type"] == "server_error"
    assert last["error"].keys() == {"message", "type", "param", "code"}
    with pytest.raises(openai.APIError):
        chat_streamed(found)


def test_case_37_a_worker_that_is_lost_is_an_error_once() -> None:
    stream = ask_chat(stream=True).answer("ID", 1).stream()
    stream.feed(wire(chunk(content="Hel"), done=False))

    out = stream.fail(Fault(kind=Kind.TIMEOUT, message="silent"))

    assert json.loads(out[6:])["error"]["code"] == "timeout"
    assert stream.fail(Fault(kind=Kind.TIMEOUT, message="again")) + stream.feed(said()) + stream.close() == b""


def test_an_end_that_was_announced_is_said_to_be_done() -> None:
    assert pieces(raw(chunk(content="x"), chunk("stop"), done=False))[-1] == "[DONE]"


def test_case_40_life_is_shown_by_comments() -> None:
    stream = ask_chat(stream=True).answer("ID", 1).stream()

    out = stream.open() + stream.ping() + stream.feed(said())

    assert out.startswith(b": ")
    assert chat_streamed(out)["choices"][0]["message"]["content"] == "Hello"


def test_case_43_an_answer_is_the_same_streamed_and_whole() -> None:
    stream = chat_streamed(raw(chunk(role="assistant", content="te"), chunk(content="xt"), chunk("stop")))
    whole = chat_plain(ask_chat().answer("ID", 1).plain(completion(content="text")).body)

    assert stream["choices"][0]["message"]["content"] == whole["choices"][0]["message"]["content"]
    assert stream["model"] == whole["model"] == "m"


def test_a_whole_answer_that_lacks_nothing_passes_byte_for_byte() -> None:
    body = completion("tool_calls", tool_calls=[whole_call("c1", "f", "{}")])

    assert ask_chat(model="worker").answer("ID", 1).plain(body).body is body


def test_a_whole_answers_calls_get_what_they_lack() -> None:
    body = completion("tool_calls", tool_calls=[{"function": {"name": "f", "arguments": {"a": 1}}}])

    found = json.loads(ask_chat().answer("ID", 1).plain(body).body)

    assert found["choices"][0]["message"]["tool_calls"] == [
        {"id": "call_ID_0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    ]


def test_an_answer_that_broke_off_is_no_answer() -> None:
    for body in (completion(None, content="x"), completion("abort"), b"", b'{"choices":[]}', b'{"error":"no"}'):
        with pytest.raises(BadAnswer):
            ask_chat().answer("ID", 1).plain(body)


@pytest.mark.parametrize("traits", [PLAIN, INLINE])
def test_case_01_a_later_system_message_stays_or_becomes_part_of_the_users_turn(traits: Traits) -> None:
    said = [message("system", "a"), message("user", "b"), message("system", "c"), message("user", "d")]

    found = conversation(traits, *said)

    assert found == (
        said
        if traits.inline_system
        else [message("system", "a"), message("user", "b\n<system-reminder>\nc\n</system-reminder>\nd")]
    )


def test_case_01_a_system_message_never_comes_between_a_call_and_its_result() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [whole_call("c1", "f", "{}")]}
    told = message("tool", "ok", tool_call_id="c1")

    found = conversation(PLAIN, message("user", "go"), called, message("system", "c"), told)

    assert [one["role"] for one in found] == ["user", "assistant", "tool", "user"]


def test_several_system_messages_at_the_front_are_one_for_templates_that_take_one() -> None:
    said = [message("system", "a"), message("system", [{"type": "text", "text": "b"}]), message("user", "c")]

    assert conversation(PLAIN, *said)[0] == message("system", "a\n\nb")


@pytest.mark.parametrize("as_parts", [True, False])
def test_case_03_the_billing_header_never_reaches_the_prompt(as_parts: bool) -> None:
    header = "x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli;"
    front = [{"type": "text", "text": header}, {"type": "text", "text": "front"}] if as_parts else f"{header}\nfront"

    found = conversation(PLAIN, message("system", front), message("user", header))

    assert "billing" not in str(found[0])
    assert "front" in str(found[0])
    assert found[1]["content"] == header
    assert conversation(PLAIN, message("system", header), message("user", "hi")) == [message("user", "hi")]


def test_images_are_refused_by_name_where_they_cannot_be_shown() -> None:
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    remote = {"type": "image_url", "image_url": {"url": "http://10.0.0.1/x.png"}}
    said = [message("user", [part])]

    assert refused(ask_chat, messages=said).param == "messages[0].content[0]"
    assert sent(ask_chat(SEEING, messages=said))["messages"] == said
    assert refused(ask_chat, traits=SEEING, messages=[message("user", [remote])]).param == (
        "messages[0].content[0].image_url"
    )


def test_case_10_a_model_without_eyes_is_told_of_an_image_in_a_tool_message() -> None:
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}

    found = conversation(PLAIN, message("user", "go"), message("tool", [part], tool_call_id="c1"))

    assert found[1]["content"] == "[image omitted: this model does not take images]"


@pytest.mark.parametrize(
    ("traits", "asked", "expected"),
    [
        (PLAIN, {"max_completion_tokens": 9}, {"max_completion_tokens": 9}),
        (Traits(max_completion_tokens=False), {"max_completion_tokens": 9}, {"max_tokens": 9}),
        (Traits(max_output_tokens=5), {"max_completion_tokens": 9}, {"max_tokens": 5}),
        (Traits(max_output_tokens=5), {"max_tokens": 4}, {"max_tokens": 4}),
        (Traits(default_output_tokens=7), {}, {"max_tokens": 7}),
    ],
)
def test_how_much_may_be_written_is_held_to_what_the_function_allows(
    traits: Traits, asked: Json, expected: Json
) -> None:
    found = sent(ask_chat(traits, **asked))

    assert {name: found[name] for name in ("max_tokens", "max_completion_tokens") if name in found} == expected


def test_the_room_that_is_left_replaces_what_was_asked() -> None:
    assert json.loads(ask_chat(max_completion_tokens=9).body("worker", 4))["max_completion_tokens"] == 4
    assert json.loads(ask_chat().body("m", 4))["max_tokens"] == 4


def test_effort_schema_and_sampling_are_fitted_to_the_function() -> None:
    traits = Traits(json_schema=False, sampling=Sampling(temperature=0.6, top_k=20))
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}

    found = sent(ask_chat(traits, reasoning_effort="max", response_format=form, temperature=None, top_k=1))

    assert found["reasoning_effort"] == "high"
    assert found["response_format"] == {"type": "json_object", "schema": {"type": "object"}}
    assert (found["temperature"], found["top_k"]) == (0.6, 1)
    assert "reasoning_effort" not in sent(ask_chat(Traits(effort={}), reasoning_effort="low"))


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
    fault = refused(ask_chat, **fields)

    assert fault.param == param


def test_completions_pass_like_chat() -> None:
    body = b'{"model":"m","prompt":["a","b"],"stream":true,"n":1}'
    asked = request.read_completion(body, Traits(default_output_tokens=7))

    sent = json.loads(asked.body("worker"))
    ends = [
        {"model": "worker", "choices": [{"index": index, "text": "x", "finish_reason": "stop"}]} for index in (0, 1)
    ]
    found = replay(lambda: asked.answer("ID", 1).stream(), wire(*ends, usage_chunk()))
    cut = replay(lambda: asked.answer("ID", 1).stream(), wire(ends[0], done=False))

    assert sent == json.loads(body) | {"model": "worker", "max_tokens": 7} | USAGE
    assert [piece if isinstance(piece, str) else piece["model"] for piece in pieces(found)] == ["m", "m", "[DONE]"]
    assert b"[DONE]" not in cut
    assert request.read_completion(b'{"model":"m","prompt":[1,2,3]}', PLAIN).choices == 1


def test_the_session_is_found_in_the_body() -> None:
    assert ask_chat(prompt_cache_key="k", user="u").affinity == "k"
    assert ask_chat(user="u").affinity == "u"


def test_counting_sends_the_prompt_that_answering_would_send() -> None:
    asked = ask_chat(tools=[tool("f")], temperature=1, chat_template_kwargs={"enable_thinking": False})

    found = json.loads(asked.count("worker"))

    assert found.keys() == {"model", "messages", "tools", "chat_template_kwargs"}
