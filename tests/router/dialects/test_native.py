"""Dialects that are handed to the worker's own: what changes, which is next to nothing, and what is never faked."""

import json
from typing import Any

import pytest

from cortex.router.dialects import native
from cortex.router.dialects.core.chunks import Tokens
from cortex.router.dialects.core.errors import BadAnswer, BadRequest
from cortex.router.dialects.native import NativeDialect
from tests.router.dialects import clients

BILLING = "x-anthropic-billing-header: cc_version=2.1.329.f6c; cc_entrypoint=sdk-cli;"

START: dict[str, Any] = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 7, "cache_read_input_tokens": 3, "output_tokens": 0},
    },
}
MESSAGES: list[dict[str, Any]] = [
    START,
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hé\n"}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 2},
    },
    {"type": "message_stop"},
]
RESPONSE: dict[str, Any] = {"id": "resp_1", "object": "response", "status": "in_progress", "output": []}
RESPONSES: list[dict[str, Any]] = [
    {"type": "response.created", "response": RESPONSE},
    {"type": "response.output_text.delta", "delta": "Hi"},
    {"type": "response.completed", "response": {**RESPONSE, "usage": {"input_tokens": 10, "output_tokens": 2}}},
]


def wire(*events: dict[str, Any]) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events)


def stream(dialect: NativeDialect) -> native.NativeStream:
    return native.Reply(dialect).stream("req_1")


def parsed(dialect: NativeDialect = "messages", **fields: Any) -> native.NativeRequest:
    return native.read(dialect, json.dumps({"model": "m", "messages": []} | fields).encode())


def test_a_request_keeps_its_bytes_except_the_model_name() -> None:
    body = b'{ "model" : "alias", "messages":[ {"role":"user","content":"hi"}], "max_tokens":5,"new_field":[1] }'

    actual = native.read("messages", body)

    assert actual.body("org/real") == (
        b'{"model":"org/real","messages":[ {"role":"user","content":"hi"}],"max_tokens":5}'
    )
    assert actual.dropped == ("new_field",)


def test_case_03_the_billing_header_is_taken_out_here_too() -> None:
    system = [{"type": "text", "text": BILLING}, {"type": "text", "text": "front", "cache_control": {}}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": BILLING}, {"type": "text", "text": "mind"}]},
        {"role": "user", "content": BILLING},
    ]

    actual = json.loads(bytes(parsed(system=system, messages=messages, tools=[]).body("m")))

    assert actual["system"] == system[1:]
    assert actual["messages"][0]["content"] == [{"type": "text", "text": "mind"}]
    assert actual["messages"][1] == messages[1]
    assert actual["tools"] == []


def test_a_session_is_recognised() -> None:
    user = json.dumps({"device_id": "d", "session_id": "s"})

    assert parsed(metadata={"user_id": user}).affinity == "s"
    assert parsed("responses", prompt_cache_key="k").affinity == "k"


@pytest.mark.parametrize(
    "body", [b"[]", b'{"model": 1}', b'{"model": ""}', b"{}", b"\xff", b'{"model":"m","stream":"x"}']
)
def test_a_request_without_a_model_is_refused_by_name(body: bytes) -> None:
    with pytest.raises(BadRequest):
        native.read("messages", body)


def test_a_stream_passes_as_it_is_and_is_counted() -> None:
    body_of = wire(*MESSAGES)

    assert clients.run(stream("messages"), [body_of]) == body_of
    assert clients.run(stream("messages"), clients.split(body_of, 1)) == body_of
    watched = stream("messages")
    clients.run(watched, [body_of])
    assert watched.tokens == Tokens(input=10, output=2)
    assert watched.over
    assert clients.anthropic_streamed(body_of)["content"][0]["text"] == "Hé\n"


def test_a_responses_stream_passes_as_it_is_and_is_counted() -> None:
    watched = stream("responses")

    assert clients.run(watched, [wire(*RESPONSES)]) == wire(*RESPONSES)
    assert watched.tokens == Tokens(input=10, output=2)


@pytest.mark.parametrize("cut", [0, 30, -30, -60])
def test_case_37_a_truncated_stream_ends_in_an_error(cut: int) -> None:
    for dialect, events in (("messages", MESSAGES), ("responses", RESPONSES)):
        watched = native.Reply(dialect).stream("req_1")  # type: ignore[arg-type]
        body_of = wire(*events)[:cut] if cut else b""

        output = clients.events(clients.run(watched, [body_of]))

        assert output[-1]["type"] == ("error" if dialect == "messages" else "response.failed")
        assert not {"message_stop", "response.completed"} & {event["type"] for event in output}
        assert watched.fault is not None


def test_a_last_event_that_is_no_answer_ends_the_stream_in_an_error() -> None:
    last = b'event: message_delta\ndata: {"usage": 5}'

    output = clients.events(clients.run(stream("messages"), [wire(START), last]))

    assert [event["type"] for event in output] == ["message_start", "error"]


def test_a_failure_names_the_response_it_belongs_to() -> None:
    output = clients.events(clients.run(stream("responses"), [wire(*RESPONSES[:2])]))

    assert output[-1]["response"] | {"error": None} == RESPONSE | {"status": "failed", "error": None}


def test_the_workers_own_error_ends_the_stream() -> None:
    error = {"type": "error", "error": {"type": "api_error", "message": "no"}}
    watched = stream("messages")

    assert clients.run(watched, [wire(START, error)]) == wire(START, error)
    assert watched.fault is not None


def test_a_ping_before_the_first_event_starts_no_message() -> None:
    body_of = stream("messages").ping() + wire(*MESSAGES)

    assert clients.anthropic_streamed(body_of)["content"][0]["text"] == "Hé\n"
    assert clients.events(stream("responses").ping()) == []


@pytest.mark.parametrize("dialect", ["messages", "responses"])
def test_a_ping_with_a_reason_has_it_in_a_comment_on_one_line(dialect: Any) -> None:
    ping = stream(dialect).ping("no room for 'f' now:\n\ndata: {}")

    assert ping.startswith(b": no room for 'f' now: data: {}\n")
    assert clients.events(ping) == clients.events(stream(dialect).ping())


def test_a_plain_answer_passes_as_it_is_and_is_counted() -> None:
    body = json.dumps({**START["message"], "usage": {"input_tokens": 4, "output_tokens": 6}}).encode()

    plain = native.Reply("messages").plain(body)

    assert plain.body == body
    assert plain.tokens == Tokens(input=4, output=6)


def test_invalid_json_raises() -> None:
    with pytest.raises(BadAnswer):
        native.Reply("messages").plain(b"<html>")
    assert stream("messages").feed(b"event: message_start\ndata: <html>\n\n").startswith(b"event: error\n")
