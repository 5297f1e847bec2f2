"""Anthropic requests: what reaches the worker. The numbers are those of docs/dialects.md."""

import json
from typing import Any

import pytest

from cortex.functions.capabilities import Sampling
from cortex.router.dialects.core import limits
from cortex.router.dialects.core.errors import DialectError, Kind
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.messages import request
from tests.router.dialects.request_builders import (
    INLINE,
    PLAIN,
    PNG,
    THINKING,
    VISION,
    assistant,
    body_of,
    image,
    messages_body,
    messages_request,
    refusal_of,
    result,
    text,
    tool,
    use,
    user,
)

BILLING = "x-anthropic-billing-header: cc_version=2.1.329.f6c; cc_entrypoint=sdk-cli;"
REMINDER = "<system-reminder>\nmind\n</system-reminder>"


def conversation(traits: Traits = PLAIN, **fields: Any) -> list[dict[str, Any]]:
    actual: list[dict[str, Any]] = body_of(messages_request(traits, **fields))["messages"]
    return actual


def test_case_01_an_inline_system_message_stays_where_it_is_when_the_template_allows_it() -> None:
    history = [user("one"), {"role": "system", "content": "mind"}, assistant("two"), user("three")]

    roles = [message["role"] for message in conversation(INLINE, system="front", messages=history)]

    assert roles == ["system", "user", "system", "assistant", "user"]


