"""Responses requests: what reaches the worker. The numbers are those of docs/dialects.md."""

import json
from typing import Any

import pytest

from cortex.router.dialects.core.errors import Kind
from cortex.router.dialects.core.traits import Traits
from tests.router.dialects.request_builders import (
    INLINE,
    PLAIN,
    PNG,
    THINKING,
    VISION,
    body_of,
    refusal_of,
    responses_request,
)
from tests.router.dialects.workers import completion

Json = dict[str, Any]


def conversation(traits: Traits = PLAIN, **fields: Any) -> list[Json]:
    actual: list[Json] = body_of(responses_request(traits, **fields))["messages"]
    return actual


def item(role: str, *texts: str) -> Json:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": one} for one in texts]}


def function(name: str = "f", **more: Any) -> Json:
    return {"type": "function", "name": name, "parameters": {"type": "object", "properties": {}}} | more


def called(name: str = "f", call_id: str = "c1", **more: Any) -> Json:
    return {"type": "function_call", "name": name, "call_id": call_id, "arguments": "{}"} | more


def output(call_id: str = "c1", value: Any = "done") -> Json:
    return {"type": "function_call_output", "call_id": call_id, "output": value}


IMAGE = {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}", "detail": "auto"}

CODEX: Json = {
    "instructions": "",
    "input": [item("developer", "permissions"), item("developer", "<environment>"), item("user", "run echo")],
    "tools": [
        function("exec_command", strict=False),
        {
            "type": "namespace",
            "name": "multi_agent_v1",
            "description": "agents",
            "tools": [function("spawn"), function("wait")],
        },
        {"type": "web_search", "external_web_access": True},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "thread-1",
    "client_metadata": {"x": "y"},
}


def test_case_44_a_first_turn_of_codex_is_understood() -> None:
    parsed = responses_request(**CODEX)
    actual = body_of(parsed)

    assert actual["messages"] == [
        {"role": "system", "content": "permissions\n\n<environment>"},
        {"role": "user", "content": "run echo"},
    ]
    assert [one["function"]["name"] for one in actual["tools"]] == [
        "exec_command",
        "multi_agent_v1__spawn",
        "multi_agent_v1__wait",
    ]
    assert actual["tools"][0]["function"]["strict"] is False
    assert "strict" not in actual["tools"][1]["function"]
    assert (actual["reasoning_effort"], actual["parallel_tool_calls"]) == ("medium", True)
    assert actual["stream_options"] == {"include_usage": True}
    assert not {"client_metadata", "store", "include", "prompt_cache_key"} & actual.keys()
    assert parsed.dropped == ("tools[2]",)
    assert parsed.affinity == "thread-1"


def test_case_44_instructions_and_leading_system_items_are_one_system_message() -> None:
    history = [{"role": "system", "content": "b"}, item("developer", "c"), item("user", "hi")]

    assert conversation(instructions="a", input=history)[0] == {"role": "system", "content": "a\n\nb\n\nc"}


@pytest.mark.parametrize("traits", [PLAIN, INLINE])
def test_case_44_a_later_developer_item_stays_where_it_is(traits: Traits) -> None:
    history = [item("user", "one"), item("assistant", "two"), item("developer", "mind"), item("user", "three")]

    actual = conversation(traits, input=history)

    assert actual[2:] == (
        [{"role": "system", "content": "mind"}, {"role": "user", "content": "three"}]
        if traits.inline_system
        else [{"role": "user", "content": "<system-reminder>\nmind\n</system-reminder>\nthree"}]
    )


def test_case_45_a_call_from_a_namespace_maps_back_to_its_flat_name() -> None:
    history = [item("user", "go"), called("spawn", namespace="multi_agent_v1"), output()]

    actual = conversation(**(CODEX | {"input": history}))

    assert actual[1]["tool_calls"][0]["function"]["name"] == "multi_agent_v1__spawn"


def test_case_45_a_conflicting_flat_name_is_made_unique() -> None:
    tools = [function("a__b"), {"type": "namespace", "name": "a", "tools": [function("b")]}]
    history = [item("user", "go"), called("b", namespace="a"), output()]

    actual = body_of(responses_request(tools=tools, input=history))

    names = [one["function"]["name"] for one in actual["tools"]]
    assert len(set(names)) == 2
    assert actual["messages"][1]["tool_calls"][0]["function"]["name"] == names[1]


def test_case_46_an_image_in_an_output_follows_the_tool_messages() -> None:
    history = [item("user", "go"), called(), called("g", "c2"), output("c1", [IMAGE]), output("c2")]

    actual = conversation(VISION, input=history)

    assert [message["role"] for message in actual] == ["user", "assistant", "tool", "tool", "user"]
    assert [part["type"] for part in actual[4]["content"]] == ["text", "image_url"]


def test_case_46_an_image_in_an_output_becomes_a_placeholder_without_vision() -> None:
    history = [item("user", "go"), called(), output("c1", [{"type": "input_text", "text": "shot"}, IMAGE])]

    assert conversation(input=history)[-1]["content"] == "shot\n[image omitted: this model does not take images]"
    assert refusal_of(responses_request, input=[{"role": "user", "content": [IMAGE]}]).param == "input[0].content[0]"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"content": None, "encrypted_content": None}, None),
        ({"content": [], "encrypted_content": "gAAAA"}, None),
        ({"content": [{"type": "reasoning_text", "text": "hm"}]}, "hm"),
        ({"summary": [{"type": "summary_text", "text": "short"}]}, "short"),
    ],
)
def test_case_47_reasoning_is_replayed_from_content_or_summary(fields: Json, expected: str | None) -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": []} | fields
    history = [item("user", "go"), thought, called(), output()]

    message = conversation(THINKING, input=history)[1]

    assert message.get("reasoning_content") == expected
    assert len(message["tool_calls"]) == 1


