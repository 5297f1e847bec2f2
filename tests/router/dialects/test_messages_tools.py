"""Tools of Anthropic requests: what reaches the worker. The numbers are those of docs/dialects.md."""

from typing import Any

import pytest

from cortex.router.dialects.core.errors import Kind
from cortex.router.dialects.core.traits import Traits
from tests.router.dialects.request_builders import (
    assistant,
    body_of,
    messages_request,
    refusal_of,
    result,
    text,
    tool,
    use,
    user,
)


@pytest.mark.parametrize("value", [{}, None])
def test_case_12_a_call_without_input_has_empty_arguments(value: Any) -> None:
    block = use("t1") | {"input": value}
    history = [user("go"), assistant(text("ok"), block), user(result("t1"))]

    actual = body_of(messages_request(messages=history))["messages"]

    assert actual[1] == {
        "role": "assistant",
        "content": "ok",
        "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }


@pytest.mark.parametrize("choice", [{}, {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}])
def test_case_13_an_empty_list_of_tools_is_no_tools_and_no_choice(choice: dict[str, Any]) -> None:
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & body_of(messages_request(tools=[], **choice)).keys()
    assert not {"tools", "tool_choice"} & body_of(messages_request(**choice)).keys()


def test_case_14_deferred_tools_are_hidden_until_they_are_referenced() -> None:
    tools = [tool("late", defer_loading=True), tool("DeferredToolPlaceholder", defer_loading=True), tool("now")]
    actual = [{"type": "tool_reference", "tool_name": "late"}]
    history = [user("go"), assistant(use("t1", "now")), user(result("t1", actual))]

    before = body_of(messages_request(tools=tools))
    after = body_of(messages_request(tools=tools, messages=history))

    assert [one["function"]["name"] for one in before["tools"]] == ["now"]
    assert [one["function"]["name"] for one in after["tools"]] == ["now", "late"]
    assert after["messages"][-1]["content"] == "Tool late is now available"
    assert "defer_loading" not in str(after)


def test_case_14_a_search_that_ran_elsewhere_references_tools_too() -> None:
    search = {"tool_references": [{"type": "tool_reference", "tool_name": "late"}]}
    block = {"type": "tool_search_tool_result", "tool_use_id": "s1", "content": search}

    actual = body_of(
        messages_request(tools=[tool("late", defer_loading=True)], messages=[assistant(block), user("go")])
    )

    assert actual["tools"][0]["function"]["name"] == "late"


def test_case_15_a_schema_is_passed_on_as_it_is() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "a": {"anyOf": [{"const": 1}, {"type": "string", "pattern": "^x", "format": "date"}]},
            "b": {"type": "number", "exclusiveMinimum": 0.5},
        },
    }

    actual = body_of(
        messages_request(tools=[tool(input_schema=schema, cache_control={"type": "ephemeral"}, strict=True)])
    )

    assert actual["tools"] == [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": schema, "strict": True}}
    ]


def test_case_15_a_schema_without_a_type_is_an_objects() -> None:
    actual = body_of(messages_request(tools=[{"name": "f", "input_schema": {}, "description": None}]))

    assert actual["tools"] == [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("name", ["mcp__server__do", "a.b.c", "n" * 90])
def test_case_16_the_name_of_a_tool_is_never_changed(name: str) -> None:
    history = [user("go"), assistant(use("t1", name)), user(result("t1"))]

    actual = body_of(messages_request(tools=[tool(name)], messages=history))

    assert actual["tools"][0]["function"]["name"] == name
    assert actual["messages"][1]["tool_calls"][0]["function"]["name"] == name


@pytest.mark.parametrize("disable", [None, True, False])
@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_case_17_every_tool_choice_has_its_counterpart(choice: dict[str, Any], expected: Any, disable: Any) -> None:
    value = choice | ({} if disable is None else {"disable_parallel_tool_use": disable})

    actual = body_of(messages_request(tools=[tool()], tool_choice=value))

    assert actual["tool_choice"] == expected
    assert actual.get("parallel_tool_calls") == (None if disable is None else not disable)


def test_case_17_an_engine_that_ignores_names_gets_only_the_chosen_tool() -> None:
    choice = {"type": "tool", "name": "b"}

    actual = body_of(
        messages_request(Traits(named_tool_choice=False), tools=[tool("a"), tool("b")], tool_choice=choice)
    )

    assert actual["tool_choice"] == "required"
    assert [one["function"]["name"] for one in actual["tools"]] == ["b"]


def test_case_17_choosing_an_undeclared_tool_is_refused_by_name() -> None:
    fault = refusal_of(messages_request, tools=[tool("a")], tool_choice={"type": "tool", "name": "b"})

    assert fault.param == "tool_choice.name"


def test_case_26_a_tool_that_runs_elsewhere_is_refused_by_its_type() -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search", "max_uses": 8}]

    fault = refusal_of(messages_request, tools=tools)

    assert (fault.kind, fault.param) == (Kind.UNSUPPORTED, "tools[0].type")
    assert "web_search_20250305" in fault.message