def test_case_01_an_inline_system_message_becomes_part_of_the_users_turn_otherwise() -> None:
    history = [user("one"), {"role": "system", "content": [text("mind")]}, assistant("two"), user("three")]

    actual = conversation(system="front", messages=history)

    assert actual == [
        {"role": "system", "content": "front"},
        {"role": "user", "content": f"one\n{REMINDER}"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]


@pytest.mark.parametrize("traits", [PLAIN, INLINE])
def test_case_01_an_inline_system_message_never_comes_between_a_call_and_its_result(traits: Traits) -> None:
    history = [user("go"), assistant(use("t1")), {"role": "system", "content": "mind"}, user(result("t1"))]

    roles = [message["role"] for message in conversation(traits, messages=history)]

    assert roles == ["user", "assistant", "tool", "system" if traits.inline_system else "user"]


@pytest.mark.parametrize("traits", [PLAIN, INLINE])
def test_case_01_two_requests_of_one_session_share_their_whole_prefix(traits: Traits) -> None:
    first = [user("one"), {"role": "system", "content": "mind"}]
    second = [*first, assistant(use("t1")), user(result("t1"))]
    system = [text(BILLING), text("front")]
    other = [text(BILLING.replace("f6c", "0aa")), text("front")]

    before = body_of(messages_request(traits, system=system, messages=first, tools=[tool()]))
    after = body_of(messages_request(traits, system=other, messages=second, tools=[tool()]))

    assert after["tools"] == before["tools"]
    assert after["messages"][: len(before["messages"])] == before["messages"]


def test_case_02_system_blocks_are_joined_and_empty_ones_dropped() -> None:
    blocks = [text("one") | {"cache_control": {"type": "ephemeral"}}, text(""), text("two")]

    actual = conversation(system=blocks)

    assert actual[0] == {"role": "system", "content": "one\n\ntwo"}


@pytest.mark.parametrize(
    "system",
    [
        [text(BILLING), text("front")],
        [text(BILLING + "\n"), text("front")],
        f"{BILLING}\nfront",
        f"{BILLING}\n\nfront",
        f"{BILLING} front",
        "x-anthropic-billing-header: cc_version=2.1; cch=00abc;\nfront",
    ],
)
def test_case_03_the_billing_header_never_reaches_the_prompt(system: Any) -> None:
    assert conversation(system=system)[0]["content"].strip() == "front"


def test_case_03_the_billing_header_is_stripped_from_an_inline_system_message() -> None:
    history = [user("hi"), {"role": "system", "content": [text(BILLING)]}]

    assert conversation(messages=history) == [user("hi")]


def test_case_03_a_user_may_talk_about_the_billing_header() -> None:
    assert conversation(messages=[user(BILLING)]) == [user(BILLING)]


@pytest.mark.parametrize("fields", [{}, {"system": ""}, {"system": []}, {"system": None}])
def test_case_04_no_system_prompt_is_no_system_message(fields: dict[str, Any]) -> None:
    assert conversation(**fields) == [user("hi")]


def test_case_05_consecutive_user_turns_are_merged() -> None:
    assert conversation(messages=[user("one"), user(text("two"), text("three"))]) == [user("one\ntwo\nthree")]


def test_case_05_a_history_may_begin_with_the_assistant() -> None:
    history = [assistant("hello"), user("hi")]

    assert conversation(messages=history) == history


def test_case_06_a_tool_result_comes_before_what_the_user_says_with_it() -> None:
    history = [user("go"), assistant(use("t1")), user(text("and now?"), result("t1", "ok"))]

    assert conversation(messages=history)[2:] == [
        {"role": "tool", "tool_call_id": "t1", "content": "ok"},
        {"role": "user", "content": "and now?"},
    ]


def test_case_07_two_tool_results_in_one_turn_stay_in_order() -> None:
    history = [user("go"), assistant(use("t1"), use("t2")), user(result("t1", "1"), text("x"), result("t2", "2"))]

    assert conversation(messages=history)[2:] == [
        {"role": "tool", "tool_call_id": "t1", "content": "1"},
        {"role": "tool", "tool_call_id": "t2", "content": "2"},
        {"role": "user", "content": "x"},
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [("s", "s"), ([text("a"), text("b")], "a\nb"), (None, ""), ([], ""), ([{"type": "new_kind"}], "")],
)
def test_case_08_every_form_of_a_tool_results_content_is_taken(content: Any, expected: str) -> None:
    actual = conversation(messages=[user("go"), assistant(use("t1")), user(result("t1", content))])

    assert actual[-1] == {"role": "tool", "tool_call_id": "t1", "content": expected}


def test_case_08_a_tool_result_may_have_no_content_at_all() -> None:
    bare = {"type": "tool_result", "tool_use_id": "t1"}

    assert conversation(messages=[user("go"), assistant(use("t1")), user(bare)])[-1]["content"] == ""


def test_case_09_the_model_can_see_that_a_tool_failed() -> None:
    actual = conversation(messages=[user("go"), assistant(use("t1")), user(result("t1", "no", is_error=True))])

    assert actual[-1]["content"] == "Error: no"


def test_case_10_images_of_tool_results_follow_all_tool_messages() -> None:
    history = [user("go"), assistant(use("t1"), use("t2")), user(result("t1", [image()]), result("t2"), text("so?"))]

    actual = conversation(VISION, messages=history)

    assert [message["role"] for message in actual] == ["user", "assistant", "tool", "tool", "user"]
    assert actual[2]["content"]
    assert actual[4]["content"] == [
        text("Image from tool call t1"),
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        text("so?"),
    ]


def test_case_10_an_image_in_a_tool_result_becomes_a_placeholder_without_vision() -> None:
    history = [user("go"), assistant(use("t1")), user(result("t1", [text("shot:"), image()]))]

    actual = conversation(messages=history)

    assert actual[-1]["content"] == "shot:\n[image omitted: this model does not take images]"


def test_case_10_a_users_image_is_refused_by_name_without_vision() -> None:
    fault = refusal_of(messages_request, messages=[user(text("look"), image())])

    assert fault.param == "messages[0].content[1]"


@pytest.mark.parametrize("signature", ["", "cortex", "EqQBCkYIBRgCKkD"])
def test_case_11_thinking_with_any_signature_is_sent_to_templates_that_take_it(signature: str) -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": signature}
    history = [user("go"), assistant(thought, text("so")), user("on")]

    assert conversation(THINKING, messages=history)[1]["reasoning_content"] == "hm"
    assert conversation(PLAIN, messages=history)[1] == {"role": "assistant", "content": "so"}


def test_case_11_redacted_thinking_is_dropped() -> None:
    history = [user("go"), assistant({"type": "redacted_thinking", "data": "xx"}, text("so")), user("on")]

    assert conversation(messages=history)[1] == {"role": "assistant", "content": "so"}


def test_case_11_a_turn_with_only_thinking_is_sent_or_removed() -> None:
    history = [user("go"), assistant({"type": "thinking", "thinking": "hm", "signature": ""}), user("on")]

    assert conversation(THINKING, messages=history)[1] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
    }
    assert conversation(PLAIN, messages=history) == [user("go\non")]


