"""Chat streams as Responses events: each replayed whole, byte by byte, with a tail, and in one piece."""

from typing import Any

import pytest

from cortex.router.dialects.core.errors import BadAnswer, Fault, Kind
from tests.router.dialects.clients import (
    Json,
    events,
    replay,
    responses_plain,
    responses_raw,
    responses_streamed,
)
from tests.router.dialects.request_builders import responses_request
from tests.router.dialects.test_responses_request import CODEX
from tests.router.dialects.workers import call, chunk, completion, counted, small_stream, usage_chunk, whole_call, wire

CUSTOM: Json = {"tools": [{"type": "custom", "name": "patch"}]}


def raw(*chunks: Json, done: bool = True, **fields: Any) -> bytes:
    parsed = responses_request(stream=True, **fields)
    return replay(lambda: parsed.answer("ID", 1).stream(), wire(*chunks, done=done))


def streamed(*chunks: Json, done: bool = True, **fields: Any) -> list[Json]:
    """The events, after a look at what holds for every stream."""
    actual = events(raw(*chunks, done=done, **fields))
    assert [event["sequence_number"] for event in actual] == list(range(len(actual)))
    assert actual[0]["type"] == "response.created"
    return actual


def plain(body: bytes, **fields: Any) -> Json:
    return responses_plain(responses_request(**fields).answer("ID", 1).plain(body).body)


def names(actual: list[Json]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in actual]


def of(actual: list[Json], kind: str) -> list[Json]:
    return [event for event in actual if event["type"] == f"response.{kind}"]


def test_a_text_is_an_item_with_one_part() -> None:
    actual = streamed(chunk(role="assistant", content=""), chunk(content="He"), chunk(content="y"), chunk("stop"))

    assert names(actual) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert actual[6]["text"] == "Hey"
    assert {"item_id": "msg_ID_0", "output_index": 0, "content_index": 0, "logprobs": []}.items() <= actual[4].items()


def test_thinking_is_a_separate_item() -> None:
    actual = streamed(chunk(reasoning="hm"), chunk(content="so"), chunk("stop"))

    assert actual[-1]["response"]["output"][0] == {
        "type": "reasoning",
        "id": "rs_ID_0",
        "status": "completed",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "hm"}],
    }
    assert of(actual, "reasoning_text.delta")[0]["delta"] == "hm"


def test_case_45_a_call_from_a_namespace_is_answered_with_its_name_and_namespace() -> None:
    actual = streamed(chunk(**call(0, "c1", "multi_agent_v1__spawn", "{}")), chunk("tool_calls"), **_codex())
    whole = plain(completion("tool_calls", tool_calls=[whole_call("c1", "multi_agent_v1__spawn", "{}")]), **_codex())

    item = actual[-1]["response"]["output"][0]
    assert (item["name"], item["namespace"], item["call_id"]) == ("spawn", "multi_agent_v1", "c1")
    assert whole["output"][0] == item
    assert "namespace" not in streamed(chunk(**call(0, "c1", "f", "{}")), chunk("stop"))[-1]["response"]["output"][0]


def _codex() -> Json:
    return {name: value for name, value in CODEX.items() if name != "stream"}