def test_case_48_items_may_lack_their_id_and_their_type() -> None:
    history = [
        {"role": "system", "content": "front"},
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "ok"}]},
        {"type": "function_call", "name": "f", "call_id": "c1", "arguments": '{"a":1}'},
        output(),
    ]

    actual = conversation(input=history)

    assert actual[2] == {
        "role": "assistant",
        "content": "ok",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
    }


@pytest.mark.parametrize("name", ["previous_response_id", "conversation", "prompt", "background"])
def test_case_52_what_needs_stored_answers_is_refused_by_name(name: str) -> None:
    fields: Json = {
        "previous_response_id": "resp_1",
        "conversation": "c",
        "prompt": {"id": "p"},
        "background": True,
    }

    fault = refusal_of(responses_request, **{name: fields[name]})

    assert (fault.kind, fault.param) == (Kind.UNSUPPORTED, name)
    absent: Json = {name: None}
    assert body_of(responses_request(**absent))["messages"]


def test_case_52_a_reference_to_a_stored_item_is_refused_by_place() -> None:
    assert refusal_of(responses_request, input=[{"type": "item_reference", "id": "x"}]).param == "input[0]"


def test_case_53_a_schema_for_the_text_constrains_it() -> None:
    form = {"type": "json_schema", "name": "out", "schema": {"type": "object"}, "strict": True}

    assert body_of(responses_request(text={"format": form}))["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "out", "schema": {"type": "object"}, "strict": True},
    }
    assert body_of(responses_request(text={"format": {"type": "json_object"}}))["response_format"] == {
        "type": "json_object"
    }
    assert "response_format" not in body_of(responses_request(text={"format": {"type": "text"}, "verbosity": "low"}))
    assert refusal_of(responses_request, text={"format": {"type": "xml"}}).param == "text.format.type"


def test_a_custom_tool_is_a_function_of_one_text() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /x+/"}
    tool = {"type": "custom", "name": "apply_patch", "description": "Patches.", "format": grammar}
    history = [
        item("user", "go"),
        {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"},
    ]

    actual = body_of(responses_request(tools=[tool], input=history))

    function = actual["tools"][0]["function"]
    assert function["parameters"]["required"] == ["input"]
    assert "start: /x+/" in function["description"]
    assert actual["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"input":"*** Begin"}'
    assert actual["messages"][2] == {"role": "tool", "tool_call_id": "c1", "content": "ok"}


@pytest.mark.parametrize(
    ("choice", "expected", "names"),
    [
        ("required", "required", ["a", "b"]),
        ("none", "none", ["a", "b"]),
        ({"type": "function", "name": "b"}, {"type": "function", "function": {"name": "b"}}, ["a", "b"]),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "b"}]},
            "required",
            ["b"],
        ),
        ({"type": "web_search"}, None, ["a", "b"]),
        (None, None, ["a", "b"]),
    ],
)
def test_every_tool_choice_has_its_counterpart(choice: Any, expected: Any, names: list[str]) -> None:
    actual = body_of(responses_request(tools=[function("a"), function("b")], tool_choice=choice))

    assert actual.get("tool_choice") == expected
    assert [one["function"]["name"] for one in actual["tools"]] == names