def test_case_19_unknown_fields_and_blocks_are_accepted_and_reported_as_dropped() -> None:
    history = [user(text("hi"), {"type": "hologram", "text": 5}), assistant({"type": "compaction", "content": {}})]

    parsed = messages_request(
        messages=[*history, user("go")], context_management={"edits": []}, speed="fast", brand_new=[1]
    )

    assert body_of(parsed)["messages"] == [user("hi\ngo")]
    assert {"messages[0].content[1]", "messages[1].content[0]"} < set(parsed.dropped)


def test_case_20_a_missing_max_tokens_is_refused() -> None:
    fault = refusal_of(messages_request, max_tokens=None)

    assert (fault.param, fault.message) == ("max_tokens", "max_tokens: field required")


def test_case_20_max_tokens_of_zero_only_processes_the_prompt() -> None:
    parsed = messages_request(max_tokens=0)

    assert parsed.prewarm
    assert body_of(parsed)["max_tokens"] == 1


def test_case_20_max_tokens_does_not_exceed_the_functions_limit() -> None:
    assert body_of(messages_request(Traits(max_output_tokens=100), max_tokens=32000))["max_tokens"] == 100


def test_case_20_a_prompt_that_leaves_too_little_room_is_an_error_with_numbers_or_clamped() -> None:
    small = Traits(context_window=32768, on_long_prompt="error")
    clamping = Traits(context_window=32768, on_long_prompt="clamp")

    with pytest.raises(DialectError) as together:
        limits.fit(20000, 32000, small)
    with pytest.raises(DialectError) as alone:
        limits.fit(40000, 32000, clamping)

    assert together.value.fault().message == (
        "input length and `max_tokens` exceed context limit: 20000 + 32000 > 32768,"
        " decrease input length or `max_tokens` and try again"
    )
    assert alone.value.fault().message == "prompt is too long: 40000 tokens > 32768 maximum"
    assert limits.fit(20000, 32000, clamping) == 12768
    assert limits.fit(20000, 1000, small) == 1000
    assert limits.fit(20000, 32000, PLAIN) == 32000


def test_case_20_the_remaining_window_replaces_the_clients_limit() -> None:
    assert json.loads(bytes(messages_request(max_tokens=32000).body("worker", 12768)))["max_tokens"] == 12768


@pytest.mark.parametrize("thinking", [{"type": "adaptive", "display": "omitted"}, {"type": "between_tools"}, None])
def test_case_21_adaptive_thinking_is_left_to_the_model(thinking: Any) -> None:
    assert body_of(messages_request(thinking=thinking)) == body_of(messages_request())


