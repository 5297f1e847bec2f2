"""Chat streams as Anthropic events: each replayed whole, byte by byte, with a tail, and in one piece."""

from typing import Any

import pytest

from cortex.router.dialects.core.errors import BadAnswer, Fault, Kind
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.messages import stream as messages_stream
from tests.router.dialects.clients import Json, anthropic_plain, anthropic_streamed, events, replay
from tests.router.dialects.request_builders import messages_request
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

START = ["message_start", "ping"]
END = ["message_delta", "message_stop"]


def block(*deltas: str) -> list[str]:
    return ["content_block_start", *deltas, "content_block_stop"]


DELTA = "content_block_delta"
UNTOLD = dict.fromkeys(
    ("output_tokens_details", "cache_creation", "inference_geo", "server_tool_use", "service_tier"), None
)
"""Keys of a usage that Anthropic's schema requires and no worker tells."""


def text_block(text: str) -> Json:
    return {"type": "text", "text": text, "citations": None}


def tool_use(id: str, name: str, input: Json) -> Json:
    return {"type": "tool_use", "id": id, "name": name, "input": input, "caller": {"type": "direct"}}


def streamed(*chunks: Json, done: bool = True, traits: Traits | None = None, **fields: Any) -> list[Json]:
    """The events of a worker's stream."""
    parsed = messages_request(traits or Traits(), stream=True, **fields)
    return events(replay(lambda: parsed.answer("ID", 1).stream("req_1"), wire(*chunks, done=done)))


def accumulated(*chunks: Json, **fields: Any) -> Json:
    """The message that the anthropic package makes of a worker's stream."""
    parsed = messages_request(stream=True, **fields)
    return anthropic_streamed(replay(lambda: parsed.answer("ID", 1).stream(), wire(*chunks)))


def plain(body: bytes, traits: Traits | None = None, **fields: Any) -> Json:
    """The message that the anthropic package reads out of a whole answer."""
    return anthropic_plain(messages_request(traits or Traits(), **fields).answer("ID", 1).plain(body).body)


def kinds(actual: list[Json]) -> list[str]:
    return [event["type"] for event in actual]


def stops(actual: list[Json]) -> Json:
    delta: Json = actual[-2]["delta"]
    return delta