def test_case_49_an_answer_cut_by_the_limit_is_incomplete() -> None:
    actual = streamed(chunk(content="unfin"), chunk("length"), usage_chunk())
    whole = plain(completion("length", content="unfin"))

    last = actual[-1]["response"]
    assert actual[-1]["type"] == "response.incomplete"
    assert (last["status"], last["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert last["output"][0]["status"] == "incomplete"
    assert whole["output"] == last["output"]


def test_case_49_a_filtered_answer_is_incomplete_for_that_reason() -> None:
    actual = streamed(chunk(content="un"), chunk("content_filter"))

    assert actual[-1]["response"]["incomplete_details"] == {"reason": "content_filter"}


def test_case_50_items_are_the_same_in_done_events_and_the_final_response() -> None:
    actual = streamed(
        chunk(reasoning="a"),
        chunk(content="b"),
        chunk(**call(0, "c1", "f", '{"a":')),
        chunk(**call(1, "c2", "g", "{}")),
        chunk(**call(0, arguments="1}")),
        chunk("tool_calls"),
        usage_chunk(),
    )

    output = actual[-1]["response"]["output"]
    assert [event["item"] for event in of(actual, "output_item.done")] == output
    assert [event["item"]["id"] for event in of(actual, "output_item.added")] == [one["id"] for one in output]
    assert [event["output_index"] for event in of(actual, "output_item.done")] == [0, 1, 2, 3]
    assert [one["id"] for one in output] == ["rs_ID_0", "msg_ID_1", "fc_ID_2", "fc_ID_3"]


@pytest.mark.parametrize(
    "arguments",
    [
        ['{"a":', "1}"],
        ['{"a":1}'],
        [' {"a":1} '],
        ["not json"],
        [""],
        ["nu", "ll"],
        ["n", "o"],
        [{"a": 1}],
        ['{"a":'],
    ],
)
def test_case_51_the_final_arguments_are_the_concatenated_deltas(arguments: list[Any]) -> None:
    first, *rest = arguments

    actual = streamed(
        chunk(**call(0, "c1", "f", first)), *(chunk(**call(0, arguments=one)) for one in rest), chunk("tool_calls")
    )

    done = of(actual, "function_call_arguments.done")[0]
    expected = "".join(one if isinstance(one, str) else '{"a":1}' for one in arguments)
    assert done["arguments"] == ("{}" if expected in ("", "null") else expected)
    assert "".join(event["delta"] for event in of(actual, "function_call_arguments.delta")) == done["arguments"]
    assert actual[-1]["response"]["output"][0]["arguments"] == done["arguments"]


def test_case_51_a_second_call_without_arguments_has_its_own() -> None:
    actual = streamed(chunk(**call(0, "c1", "f", '{"a":1}')), chunk(**call(1, "c2", "g", "")), chunk("tool_calls"))

    deltas = [(event["output_index"], event["delta"]) for event in of(actual, "function_call_arguments.delta")]
    assert deltas == [(0, '{"a":1}'), (1, "{}")]


def test_a_custom_tool_gets_its_text_back_out_of_the_json() -> None:
    text = '*** Begin\n"x"'
    held = '{"input": "*** Begin\\n\\"x\\""}'

    actual = streamed(
        chunk(**call(0, "c1", "patch", held[:9])), chunk(**call(0, arguments=held[9:])), chunk("stop"), **CUSTOM
    )
    whole = plain(completion("tool_calls", tool_calls=[whole_call("c1", "patch", held)]), **CUSTOM)

    item = actual[-1]["response"]["output"][0]
    assert (item["type"], item["input"], item["id"]) == ("custom_tool_call", text, "ctc_ID_0")
    assert of(actual, "custom_tool_call_input.delta")[0]["delta"] == text
    assert of(actual, "custom_tool_call_input.done")[0]["input"] == text
    assert whole["output"][0] == item


def test_an_empty_answer_is_one_empty_text() -> None:
    actual = streamed(chunk(role="assistant", content=""), chunk("stop"))

    assert names(actual)[2:-1] == [
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ]
    assert actual[-1]["response"]["output"] == plain(completion(content=""))["output"]


def test_a_refusal_is_a_part_of_its_own() -> None:
    actual = streamed(chunk(refusal="I can"), chunk(refusal="not"), chunk("stop"))

    assert of(actual, "refusal.done")[0]["refusal"] == "I cannot"
    assert actual[-1]["response"]["output"][0]["content"] == [{"type": "refusal", "refusal": "I cannot"}]


def test_case_37_a_broken_stream_fails_with_its_complete_items() -> None:
    actual = streamed(chunk(reasoning="hm"), chunk(content="unfin"), done=True)

    last = actual[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert [one["type"] for one in last["response"]["output"]] == ["reasoning"]
    assert not of(actual, "completed") + of(actual, "incomplete")


@pytest.mark.parametrize(
    "chunks", [[chunk("abort")], [chunk("error", content="x")], [{"choices": 5}], [{"error": "boom"}], []]
)
def test_case_37_a_stream_that_breaks_at_once_is_numbered_too(chunks: list[Json]) -> None:
    assert names(streamed(*chunks)) == ["created", "in_progress", "failed"]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (Kind.PROMPT_TOO_LONG, "context_length_exceeded"),
        (Kind.BAD_REQUEST, "invalid_prompt"),
        (Kind.NO_CAPACITY, "server_is_overloaded"),
        (Kind.RATE_LIMITED, "rate_limit_exceeded"),
        (Kind.LOADING, "server_error"),
        (Kind.WORKER_ERROR, "server_error"),
    ],
)
def test_case_37_a_failure_has_the_code_that_codex_acts_on(kind: Kind, code: str) -> None:
    stream = responses_request(stream=True).answer("ID", 1).stream()

    actual = events(stream.fail(Fault(kind=kind, message="why")))

    assert names(actual) == ["created", "in_progress", "failed"]
    assert actual[-1]["response"]["error"] == {"code": code, "message": "why"}


def test_case_37_a_truncated_answer_raises() -> None:
    for body in (completion(None, content="x"), completion("error", content="x"), b"[]", b'{"choices":[{}]}'):
        with pytest.raises(BadAnswer):
            responses_request().answer("ID", 1).plain(body)


def test_case_40_keep_alives_are_events() -> None:
    stream = responses_request(stream=True).answer("ID", 1).stream()

    out = stream.ping() + stream.ping() + stream.ping() + stream.feed(small_stream())

    assert names(events(out))[:4] == ["created", "in_progress", "ping", "ping"]
    assert responses_streamed(out)["output"][0]["content"][0]["text"] == "Hello"


def test_a_keep_alive_with_a_reason_has_it_in_a_comment_before_its_event() -> None:
    stream = responses_request(stream=True).answer("ID", 1).stream()

    held = stream.ping("no room") + stream.ping("no room")
    out = held + stream.feed(small_stream())

    assert held.count(b": no room\nevent: ") == 2
    assert responses_streamed(out)["output"][0]["content"][0]["text"] == "Hello"


def test_case_43_an_answer_is_the_same_streamed_and_whole() -> None:
    usage = counted(20, 9, cached=8) | {"completion_tokens_details": {"reasoning_tokens": 3}}
    calls = [whole_call("c1", "f", '{"a": [1, 2]}'), whole_call("c2", "g", "{}")]
    tools = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in "fg"]

    stream = responses_streamed(
        raw(
            chunk(reasoning_content="think"),
            chunk(reasoning_content="ing"),
            chunk(content="te"),
            chunk(content="xt"),
            chunk(**call(0, "c1", "f", '{"a": [1')),
            chunk(**call(0, arguments=", 2]}")),
            chunk(**call(1, "c2", "g", "{}")),
            chunk("tool_calls"),
            usage_chunk(usage),
            tools=tools,
        )
    )
    body = completion("tool_calls", reasoning="thinking", content="text", tool_calls=calls, usage=usage)
    whole = plain(body, tools=tools)

    assert stream == whole
    assert whole["usage"] == {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 29,
    }


def test_the_answer_repeats_its_request() -> None:
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": None}]

    actual = plain(
        completion(content="x"), tools=tools, instructions="front", metadata={"a": "b"}, parallel_tool_calls=False
    )

    assert actual["tools"][0]["name"] == "f"
    assert (actual["instructions"], actual["metadata"]) == ("front", {"a": "b"})
    assert actual["parallel_tool_calls"] is False
    assert actual["tool_choice"] == "auto"
    assert (actual["object"], actual["id"], actual["created_at"]) == ("response", "resp_ID", 1)


def test_an_iterating_client_sees_every_terminal_event() -> None:
    ends = {
        responses_raw(raw(chunk(content="x"), chunk(finish), done=True))[-1]["type"]
        for finish in ("stop", "length", "abort")
    }

    assert ends == {"response.completed", "response.incomplete", "response.failed"}