def test_an_engine_that_ignores_names_gets_only_the_chosen_tool() -> None:
    choice = {"type": "function", "name": "b"}
    tools = [function("a"), function("b")]

    actual = body_of(responses_request(Traits(named_tool_choice=False), tools=tools, tool_choice=choice))

    assert (actual["tool_choice"], len(actual["tools"])) == ("required", 1)


def test_effort_none_stops_thinking() -> None:
    actual = body_of(responses_request(reasoning={"effort": "none"}))

    assert (actual["reasoning_effort"], actual["chat_template_kwargs"]) == ("none", {"enable_thinking": False})


def test_a_file_of_text_is_shown_and_any_other_refused() -> None:
    notes = {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,Ym9keQ=="}
    pdf = {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}

    assert conversation(input=[{"role": "user", "content": [notes]}])[0]["content"] == "a.txt\nbody"
    assert (
        refusal_of(responses_request, input=[{"role": "user", "content": [pdf]}]).param
        == "input[0].content[0].file_data"
    )
    assert "omitted" in conversation(input=[called(), output("c1", [pdf])])[-1]["content"]


def test_items_that_only_openai_can_read_are_reported_as_dropped() -> None:
    history = [
        item("user", "go"),
        {"type": "web_search_call", "id": "ws"},
        {"type": "compaction", "encrypted_content": "x"},
    ]

    parsed = responses_request(input=history)

    assert body_of(parsed)["messages"] == [{"role": "user", "content": "go"}]
    assert parsed.dropped == ("input[1]", "input[2]")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"content": "x"}]}, "input[0]"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0].name"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input[0].content[0]"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{"name": ""}]}]}, "tools[0].tools[0].name"),
        ({"tools": [function()], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [function()], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_by_name(fields: Json, param: str) -> None:
    fault = refusal_of(responses_request, **fields)

    assert fault.param == param
    assert fault.message.startswith(f"{param}: ")


def test_the_input_may_be_a_text() -> None:
    assert conversation(instructions="front", input="hi") == [
        {"role": "system", "content": "front"},
        {"role": "user", "content": "hi"},
    ]


def test_max_output_tokens_does_not_exceed_the_functions_limit() -> None:
    traits = Traits(default_output_tokens=50, max_output_tokens=100)

    assert body_of(responses_request(traits, max_output_tokens=900))["max_tokens"] == 100
    assert body_of(responses_request(traits))["max_tokens"] == 50
    assert "max_tokens" not in body_of(responses_request())


OPEN_RESPONSES = {
    "id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "previous_response_id",
    "instructions", "output", "error", "tools", "tool_choice", "truncation", "parallel_tool_calls", "text", "top_p",
    "presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning", "usage", "max_output_tokens",
    "max_tool_calls", "store", "background", "service_tier", "metadata", "safety_identifier", "prompt_cache_key",
}  # fmt: skip
"""The keys of a response that the schema of Open Responses requires."""


def test_an_answer_has_every_key_that_open_responses_requires() -> None:
    request = responses_request(tools=[{"type": "function", "name": "f", "parameters": {}}], temperature=0.5)
    reply = request.answer("a", 1).with_clock(lambda: 7.5)

    answer = json.loads(reply.plain(completion(content="hi")).body)

    assert set(answer) >= OPEN_RESPONSES
    assert (answer["created_at"], answer["completed_at"], answer["temperature"], answer["top_p"]) == (1, 7, 0.5, 1.0)
    assert (answer["tools"][0]["description"], answer["tools"][0]["strict"]) == (None, None)


def test_an_incomplete_answer_has_no_time_of_completion() -> None:
    answer = json.loads(responses_request().answer("a", 1).plain(completion("length", content="hi")).body)

    assert answer["completed_at"] is None