def test_an_answer_is_a_message_with_one_block() -> None:
    actual = streamed(chunk(role="assistant", content=""), chunk(content="He"), chunk(content="y"), chunk("stop"))

    assert kinds(actual) == [*START, *block(DELTA, DELTA), *END]
    assert actual[0]["message"] == {
        "id": "msg_ID",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": UNTOLD
        | {
            "input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        },
    }
    assert stops(actual) == {"stop_reason": "end_turn", "stop_sequence": None, "stop_details": None, "container": None}


def test_case_18_a_named_choice_that_ends_in_stop_is_still_a_tool_use() -> None:
    actual = streamed(chunk(**call(0, "c1", "f", "{}")), chunk("stop"))

    assert stops(actual)["stop_reason"] == "tool_use"


def test_case_20_a_prewarming_request_has_no_content() -> None:
    actual = streamed(chunk(content="x"), chunk("length"), usage_chunk(counted(10, 1)), max_tokens=0)
    message = plain(completion("length", content="x", usage=counted(10, 1)), max_tokens=0)

    assert kinds(actual) == [*START, *END]
    assert (message["content"], message["usage"]["output_tokens"]) == ([], 0)
    assert actual[-2]["usage"]["output_tokens"] == 0


def test_case_21_a_thought_is_a_block_with_a_signature() -> None:
    actual = streamed(chunk(reasoning="hm"), chunk(content="so"), chunk("stop"))

    assert kinds(actual) == [*START, *block(DELTA, DELTA), *block(DELTA), *END]
    assert actual[2]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    assert actual[4]["delta"]["type"] == "signature_delta"
    assert actual[4]["delta"]["signature"]


@pytest.mark.parametrize("word", [{"stop_reason": "END"}, {"stopping_word": "END"}])
def test_case_23_a_stop_sequence_is_reported_with_its_text(word: Json) -> None:
    last = chunk("stop")
    last["choices"][0] |= word

    actual = streamed(chunk(content="one E"), chunk(content="N"), last, stop_sequences=["END"])

    assert (stops(actual)["stop_reason"], stops(actual)["stop_sequence"]) == ("stop_sequence", "END")


def test_case_23_a_call_cut_by_a_stop_sequence_does_not_stop_with_tool_use() -> None:
    report = streamed(chunk(**call(0, "c1", "f", '{"a": "x')), chunk("stop", stop_reason="END"), stop_sequences=["END"])
    untold = streamed(chunk(**call(0, "c1", "f", '{"a": "x')), chunk("stop"), stop_sequences=["END"])

    assert stops(report) == stops(untold)
    assert (stops(report)["stop_reason"], stops(report)["stop_sequence"]) == ("stop_sequence", "END")


def test_case_23_a_stop_token_id_is_not_a_stop_sequence() -> None:
    assert stops(streamed(chunk(content="x"), chunk("stop", stop_reason=151645)))["stop_reason"] == "end_turn"


def test_case_28_an_empty_answer_is_one_empty_block() -> None:
    actual = streamed(chunk(role="assistant", content=""), chunk("stop"))

    assert kinds(actual) == [*START, *block(), *END]
    assert plain(completion(content=""))["content"] == [text_block("")]


def test_case_29_an_empty_first_chunk_starts_the_message() -> None:
    stream = messages_request(stream=True).answer("ID", 1).stream()

    actual = events(stream.feed(wire(llama_chunk(role="assistant", content=None), done=False)))

    assert kinds(actual) == START


def test_case_30_empty_content_between_deltas_of_a_call_makes_no_block() -> None:
    actual = streamed(
        chunk(content="", **call(0, "c1", "f", "")),
        chunk(content="", **call(0, arguments='{"a":')),
        chunk(content=""),
        chunk(content="", **call(0, arguments="1}")),
        chunk("tool_calls", content=""),
    )

    assert kinds(actual) == [*START, *block(DELTA, DELTA), *END]


@pytest.mark.parametrize(
    "deltas",
    [
        [
            call(0, "c1", "f", '{"a":'),
            call(0, arguments="1}"),
            call(1, "c2", "g", '{"b":'),
            call(1, arguments="2}"),
        ],
        [
            call(0, "c1", "f", '{"a":'),
            call(1, "c2", "g", '{"b":'),
            call(0, arguments="1}"),
            call(1, arguments="2}"),
        ],
        [
            call(0, "c1", "f", '{"a":'),
            call(0, "c1", "f", "1}"),
            call(1, "c2", "g", '{"b":'),
            call(1, "c2", "g", "2}"),
        ],
        [call(None, "c1", "f", '{"a":'), call(None, arguments="1}"), call(None, "c2", "g", '{"b":2}')],
        [call(0, "c1", "f", '{"a":1}'), call(0, "c2", "g", '{"b":2}')],
        [call(0, "c1", "f", {"a": 1}), call(1, "c2", "g", {"b": 2})],
    ],
    ids=["in order", "interleaved", "ids repeated", "no index", "one index for all", "objects"],
)
def test_case_31_parallel_calls_are_two_blocks_however_they_arrive(deltas: list[Json]) -> None:
    message = accumulated(*(chunk(**delta) for delta in deltas), chunk("tool_calls"), usage_chunk())

    assert message["content"] == [
        tool_use("c1", "f", {"a": 1}),
        tool_use("c2", "g", {"b": 2}),
    ]
    assert message["stop_reason"] == "tool_use"


def test_case_31_a_call_without_arguments_is_not_merged_with_the_next_of_the_same_number() -> None:
    deltas = [call(0, "c1", "f", ""), call(0, "c2", "f", '{"a":'), call(0, arguments="1}"), call(0, "c3", "g")]

    message = accumulated(*(chunk(**delta) for delta in deltas), chunk("tool_calls"), usage_chunk())

    assert message["content"] == [tool_use("c1", "f", {}), tool_use("c2", "f", {"a": 1}), tool_use("c3", "g", {})]


def test_case_31_pieces_with_an_id_each_and_one_name_are_one_call() -> None:
    deltas = [call(0, "c1", "f", ""), call(0, "c2", arguments='{"a":'), call(0, "c3", arguments="1}")]

    message = accumulated(*(chunk(**delta) for delta in deltas), chunk("tool_calls"), usage_chunk())

    assert message["content"] == [tool_use("c1", "f", {"a": 1})]


def test_case_31_calls_have_ids_of_the_allowed_letters_and_never_the_same() -> None:
    one = [whole_call("call.1:x", "f", "{}"), whole_call("call.1:x", "f", "{}"), whole_call("", "g", "{}")]

    ids = [one["id"] for one in plain(completion("tool_calls", tool_calls=one))["content"]]

    assert ids == ["call_1_x", "call_1_x_2", "call_ID_2"]


def test_case_32_a_call_may_come_whole_or_its_arguments_before_its_name() -> None:
    whole = accumulated(chunk(**call(0, "c1", "f", '{"a":1}')), chunk("tool_calls"), usage_chunk())
    late = accumulated(
        chunk(**call(0, arguments='{"a":')),
        chunk(**call(0, "c1", "f", "1}")),
        chunk("tool_calls"),
        usage_chunk(),
    )

    assert whole["content"] == late["content"] == [tool_use("c1", "f", {"a": 1})]


def test_case_32_a_call_that_never_gets_a_name_is_not_lost() -> None:
    actual = streamed(chunk(**call(0, arguments="{}")), chunk("tool_calls"))

    assert actual[2]["content_block"]["name"] == "unknown_tool"


@pytest.mark.parametrize("arguments", ["", "null", " ", None])
def test_case_12_a_call_without_arguments_has_an_empty_input(arguments: str | None) -> None:
    message = accumulated(chunk(**call(0, "c1", "f", arguments)), chunk("tool_calls"), usage_chunk())
    whole = plain(completion("tool_calls", tool_calls=[whole_call("c1", "f", arguments)]))

    assert message["content"] == whole["content"] == [tool_use("c1", "f", {})]


def test_case_33_thinking_text_and_calls_may_alternate() -> None:
    actual = streamed(
        chunk(reasoning="a"),
        chunk(content="b"),
        chunk(reasoning="c"),
        chunk(**call(0, "c1", "f", "{}")),
        chunk(content="d"),
        chunk("tool_calls"),
    )

    starts = [event["content_block"]["type"] for event in actual if event["type"] == "content_block_start"]
    assert starts == ["thinking", "text", "thinking", "tool_use", "text"]


def test_case_34_a_delta_is_never_of_another_kind_than_its_block() -> None:
    actual = streamed(
        chunk(reasoning="a", content="b", **call(0, "c1", "f", '{"a":')),
        chunk(content="during"),
        chunk(reasoning="also"),
        chunk(**call(0, arguments="1}")),
        chunk("tool_calls"),
    )

    kind = {"thinking_delta": "thinking", "signature_delta": "thinking", "text_delta": "text"}
    open_block = ""
    for event in actual:
        if event["type"] == "content_block_start":
            open_block = event["content_block"]["type"]
        if event["type"] == "content_block_delta":
            assert kind.get(event["delta"]["type"], "tool_use") == open_block
    assert [event["content_block"]["type"] for event in actual if event["type"] == "content_block_start"] == [
        "thinking",
        "text",
        "tool_use",
        "text",
        "thinking",
    ]


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(content="x"), chunk("stop"), usage_chunk(counted(10, 5, cached=4))],
        [chunk(content="x"), chunk("stop", usage=counted(10, 5, cached=4))],
        [chunk("stop", content="x", usage=counted(10, 5, cached=4))],
        [chunk(content="x", usage=counted(10, 1)), chunk("stop", usage=counted(10, 5, cached=4))],
    ],
)
def test_case_35_usage_and_finish_reason_are_read_from_any_chunk(chunks: list[Json]) -> None:
    actual = streamed(*chunks)

    assert kinds(actual) == [*START, *block(DELTA), *END]
    assert actual[-2]["usage"] == UNTOLD | {
        "input_tokens": 6,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 5,
    }