def test_case_21_thinking_that_is_disabled_is_really_off() -> None:
    actual = body_of(messages_request(thinking={"type": "disabled"}, output_config={"effort": "high"}))

    assert actual["reasoning_effort"] == "none"
    assert actual["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize("field", ["thinking_token_budget", "thinking_budget_tokens"])
def test_case_21_a_budget_for_thinking_reaches_engines_that_have_one(field: Any) -> None:
    traits = Traits(thinking_budget=field, max_output_tokens=1500)

    actual = body_of(messages_request(traits, thinking={"type": "enabled", "budget_tokens": 2000}))

    assert actual[field] == 1499


@pytest.mark.parametrize("budget", [4096, 1000, None])
def test_case_21_an_invalid_budget_is_refused_by_name(budget: Any) -> None:
    fault = refusal_of(messages_request, thinking={"type": "enabled", "budget_tokens": budget})

    assert fault.param == "thinking.budget_tokens"


@pytest.mark.parametrize(
    ("effort", "expected"), [("low", "low"), ("xhigh", "high"), ("max", "high"), ("brand-new", None)]
)
def test_case_21_an_unsupported_effort_maps_to_the_nearest(effort: str, expected: str | None) -> None:
    assert body_of(messages_request(output_config={"effort": effort})).get("reasoning_effort") == expected


def test_case_22_a_schema_for_the_output_constrains_it() -> None:
    form = {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}

    full = body_of(messages_request(output_config={"format": form}))
    weak = body_of(messages_request(Traits(json_schema=False), output_config={"format": form}))

    assert full["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": form["schema"], "strict": True},
    }
    assert weak["response_format"] == {"type": "json_object", "schema": form["schema"]}


def test_case_23_stop_sequences_reach_the_worker() -> None:
    assert body_of(messages_request(stop_sequences=["END", ""]))["stop"] == ["END"]
    assert "stop" not in body_of(messages_request(stop_sequences=[]))


def test_case_24_counting_sends_the_prompt_that_answering_would_send() -> None:
    fields: dict[str, Any] = {"system": "front", "tools": [tool()], "thinking": {"type": "disabled"}}
    body = json.loads(messages_body(**fields))
    del body["max_tokens"]

    counted = json.loads(bytes(request.read_count(json.dumps(body).encode(), PLAIN).count("worker")))
    answered = body_of(messages_request(**fields))

    assert counted == {name: answered[name] for name in counted}
    assert {"model", "messages", "tools", "chat_template_kwargs"} <= counted.keys()


def test_case_24_an_estimate_grows_with_text_tools_and_images() -> None:
    def estimate(**fields: Any) -> int:
        return limits.estimate(messages_request(VISION, **fields).upstream.request)

    bare = estimate()

    assert 0 < bare < 50
    assert estimate(system="word " * 1000) == pytest.approx(bare + 1400, rel=0.2)
    assert estimate(tools=[tool()]) > bare
    assert estimate(messages=[user(text("hi"), image())]) > bare + 500


def test_case_25_a_final_assistant_message_is_continued() -> None:
    history = [user("count"), assistant("one, two,")]

    actual = body_of(messages_request(messages=history))

    assert (actual["continue_final_message"], actual["add_generation_prompt"]) == (True, False)
    assert refusal_of(messages_request, traits=Traits(prefill=False), messages=history).param == "messages"


def test_case_25_a_final_call_is_not_continued() -> None:
    assert "continue_final_message" not in body_of(messages_request(messages=[user("go"), assistant(use("t1"))]))


def document(**source: Any) -> dict[str, Any]:
    return {"type": "document", "title": "Notes", "source": source}


def test_case_27_a_text_document_is_shown_with_its_title() -> None:
    plain = document(type="text", media_type="text/plain", data="body")
    nested = document(type="content", content=[text("a"), text("b")])
    encoded = document(type="base64", media_type="text/plain", data="Ym9keQ==")

    actual = conversation(messages=[user(plain, nested, encoded)])

    assert actual == [user("Notes\nbody\nNotes\na\nb\nNotes\nbody")]


def test_case_27_a_pdf_is_refused_from_a_user_and_named_in_a_tools_result() -> None:
    pdf = document(type="base64", media_type="application/pdf", data="JVBERi0=")

    fault = refusal_of(messages_request, messages=[user(pdf)])
    actual = conversation(messages=[user("go"), assistant(use("t1")), user(result("t1", [pdf]))])

    assert fault.param == "messages[0].content[0].source.type"
    assert "application/pdf" in fault.message
    assert actual[-1]["content"] == "[document omitted: only text can be shown to this model]"


