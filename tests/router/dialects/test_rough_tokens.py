"""About how many tokens a stream brought, for one that is cut before its worker has counted."""

import json
from typing import Any

import pytest

from cortex.router.dialects.chat.stream import ChatStream, Reply
from cortex.router.dialects.native import NativeStream


def wire(*choices: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps({"choices": [c]}).encode() + b"\n\n" for c in choices)


@pytest.mark.parametrize(
    ("choice", "tokens"),
    [
        ({"delta": {"role": "assistant", "content": ""}}, 0),
        ({"delta": {"content": "a"}}, 1),
        ({"delta": {"content": "four words in one piece, by speculative decoding"}}, 12),
        ({"delta": {"reasoning_content": "thoughts"}}, 2),
        ({"delta": {"reasoning": "thoughts"}}, 2),
        ({"delta": {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": '{"a": 123}'}}]}}, 2),
        ({"text": "a completion"}, 3),
        ({"text": 5}, 0),
        ({"delta": {}, "finish_reason": "stop"}, 0),
    ],
)
def test_a_piece_has_one_token_for_four_letters_and_one_at_least(choice: dict[str, Any], tokens: int) -> None:
    stream = ChatStream(Reply(id="x", model="m"))

    stream.feed(wire(choice))

    assert stream.rough_tokens == tokens


def test_events_that_came_in_one_read_are_counted_each() -> None:
    stream = ChatStream(Reply(id="x", model="m"))

    stream.feed(wire(*[{"delta": {"content": "a"}}] * 50))

    assert stream.rough_tokens == 50


@pytest.mark.parametrize(
    ("dialect", "name", "delta", "tokens"),
    [
        ("messages", "content_block_delta", {"type": "text_delta", "text": "x" * 40}, 10),
        ("messages", "message_delta", {"stop_reason": None}, 1),
        ("responses", "response.output_text.delta", "x" * 40, 10),
        ("responses", "response.output_text.delta", [1], 1),
        ("responses", "response.created", "x" * 40, 0),
    ],
)
def test_a_native_streams_deltas_are_counted_by_their_text(dialect: Any, name: str, delta: Any, tokens: int) -> None:
    stream = NativeStream(dialect, "id")

    stream.feed(f"event: {name}\ndata: {json.dumps({'delta': delta})}\n\n".encode())

    assert stream.rough_tokens == tokens