def test_case_35_without_any_usage_there_is_still_usage() -> None:
    stream = messages_request(stream=True).answer("ID", 1).stream()

    actual = events(stream.feed(wire(chunk(content="x"), chunk("stop"))))

    assert actual[-2]["usage"]["input_tokens"] == 0
    assert stream.tokens.input == 0


def test_case_36_a_call_cut_by_the_limit_is_sent_up_to_its_end() -> None:
    chunks = [chunk(**call(0, "c1", "f", '{"a": 1, "b": "unfin')), chunk("length"), usage_chunk()]
    body = completion("length", tool_calls=[whole_call("c1", "f", '{"a": 1, "b": "unfin')])

    actual = streamed(*chunks)

    assert actual[3]["delta"]["partial_json"] == '{"a": 1, "b": "unfin'
    assert stops(actual)["stop_reason"] == "max_tokens"
    assert accumulated(*chunks)["content"] == plain(body)["content"]
    assert plain(body)["content"] == [tool_use("c1", "f", {"a": 1})]


def test_case_36_a_full_window_is_not_the_clients_limit() -> None:
    small = Traits(context_window=100)

    full = plain(completion("length", content="x", usage=counted(90, 10)), small)
    limited = plain(completion("length", content="x", usage=counted(90, 10)), small, max_tokens=10)

    assert full["stop_reason"] == "model_context_window_exceeded"
    assert limited["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("chunks", "done"),
    [
        ([], False),
        ([], True),
        ([chunk(content="Hel")], False),
        ([chunk(content="Hel")], True),
        ([chunk(**call(0, "c1", "f", '{"a":'))], False),
        ([chunk(content="Hel"), chunk("abort")], True),
        ([chunk(content="Hel"), {"error": {"message": "boom", "type": "InternalServerError", "code": 500}}], True),
        ([chunk(content="Hel"), {"choices": "garbage"}], True),
    ],
)
def test_case_37_a_broken_stream_ends_in_one_error(chunks: list[Json], done: bool) -> None:
    actual = streamed(*chunks, done=done)

    assert actual[-1]["type"] == "error"
    assert actual[-1]["error"]["type"] == "api_error"
    assert actual[-1]["request_id"] == "req_1"
    assert not {"content_block_stop", "message_delta", "message_stop"} & set(kinds(actual))