def test_a_search_result_is_shown_as_text() -> None:
    block = {"type": "search_result", "title": "T", "source": "http://s", "content": [text("found")]}

    assert conversation(messages=[user(block)]) == [user("T\nhttp://s\nfound")]


def test_text_and_calls_of_one_turn_are_one_message() -> None:
    history = [user("go"), assistant(text("a"), use("t1", x=1)), assistant(text("b"), use("t2")), user(result("t1"))]

    actual = conversation(messages=history)

    assert actual[1]["content"] == "ab"
    assert [one["function"]["arguments"] for one in actual[1]["tool_calls"]] == ['{"x":1}', "{}"]


@pytest.mark.parametrize(
    ("source", "param"),
    [
        ({"type": "base64", "media_type": "image/png", "data": "no!"}, "data"),
        ({"type": "base64", "media_type": "image/png", "data": ""}, "data"),
        ({"type": "base64", "media_type": "text/html", "data": PNG}, "media_type"),
        ({"type": "base64", "data": PNG}, "media_type"),
        ({"type": "url", "url": "http://169.254.169.254/"}, "url"),
        ({"type": "url", "url": "data:text/html;base64,aaaa"}, "url"),
        ({"type": "file", "file_id": "f"}, "type"),
    ],
)
def test_an_image_that_cannot_be_shown_is_refused_by_name(source: Any, param: str) -> None:
    fault = refusal_of(messages_request, traits=VISION, messages=[user({"type": "image", "source": source})])

    assert fault.param == f"messages[0].content[0].source.{param}"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role"),
        ({"messages": [user({"text": "x"}, 5)]}, "messages[0].content[1]"),
        ({"messages": [user({"type": 5})]}, "messages[0].content[0].type"),
        ({"messages": [user({"type": "text"})]}, "messages[0].content[0].text"),
        ({"messages": [user({"type": "tool_result"})]}, "messages[0].content[0].tool_use_id"),
        ({"messages": [assistant(use("t") | {"input": "x"})]}, "messages[0].content[0].input"),
        ({"system": 5}, "system"),
        ({"system": [text("a"), {"type": "text", "text": None}]}, "system[1].text"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop_sequences": "END"}, "stop_sequences"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [tool("")]}, "tools[0].name"),
        ({"tools": [tool(), tool(description=5)]}, "tools[1].description"),
        ({"tools": [tool()], "tool_choice": "auto"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": {"type": "maybe"}}, "tool_choice.type"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    fault = refusal_of(messages_request, **fields)

    assert fault.kind is Kind.BAD_REQUEST
    assert fault.param == param
    assert fault.message.startswith(f"{param}: ")


def test_sampling_of_the_function_applies_where_the_client_says_nothing() -> None:
    traits = Traits(sampling=Sampling(temperature=0.6, top_k=20))

    assert body_of(messages_request(traits)).items() >= {"temperature": 0.6, "top_k": 20}.items()
    assert body_of(messages_request(traits, temperature=0))["temperature"] == 0


def test_the_session_is_found_in_the_users_id() -> None:
    claude = json.dumps({"device_id": "d", "account_uuid": "", "session_id": "s-1"})

    assert messages_request(metadata={"user_id": claude}).affinity == "s-1"
    assert messages_request(metadata={"user_id": "someone"}).affinity == "someone"
    assert messages_request(metadata=None).affinity is None
    assert "someone" not in str(body_of(messages_request(metadata={"user_id": "someone"})))


def test_a_stream_always_requests_usage() -> None:
    assert body_of(messages_request(stream=True))["stream_options"] == {"include_usage": True}
    assert "stream" not in body_of(messages_request())