def test_case_37_a_lost_worker_gives_one_error() -> None:
    stream = messages_request(stream=True).answer("ID", 1).stream()
    fault = Fault(kind=Kind.TIMEOUT, message="the worker went silent")

    stream.feed(wire(chunk(content="Hel"), done=False))

    assert events(stream.fail(fault))[-1]["error"] == {
        "type": "timeout_error",
        "message": "the worker went silent",
    }
    assert stream.fault is fault
    assert stream.over
    assert stream.fail(fault) + stream.feed(small_stream()) + stream.close() + stream.ping() + stream.open() == b""


def test_case_38_a_failure_before_the_first_event_keeps_the_status_free() -> None:
    stream = messages_request(stream=True).answer("ID", 1).stream()

    out = stream.feed(wire({"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}))

    assert kinds(events(out)) == ["error"]
    assert stream.fault is not None
    assert stream.fault.status("messages") == 529


def test_case_37_a_truncated_answer_raises() -> None:
    reply = messages_request().answer("ID", 1)

    for body in (completion(None, content="x"), completion("abort", content="x"), b"", b"{}", b'{"choices":[]}'):
        with pytest.raises(BadAnswer):
            reply.plain(body)


def test_a_finish_reason_without_done_ends_the_stream() -> None:
    assert kinds(streamed(chunk(content="x"), chunk("stop"), done=False)) == [*START, *block(DELTA), *END]


def test_half_a_chunk_after_the_end_is_not_an_error() -> None:
    stream = messages_request(stream=True).answer("ID", 1).stream()

    out = stream.feed(wire(chunk(content="x"), chunk("stop"), done=False) + b'data: {"id":"chatc') + stream.close()

    assert events(out)[-1]["type"] == "message_stop"


def test_case_40_a_ping_starts_the_message_and_then_is_a_ping() -> None:
    stream = messages_request(stream=True).answer("ID", 1).stream()

    first, second = stream.ping(), stream.ping()
    rest = stream.feed(small_stream())

    assert kinds(events(first)) == START
    assert kinds(events(second)) == ["ping"]
    assert anthropic_streamed(first + second + rest)["content"] == [text_block("Hello")]


def test_a_ping_with_a_reason_has_it_in_a_comment_before_its_event() -> None:
    stream = messages_request(stream=True).answer("ID", 1).stream()

    first, second = stream.ping("no room"), stream.ping("no room")
    rest = stream.feed(small_stream())

    assert first.startswith(b": no room\nevent: message_start\n")
    assert second.startswith(b": no room\nevent: ping\n")
    assert anthropic_streamed(first + second + rest)["content"] == [text_block("Hello")]


@pytest.mark.parametrize("frame", [lambda data: data, lambda data: data.replace(b"\n", b"\r\n")])
@pytest.mark.parametrize("space", [b"data: ", b"data:"])
def test_case_42_letters_cut_in_two_and_other_line_ends_change_nothing(frame: Any, space: bytes) -> None:
    raw = frame(wire(chunk(content="日本"), chunk(content="語 🎈"), chunk("stop")).replace(b"data: ", space))
    parsed = messages_request(stream=True)

    actual = events(replay(lambda: parsed.answer("ID", 1).stream(), raw))

    assert [event["delta"]["text"] for event in actual if event["type"] == DELTA] == ["日本", "語 🎈"]


def test_case_43_an_answer_is_the_same_streamed_and_whole() -> None:
    usage = counted(20, 9, cached=8) | {"completion_tokens_details": {"reasoning_tokens": 3}}
    calls = [whole_call("c1", "f", '{"a": [1, 2]}'), whole_call("c2", "g", "{}")]

    stream = accumulated(
        chunk(role="assistant", content=""),
        chunk(reasoning_content="think"),
        chunk(reasoning_content="ing"),
        chunk(content="te"),
        chunk(content="xt"),
        chunk(**call(0, "c1", "f", '{"a": [1')),
        chunk(**call(0, arguments=", 2]}")),
        chunk(**call(1, "c2", "g", "{}")),
        chunk("tool_calls"),
        usage_chunk(usage),
    )
    whole = plain(completion("tool_calls", reasoning="thinking", content="text", tool_calls=calls, usage=usage))

    assert stream == whole
    assert whole["id"] == "msg_ID"
    assert whole["usage"]["output_tokens_details"] == {"thinking_tokens": 3}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": 1} trailing', {"a": 1}),
        ('{"a": "line\nbreak"}', {"a": "line\nbreak"}),
        ('{"a": "\\d+"}', {"a": "\\d+"}),
        ('{"a": 1, oops', {"a": 1}),
        ("{'a': 1}", {}),
        ("[1]", {}),
        ("nonsense", {}),
    ],
)
def test_invalid_arguments_are_repaired_or_noted(arguments: str, expected: Json) -> None:
    stream = accumulated(chunk(**call(0, "c1", "f", arguments)), chunk("tool_calls"), usage_chunk())
    whole = plain(completion("tool_calls", tool_calls=[whole_call("c1", "f", arguments)]))

    assert stream["content"] == whole["content"]
    assert whole["content"][0]["input"] == expected
    assert len(whole["content"]) == (1 if expected.get("a") and "oops" not in arguments else 2)


@pytest.mark.parametrize("message", [{"refusal": "I cannot"}, {"content": "I cannot"}], ids=["refused", "filtered"])
def test_a_refusal_is_text_and_a_reason(message: Json) -> None:
    finish = "stop" if "refusal" in message else "content_filter"

    actual = plain(completion(finish, **message))

    assert actual["content"] == [text_block("I cannot")]
    assert actual["stop_reason"] == "refusal"


def test_seed_defect_a_plain_answer_keeps_its_calls_and_thoughts() -> None:
    actual = plain(completion("tool_calls", reasoning="hm", tool_calls=[whole_call("c1", "f", "{}")]))

    assert [one["type"] for one in actual["content"]] == ["thinking", "tool_use"]


def test_every_event_has_a_name_and_done_is_not_sent() -> None:
    parsed = messages_request(stream=True)

    out = replay(lambda: parsed.answer("ID", 1).stream(), small_stream())

    assert out.count(b"event: ") == out.count(b"data: ") == len(events(out))
    assert b"[DONE]" not in out


def test_the_machine_can_be_driven_without_any_bytes() -> None:
    machine = messages_stream.MessagesMachine(messages_request().answer("ID", 1).answer)

    with pytest.raises(BadAnswer):
        machine.close()


def test_a_counted_prompt_is_in_the_first_event_and_the_limit_it_leaves_ends_the_answer() -> None:
    stream = messages_request(Traits(context_window=1000), max_tokens=4096).answer("a", 1).stream()
    stream.fit(300, 700)
    piece = wire(chunk(content="hi"), chunk("length"), usage_chunk(counted(700, 300)))

    start, *_, delta, _ = events(stream.feed(piece))

    assert start["message"]["usage"]["input_tokens"] == 700
    assert delta["delta"]["stop_reason"] == "max_tokens"
